"""The fictional world: what its questions promise about its documents holds."""

import random

import pytest

from evals.datasets.world import (
    POPULAR_PER_KIND,
    WorldConfig,
    build_world,
    load_world,
    popular_entities,
)

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
    kinds = [question.kind for question in dataset.questions]
    assert kinds.count("unanswerable") == round(CONFIG.unanswerable_share * CONFIG.num_questions)
    assert kinds.count("two_hop") == round(CONFIG.two_hop_share * CONFIG.num_questions)
    assert kinds.count("namesake") == round(CONFIG.namesake_question_share * CONFIG.num_questions)


def test_gold_documents_state_the_answer(dataset, documents):
    for question in dataset.questions:
        if question.answerable:
            assert question.answers[0] in documents[question.gold_ids[-1]].text
            assert len(question.gold_ids) == (2 if question.kind == "two_hop" else 1)
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
    asked = [question for question in dataset.questions if question.kind == "namesake"]
    assert asked
    for question in asked:
        entity = world.entities[question.cluster]
        assert entity.id in world.ambiguous
        assert entity.label in question.text


def test_popular_entities_are_the_same_in_every_world():
    known = {entity.id: entity for entity in popular_entities()}
    assert len(known) == POPULAR_PER_KIND * 4
    for seed in (1, 2):
        world = build_world(random.Random(seed), CONFIG)
        popular = [entity for entity in world.entities.values() if entity.popular]
        assert len(popular) == round(CONFIG.popular_share * CONFIG.num_entities)
        assert all(known[entity.id] == entity for entity in popular)
