"""The world's dials: what they promise, of what they are refused, and what a world without them still is."""

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
from fakes_endpoint import MODEL, Planted, serving

from evals.config import ConfigError, RunConfig
from evals.datasets import load_dataset
from evals.datasets import world_words as words
from evals.datasets.world import WorldConfig, build_world
from evals.datasets.world_conflicts import NOTICES, add_conflicts
from evals.datasets.world_dials import DIALS, set_dials
from evals.datasets.world_questions import load_world
from evals.runner import run_eval
from evals.scoring.lexical import contains

# Of the worlds that the README's figures and the embedded models' examinations are about.
DIGESTS = {
    0: "8f6f10641a33ac7b12c5237cc5f1340013cc9b4c27c6d59b6da6c7276cc26840",
    11: "d6e5bd8ce01305c048202de344bf8f65c81b794afd4269ef7b36aed40fb3c4f3",
}
NUM_QUESTIONS = 2000
CONFLICTS = WorldConfig(seed=5, num_entities=600, num_questions=600, conflict_share=0.2)


def load(dials, seed=5):
    return load_dataset("world", path=None, seed=seed, world=dials)


def kinds_of(dataset):
    """How many questions of each kind, popular or not."""
    return Counter(question.kind.removeprefix("popular_") for question in dataset.questions)


def is_near(count, share, total):
    """Within four standard deviations of a share."""
    return abs(count - share * total) <= 4 * math.sqrt(share * (1 - share) * total) + 1


@pytest.mark.parametrize("seed", DIGESTS)
def test_a_world_without_dials_is_the_one_that_it_always_was(seed):
    plain = load(None, seed)
    assert (plain.digest, plain.source) == (DIGESTS[seed], f"generated, seed {seed}")
    assert load("namesakes=0.3,conflict=0", seed) == plain, "set to what they are by default"


@pytest.fixture(scope="module")
def world():
    return add_conflicts(build_world(random.Random(CONFLICTS.seed), CONFLICTS), CONFLICTS)


def told(world, entity, attribute):
    """What the documents of a world tell of a fact: the value of its page, and that of its register."""
    documents = {page.document.id: page.document for page in world.pages}
    [page] = [p for p in world.pages if p.entity_id == entity.id and attribute in p.stated]
    register = documents[f"{entity.id}/{attribute}/register"]
    for statement in words.KINDS[entity.kind].attributes[attribute].statements:
        before, after = statement.format(s=entity.name, v="\0").split("\0")
        place = register.text.rfind(before)
        if place >= 0 and register.text.endswith(after):
            return page.document, register, register.text[place + len(before) :].removesuffix(after)
    raise AssertionError(register.text)


def is_outdated(document):
    """By what it says of itself alone."""
    year = document.title.rpartition(" ")[2]
    return any(document.text.startswith(notice.format(year=year)) for notice in NOTICES)


def test_the_documents_say_which_of_two_values_holds(world):
    stated = [fact for page in world.pages if "-near" not in page.entity_id for fact in page.stated]
    assert len(world.disputed) == round(CONFLICTS.conflict_share * len(stated))
    for entity_id, attribute in world.disputed:
        entity = world.entities[entity_id]
        true = entity.facts[attribute]
        page, register, false = told(world, entity, attribute)
        assert contains(page.text, true)
        assert not contains(false, true)
        assert not contains(true, false)
        # A name and a label mean one entity.
        assert entity.name in register.text
        assert entity.label in register.text
        assert (is_outdated(page), is_outdated(register)) == (False, True)
    assert sum(is_outdated(page.document) for page in world.pages) == len(world.disputed)


def test_a_world_with_conflicts_is_otherwise_the_same(world):
    plain = build_world(random.Random(CONFLICTS.seed), replace(CONFLICTS, conflict_share=0))
    assert world.entities == plain.entities
    assert {page.document for page in plain.pages} == {
        page.document for page in world.pages if not is_outdated(page.document)
    }


def test_only_questions_about_conflicts_meet_one(world):
    dataset = load_world(CONFLICTS)
    stated = {page.document.id: (page.entity_id, page.stated) for page in world.pages}
    assert kinds_of(dataset)["conflict"] == round(CONFLICTS.conflict_share * CONFLICTS.num_questions)
    for question in dataset.questions:
        for gold_id in question.gold_ids:
            entity_id, attributes = stated[gold_id]
            facts = world.entities[entity_id].facts
            # The first document of two hops states the link.
            asked = {
                (entity_id, name)
                for name in attributes
                if facts[name] in (*question.answers, *_linked(world, question))
            }
            if question.kind.endswith("conflict"):
                assert not asked.isdisjoint(world.disputed)
            else:
                assert not asked <= world.disputed


def _linked(world, question):
    return [world.entities[gold.rpartition("/")[0]].name for gold in question.gold_ids[1:]]


@pytest.mark.parametrize(
    ("dial", "kind", "share"),
    [
        ("hops=0.3", "two_hop", 0.3),
        ("unanswerable=0.4", "unanswerable", 0.4),
        ("namesake_questions=0.5", "namesake", 0.5),
        ("conflict=0.1", "conflict", 0.1),
        ("conflict=0.5", "conflict", 0.5),
        ("hops=0", "two_hop", 0),
    ],
)
def test_shares_of_questions_are_exact(dial, kind, share):
    dataset = load(dial)
    assert len(dataset.questions) == len({question.text for question in dataset.questions}) == NUM_QUESTIONS
    assert kinds_of(dataset)[kind] == round(share * NUM_QUESTIONS)
    assert dataset.source.startswith("generated, seed 5, ")
    assert dataset.digest != load(None).digest


@pytest.mark.parametrize("share", [0.0, 0.05, 0.15])
def test_questions_about_popular_entities_are_told_apart(share):
    """Facts are asked of all entities alike: as many are popular as entities are, of those that two-hops may name."""
    dataset = load(f"popular={share},namesakes=0,near_duplicates=0,namesake_questions=0,unanswerable=0,hops=0")
    popular = [question for question in dataset.questions if question.kind.startswith("popular_")]
    assert {question.cluster.startswith("popular-") for question in popular} <= {True}
    assert sum(question.cluster.startswith("popular-") for question in dataset.questions) == len(popular)
    assert is_near(len(popular), share / (1 + share), NUM_QUESTIONS)


def test_shares_of_entities_are_what_they_are_set_to():
    num_entities = 2000
    for share in (0.0, 0.2, 0.6):
        config = set_dials(
            f"entities={num_entities},near_duplicates={share},withheld={share},outside={share}", CONFLICTS
        )
        world = build_world(random.Random(2), config)
        own = [entity for entity in world.entities.values() if entity.id.startswith("e") and "-near" not in entity.id]
        duplicates = [entity for entity in world.entities.values() if "-near" in entity.id]
        assert len(own) == num_entities
        assert is_near(sum(entity.withheld is not None for entity in own), share, num_entities)
        # Of popular entities too; some find no name.
        described = num_entities + sum(entity.popular for entity in world.entities.values())
        assert share * described * 0.85 - 4 <= len(duplicates) <= share * described * 1.1
        links = [name in entity.links for entity in own for name in entity.facts if name in _LINKS]
        assert is_near(links.count(False), share, len(links))


_LINKS = {name for kind in words.KINDS.values() for name in kind.relations}


def test_more_namesakes_are_harder_to_tell_apart():
    ambiguous = []
    for share in (0.0, 0.3, 0.9):
        config = set_dials(f"namesakes={share}", WorldConfig(seed=1))
        world = build_world(random.Random(1), config)
        ambiguous.append(len(world.ambiguous) / len(world.entities))
    assert ambiguous[0] < 0.25 < 0.4 < ambiguous[1] < 0.5 < 0.8 < ambiguous[2]


@pytest.mark.parametrize(
    ("dials", "words_of_it"),
    [
        ("namesakes", "must be dials as namesakes=0.5"),
        ("", "must be dials as"),
        ("colour=3", r"'colour' is no dial; there are: namesakes \(0 to 0\.9\)"),
        ("seed=3", "'seed' is no dial"),
        ("hops=x", r"hops \(0 to 1\) must be a number, got 'x'"),
        ("hops=nan", "hops must be from 0 to 1, got nan"),
        ("hops=-0.1", "hops must be from 0 to 1"),
        ("namesakes=0.95", r"namesakes must be from 0 to 0\.9"),
        ("two_hop_share=0.1,hops=0.2", "hops is set twice"),
        ("entities=300.5", "must be a whole number"),
        ("entities=10", "entities must be from 200 to 4000"),
        ("hops=0.6,unanswerable=0.4", r"together at most 1, got 1\.22"),
        ("popular=0.3", r"popular=0\.3 of 1200 entities are 360; there are 200, so at most popular=0\.167"),
        ("withheld=0", "too few different questions of the kind 'unanswerable'"),
        ("entities=200,unanswerable=0,hops=0,namesake_questions=0", "too few different questions of the kind 'fact'"),
    ],
)
def test_what_cannot_be_is_refused(dials, words_of_it):
    with pytest.raises(ConfigError, match=f"--world:? .*{words_of_it}|--world.*{words_of_it}"):
        load(dials)


def test_dials_are_the_worlds_alone():
    with pytest.raises(ConfigError, match="--world sets the dials of the dataset world; needle has none"):
        load_dataset("needle", path=None, seed=0, world="hops=0.1")


@pytest.mark.parametrize("dial", DIALS, ids=lambda dial: dial.field)
def test_every_bound_of_a_dial_can_be_built(dial):
    """Of the questions as many as there are: a bound must not hang, nor lie beyond what the vocabulary has."""
    for value in (dial.low, dial.high):
        share = "" if dial.field == "unanswerable_share" else ",unanswerable=0"
        if dial.field == "popular_share" and value:
            value = 0.166
        rest = {"two_hop_share": "hops", "namesake_question_share": "namesake_questions"}
        others = "".join(f",{alias}=0" for field, alias in rest.items() if field != dial.field)
        config = set_dials(f"{dial.field}={value:g}{share}{others}", WorldConfig(seed=4, num_questions=60))
        assert len(load_world(config).questions) == 60


def test_more_entities_than_names_are_an_error():
    with pytest.raises(ConfigError, match="no names left for 3000 entities"):
        build_world(random.Random(0), WorldConfig(num_entities=3000, given_names=1, surnames=1))


async def test_a_store_holds_one_setting_of_the_dials(tmp_path):
    async with serving(Planted()) as url:
        config = RunConfig(endpoint=url, model=MODEL, out=tmp_path, budgets=(0,), num_questions=2)
        await run_eval(config, load("conflict=0.1"))
        with pytest.raises(ConfigError, match=r"--seed or --data was generated, seed 5, conflict_share 0\.1"):
            await run_eval(config, load("conflict=0.2"))
