"""Questions about a fictional world: facts, namesakes, two hops, conflicts, and what no document says, with its twin.

Those about an entity that is the same in every world have "popular_" before their kind: a model can know their answers.
"""

import hashlib
import json
import random
from collections import deque
from dataclasses import fields, replace

from evals.config import ConfigError
from evals.datasets import world_words as words
from evals.datasets.world import Entity, World, WorldConfig, build_world
from evals.datasets.world_conflicts import add_conflicts
from evals.records import Dataset, Question

# Of one question, before there is held to be none of its kind that was not asked.
MAX_DRAWS = 20_000
POPULAR_KIND = "popular_"


def ask(rng: random.Random, entity: Entity, attribute: str, *, labelled: bool) -> str:
    """One wording of the question for an entity's attribute; `labelled` tells it from its namesakes."""
    return _worded(rng.choice(words.KINDS[entity.kind].attributes[attribute].questions), entity, labelled=labelled)


def _worded(wording: str, entity: Entity, *, labelled: bool) -> str:
    labelled_name = words.KINDS[entity.kind].labelled.format(n=entity.name, l=entity.label)
    return wording.format(e=labelled_name if labelled else entity.name)


def ask_two_hop(
    rng: random.Random, entity: Entity, link: str, target: Entity, attribute: str, *, labelled: bool
) -> str:
    """A question whose subject is not named but described through another entity."""
    described = _worded(rng.choice(words.KINDS[entity.kind].relations[link][1]), entity, labelled=labelled)
    return rng.choice(words.KINDS[target.kind].attributes[attribute].questions).format(e=described)


def _gold(world: World) -> dict[tuple[str, str], str]:
    return {(page.entity_id, attribute): page.document.id for page in world.pages for attribute in page.stated}


def _single_hop(rng: random.Random, world: World, kind: str) -> tuple[Entity, str] | None:
    """An entity and an attribute that fit a question kind, or None if this draw does not fit."""
    entity = rng.choice(list(world.entities.values()))
    if kind == "unanswerable":
        return (entity, entity.withheld) if entity.withheld else None
    if kind != "conflict" and (kind == "namesake") != (entity.id in world.ambiguous):
        return None
    attribute = rng.choice([attribute for attribute in entity.facts if attribute != entity.withheld])
    return (entity, attribute) if (kind == "conflict") == ((entity.id, attribute) in world.disputed) else None


def _twin(rng: random.Random, world: World, asked: Entity, attribute: str) -> Entity:
    """An entity of the same kind, without a namesake, of which one document states what is withheld of `asked`.

    Raises:
        ConfigError: there is none.
    """
    fitting = [
        entity
        for entity in world.entities.values()
        if entity.kind == asked.kind
        and entity.withheld != attribute
        and entity.id not in world.ambiguous
        and (entity.id, attribute) not in world.disputed
    ]
    if not fitting:
        raise _exhausted("fact")
    return rng.choice(fitting)


def _two_hop(rng: random.Random, world: World) -> tuple[Entity, str, Entity, str] | None:
    entity = rng.choice(list(world.entities.values()))
    links = [link for link in words.KINDS[entity.kind].relations if link in entity.links and link != entity.withheld]
    if not links:
        return None
    link = rng.choice(links)
    target = world.entities.get(entity.links[link])
    # A described entity with a namesake could not be told from it.
    if target is None or target.id in world.ambiguous:
        return None
    attribute = rng.choice([name for name in target.facts if name != target.withheld])
    if not world.disputed.isdisjoint({(entity.id, link), (target.id, attribute)}):
        return None
    return entity, link, target, attribute


def _exhausted(kind: str) -> ConfigError:
    return ConfigError(
        f"--world: this world has too few different questions of the kind {kind!r}; ask for fewer of them, or set what "
        "they are about higher (fact: num_entities; namesake: namesakes; two_hop: a lower outside; "
        "unanswerable: withheld; conflict: num_entities)"
    )


class _Asker:
    """Draws the questions of one world, no wording of one twice."""

    def __init__(self, rng: random.Random, world: World) -> None:
        self._rng = rng
        self._world = world
        self._gold = _gold(world)
        self._twins: deque[Question] = deque()
        self._asked: set[str] = set()

    def draw(self, kind: str, question_id: str) -> Question:
        """A question of a kind. A fact is, as long as there are any, the twin of an unanswerable question before."""
        if kind == "fact" and self._twins:
            return replace(self._twins.popleft(), id=question_id)
        for _ in range(MAX_DRAWS):
            question = self._two_hop(question_id) if kind == "two_hop" else self._single_hop(kind, question_id)
            if question is not None:
                return question
        raise _exhausted(kind)

    def _two_hop(self, question_id: str) -> Question | None:
        hop = _two_hop(self._rng, self._world)
        if hop is None:
            return None
        entity, link, target, attribute = hop
        labelled = entity.id in self._world.ambiguous
        text = ask_two_hop(self._rng, entity, link, target, attribute, labelled=labelled)
        if not self._is_new(text):
            return None
        gold_ids = (self._gold[(entity.id, link)], self._gold[(target.id, attribute)])
        kind = _kind("two_hop", target)
        return Question(question_id, text, (target.facts[attribute],), gold_ids, kind, entity.id)

    def _single_hop(self, kind: str, question_id: str) -> Question | None:
        single = _single_hop(self._rng, self._world, kind)
        if single is None:
            return None
        entity, attribute = single
        wording = self._rng.choice(words.KINDS[entity.kind].attributes[attribute].questions)
        text = _worded(wording, entity, labelled=entity.id in self._world.ambiguous)
        if not self._is_new(text):
            return None
        if kind != "unanswerable":
            return self._answerable(question_id, text, entity, attribute, kind)
        for _ in range(MAX_DRAWS):
            twin = _twin(self._rng, self._world, entity, attribute)
            twin_text = _worded(wording, twin, labelled=False)
            if self._is_new(twin_text):
                break
        else:
            raise _exhausted("fact")
        self._twins.append(replace(self._answerable("", twin_text, twin, attribute, "fact"), pair=question_id))
        return Question(question_id, text, (), (), kind, entity.id, pair=question_id)

    def _is_new(self, text: str) -> bool:
        """Whether nobody asked this before; from now on somebody has."""
        new = text not in self._asked
        self._asked.add(text)
        return new

    def _answerable(self, question_id: str, text: str, entity: Entity, attribute: str, kind: str) -> Question:
        gold_ids = (self._gold[(entity.id, attribute)],)
        return Question(question_id, text, (entity.facts[attribute],), gold_ids, _kind(kind, entity), entity.id)


def _kind(kind: str, answering: Entity) -> str:
    return f"{POPULAR_KIND}{kind}" if answering.popular else kind


def question_kinds(config: WorldConfig) -> list[str]:
    """How many questions of each kind, largest remainder to plain facts."""
    shares = {
        "unanswerable": config.unanswerable_share,
        "two_hop": config.two_hop_share,
        "namesake": config.namesake_question_share,
        "conflict": config.conflict_share,
    }
    kinds = [kind for kind, share in shares.items() for _ in range(round(share * config.num_questions))]
    return kinds + ["fact"] * (config.num_questions - len(kinds))


def load_world(config: WorldConfig) -> Dataset:
    """The dataset of one world: its documents and `num_questions` questions of mixed kinds."""
    rng = random.Random(config.seed)
    world = add_conflicts(build_world(rng, config), config)
    kinds = question_kinds(config)
    rng.shuffle(kinds)
    asker = _Asker(rng, world)
    questions = [asker.draw(kind, f"q{number}") for number, kind in enumerate(kinds)]
    documents = tuple(page.document for page in world.pages)
    texts = [[d.id, d.title, d.text] for d in documents] + [[q.id, q.text, *q.answers] for q in questions]
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    return Dataset("world", documents, tuple(questions), digest, f"generated, seed {config.seed}{_dials_of(config)}")


def _dials_of(config: WorldConfig) -> str:
    """What is set otherwise than by default; a world without such dials has the name that it always had."""
    plain = WorldConfig(seed=config.seed, num_questions=config.num_questions)
    names = [field.name for field in fields(WorldConfig)]
    return "".join(
        f", {name} {getattr(config, name)}" for name in names if getattr(config, name) != getattr(plain, name)
    )
