"""The fictional world: what its questions promise about its documents holds."""

import random
from dataclasses import replace

import pytest

from evals.datasets import world_words
from evals.datasets.world import (
    POPULAR_PER_KIND,
    NamePool,
    WorldConfig,
    build_world,
    near_duplicate,
    popular_entities,
)
from evals.datasets.world_questions import load_world

CONFIG = WorldConfig(seed=3, num_entities=500, num_questions=300)


@pytest.fixture(scope="module")
def dataset():
    return load_world(CONFIG)


@pytest.fixture(scope="module")
def documents(dataset):
    return {document.id: document for document in dataset.documents}


def test_a_seed_fixes_everything(dataset):
    assert load_world(CONFIG) == dataset
    assert load_world(WorldConfig(seed=4, num_entities=500, num_questions=300)).digest != dataset.digest


def test_ids_and_questions_are_unique(dataset):
    assert len({document.id for document in dataset.documents}) == len(dataset.documents)
    assert len({question.text for question in dataset.questions}) == CONFIG.num_questions


def test_kinds_come_in_their_shares(dataset):
    kinds = [question.kind.removeprefix("popular_") for question in dataset.questions]
    assert kinds.count("unanswerable") == round(CONFIG.unanswerable_share * CONFIG.num_questions)
    assert kinds.count("two_hop") == round(CONFIG.two_hop_share * CONFIG.num_questions)
    assert kinds.count("namesake") == round(CONFIG.namesake_question_share * CONFIG.num_questions)


def test_gold_documents_state_the_answer(dataset, documents):
    for question in dataset.questions:
        if question.answerable:
            assert question.answers[0] in documents[question.gold_ids[-1]].text
            assert len(question.gold_ids) == (2 if question.kind.endswith("two_hop") else 1)
        else:
            assert question.gold_ids == ()


def test_a_withheld_fact_is_stated_nowhere():
    """No document of an entity gives the value that unanswerable questions ask for."""
    world = build_world(random.Random(9), CONFIG)
    withheld = [entity for entity in world.entities.values() if entity.withheld]
    assert len(withheld) > 100
    stated = {(page.entity_id, attribute) for page in world.pages for attribute in page.stated}
    for entity in withheld:
        assert (entity.id, entity.withheld) not in stated
        assert {(entity.id, attribute) for attribute in entity.facts if attribute != entity.withheld} <= stated


def test_pages_state_what_they_say():
    world = build_world(random.Random(9), CONFIG)
    for page in world.pages:
        for attribute in page.stated:
            assert world.entities[page.entity_id].facts[attribute] in page.document.text


def test_namesakes_are_told_apart(dataset):
    """A question about a bearer of a shared name says which one it means."""
    world = build_world(random.Random(CONFIG.seed), CONFIG)
    asked = [question for question in dataset.questions if question.kind.endswith("namesake")]
    assert asked
    for question in asked:
        entity = world.entities[question.cluster]
        assert entity.id in world.ambiguous
        assert entity.label in question.text


def test_a_name_and_a_label_mean_one_entity():
    for seed in range(12):
        entities = build_world(random.Random(seed), CONFIG).entities.values()
        assert len({(e.kind, e.name, e.label) for e in entities}) == len(entities)


def test_unanswerable_questions_have_answerable_twins(dataset):
    world = build_world(random.Random(CONFIG.seed), CONFIG)
    asked = {question.id: question for question in dataset.questions}
    pairs = [(asked[q.pair], q) for q in dataset.questions if q.pair and q.pair != q.id]
    unanswerable = [question for question in dataset.questions if question.kind == "unanswerable"]
    # The last ones may come too late for theirs.
    assert len(unanswerable) - 2 <= len(pairs) <= len(unanswerable)
    for alone, twin in pairs:
        assert (alone.kind, twin.kind.removeprefix("popular_")) == ("unanswerable", "fact")
        assert alone.pair == alone.id
        entity, other = world.entities[alone.cluster], world.entities[twin.cluster]
        assert entity.kind == other.kind
        assert alone.text.replace(entity.name, "").split()[:2] == twin.text.replace(other.name, "").split()[:2]
        assert entity.withheld != other.withheld
        assert other.facts[entity.withheld] == twin.answers[0]


def test_near_duplicates_say_the_same_of_another_with_other_values():
    config = replace(CONFIG, near_duplicate_share=0.3)
    world = build_world(random.Random(5), config)
    pages = {page.document.id: page for page in world.pages}
    duplicates = [page for page in world.pages if "-near" in page.entity_id]
    assert 200 < len(duplicates) < 420
    for page in duplicates:
        original = pages[page.document.id.replace("-near", "")]
        near, entity = world.entities[page.entity_id], world.entities[original.entity_id]
        assert near.name != entity.name
        assert near.label == entity.label
        assert page.stated == original.stated
        assert all(near.facts[attribute] != entity.facts[attribute] for attribute in page.stated)
        assert blanked(page, near) == blanked(original, entity)


def blanked(page, entity):
    text = page.document.text.replace(entity.name, "NAME")
    for attribute in page.stated:
        text = text.replace(entity.facts[attribute], "VALUE")
    return text


def test_a_world_without_near_duplicates_is_otherwise_the_same():
    config = replace(CONFIG, near_duplicate_share=0.0)
    plain, full = build_world(random.Random(5), config), build_world(random.Random(5), CONFIG)
    assert plain.entities.items() < full.entities.items()


def test_popular_entities_are_the_same_in_every_world():
    known = {entity.id: entity for entity in popular_entities()}
    assert len(known) == POPULAR_PER_KIND * 4
    for seed in (1, 2):
        world = build_world(random.Random(seed), CONFIG)
        popular = [entity for entity in world.entities.values() if entity.popular]
        assert len(popular) == round(CONFIG.popular_share * CONFIG.num_entities)
        assert all(known[entity.id] == entity for entity in popular)


def test_a_world_with_more_entities_than_names_is_still_built():
    """All ends of a city's stem may be taken: then it has no near-duplicate."""
    rng = random.Random(1)
    built = build_world(rng, WorldConfig(num_entities=4000, near_duplicate_share=0.5))
    cities = [entity for entity in built.entities.values() if entity.kind == "city"]
    assert len({entity.name for entity in cities}) < len(cities)
    pool = NamePool(rng, 10, 10)
    taken = {stem + end for stem in world_words.CITY_STEMS for end in world_words.CITY_ENDS}
    assert near_duplicate(rng, pool, cities[0], taken) is None
