"""A fictional encyclopedia: entities, the documents that state their facts, and questions about them.

Everything is drawn from a seed. Entities are fresh in every world, except the *popular* ones, whose facts are
the same in all worlds: a model that was trained on other worlds can know those, and must read all others.
"""

import copy
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from evals.config import ConfigError
from evals.datasets import world_words as words
from evals.records import Document

POPULAR_SEED = 20_260_101
POPULAR_PER_KIND = 60
MAX_NAMES_DRAWN = 200
MAX_DRAFTS_REFUSED = 20_000
KIND_WEIGHTS = {"person": 5, "city": 2, "company": 2, "work": 3}


@dataclass(frozen=True, slots=True)
class WorldConfig:
    """The difficulty dials of a world; evals/datasets/world_dials.py says within which bounds.

    Of entities: namesake_share bear a name that another one bears, popular_share (as a share of num_entities, beside
    them) are the same in every world, withheld_share have a fact that no document states, near_duplicate_share have a
    twin of a similar name and other facts. outside_share: of the links, to what no document describes.
    Of questions: unanswerable_share, two_hop_share, namesake_question_share.
    conflict_share: of the stated facts, about which an outdated document says another thing; and of the questions,
    which ask for such a fact.
    """

    seed: int = 0
    num_entities: int = 1200
    num_questions: int = 200
    given_names: int = 48
    surnames: int = 160
    namesake_share: float = 0.3
    popular_share: float = 0.05
    withheld_share: float = 0.35
    outside_share: float = 0.4
    near_duplicate_share: float = 0.1
    events_per_entity: float = 0.4
    unanswerable_share: float = 0.15
    two_hop_share: float = 0.08
    namesake_question_share: float = 0.22
    conflict_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Entity:
    """One thing of the world. `facts` maps attribute -> value; `links` attribute -> id of the entity named there.

    `withheld` is the one attribute that no document states (None: all are stated).
    """

    id: str
    kind: str
    name: str
    label: str
    facts: dict[str, str]
    links: dict[str, str]
    withheld: str | None
    pronoun: str
    popular: bool


@dataclass(frozen=True, slots=True)
class Page:
    """A document with what it states: the entity and the attributes that a reader can find in it."""

    document: Document
    entity_id: str
    stated: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class World:
    """`disputed`: facts, as ids of entity and attribute, about which an outdated document says another thing."""

    entities: dict[str, Entity]
    pages: tuple[Page, ...]
    ambiguous: frozenset[str]
    disputed: frozenset[tuple[str, str]] = frozenset()


def _year(rng: random.Random) -> str:
    return str(rng.randint(1700, 1999))


def _surname(rng: random.Random) -> str:
    return rng.choice(words.SURNAME_STEMS) + rng.choice(words.SURNAME_ENDS)


def _city_name(rng: random.Random) -> str:
    return rng.choice(words.CITY_STEMS) + rng.choice(words.CITY_ENDS)


LABELS: dict[str, tuple[str, ...]] = {
    "person": words.PROFESSIONS,
    "city": words.REGIONS,
    "company": words.PRODUCTS,
    "work": words.GENRES,
}
_FREE_VALUES: dict[str, Callable[[random.Random], str]] = {
    "birth_year": _year,
    "founded": _year,
    "opened": _year,
    "published": _year,
    "instrument": lambda rng: rng.choice(words.INSTRUMENTS),
    "river": lambda rng: rng.choice(words.RIVERS),
    "known_for": lambda rng: rng.choice(words.PRODUCTS),
}
_LINK_KINDS: dict[str, str] = {
    "birthplace": "city",
    "employer": "company",
    "mayor": "person",
    "founder": "person",
    "headquarters": "city",
    "director": "person",
    "author": "person",
    "setting": "city",
    "dedication": "person",
}


class NamePool:
    """Draws names from a limited pool of parts, so that entities share given names and surnames."""

    def __init__(self, rng: random.Random, given_names: int, surnames: int) -> None:
        self._rng = rng
        self._given = rng.sample(words.GIVEN_NAMES, min(given_names, len(words.GIVEN_NAMES)))
        self._surnames = [_surname(rng) for _ in range(surnames)]

    def draw(self, kind: str) -> str:
        rng = self._rng
        if kind == "person":
            return f"{rng.choice(self._given)} {rng.choice(self._surnames)}"
        if kind == "city":
            return _city_name(rng)
        if kind == "company":
            return f"{rng.choice(self._surnames)} {rng.choice(words.COMPANY_ENDS)}"
        return f"The {rng.choice(words.ADJECTIVES)} {rng.choice(words.NOUNS)}"


def draw_entities(
    rng: random.Random,
    pool: NamePool,
    *,
    count: int,
    namesake_share: float,
    withheld_share: float,
    outside_share: float,
    prefix: str,
    kind_weights: Mapping[str, int] = KIND_WEIGHTS,
) -> list[Entity]:
    """Draw `count` entities of the kinds in `kind_weights`; some share a full name but not a label.

    Their links name each other, or (`outside_share` of them) someone whom no document describes.
    """
    drafts: list[tuple[str, str, str]] = []
    taken: set[tuple[str, str, str]] = set()
    kinds = rng.choices(list(kind_weights), weights=list(kind_weights.values()), k=count)
    num_refused = 0
    while len(drafts) < count:
        kind = kinds[len(drafts)]
        twins = [draft for draft in drafts[-12:] if draft[0] == kind]
        name = rng.choice(twins)[1] if twins and rng.random() < namesake_share else pool.draw(kind)
        draft = (kind, name, rng.choice(LABELS[kind]))
        if draft not in taken:
            taken.add(draft)
            drafts.append(draft)
            num_refused = 0
            continue
        num_refused += 1
        if num_refused > MAX_DRAFTS_REFUSED:
            raise ConfigError(f"--world: there are no names left for {count} entities; lower num_entities or namesakes")
    by_kind: dict[str, list[int]] = {kind: [] for kind in KIND_WEIGHTS}
    for index, draft in enumerate(drafts):
        by_kind[draft[0]].append(index)
    entities = []
    for index, (kind, name, label) in enumerate(drafts):
        facts: dict[str, str] = {}
        links: dict[str, str] = {}
        for attribute in words.KINDS[kind].attributes:
            target_kind = _LINK_KINDS.get(attribute)
            if target_kind is None:
                facts[attribute] = _FREE_VALUES[attribute](rng)
            elif by_kind[target_kind] and rng.random() >= outside_share:
                target = rng.choice(by_kind[target_kind])
                links[attribute] = f"{prefix}{target}"
                facts[attribute] = drafts[target][1]
            else:
                facts[attribute] = pool.draw(target_kind)
        withheld = rng.choice(list(facts)) if rng.random() < withheld_share else None
        pronoun = rng.choice(words.KINDS[kind].pronouns)
        entities.append(Entity(f"{prefix}{index}", kind, name, label, facts, links, withheld, pronoun, False))
    return entities


def popular_entities() -> list[Entity]:
    """The few hundred entities that are the same in every world, with nothing withheld."""
    rng = random.Random(POPULAR_SEED)
    pool = NamePool(rng, given_names=len(words.GIVEN_NAMES), surnames=200)
    drawn = draw_entities(
        rng,
        pool,
        count=POPULAR_PER_KIND * 4,
        namesake_share=0.0,
        withheld_share=0.0,
        outside_share=0.0,
        prefix="popular-",
    )
    return [replace(entity, popular=True) for entity in drawn]


def write_pages(rng: random.Random, entity: Entity, *, name_share: float = 0.4) -> list[Page]:
    """Two short documents about one entity, each with its introduction and a part of the stated facts.

    `name_share` of the sentences name their subject; the others have a pronoun.
    """
    kind = words.KINDS[entity.kind]
    stated = [attribute for attribute in entity.facts if attribute != entity.withheld]
    rng.shuffle(stated)
    half = (len(stated) + 1) // 2
    pages = []
    for part, attributes in enumerate((stated[:half], stated[half:])):
        article = "an" if entity.label[0] in "aeiou" else "a"
        intro = rng.choice(kind.intro)
        sentences = [intro.format(n=entity.name, l=entity.label, al=f"{article} {entity.label}")]
        for attribute in attributes:
            subject = entity.name if rng.random() < name_share else entity.pronoun
            statement = rng.choice(kind.attributes[attribute].statements)
            sentence = statement.format(s=subject, v=entity.facts[attribute])
            # A pronoun in mid-sentence ("the mayor of It") reads wrongly: the name stands there instead.
            if not sentence.startswith(subject):
                sentence = statement.format(s=entity.name, v=entity.facts[attribute])
            sentences.append(sentence)
        document = Document(f"{entity.id}/{part}", entity.name, " ".join(sentences))
        pages.append(Page(document, entity.id, tuple(attributes)))
    return pages


def write_event(rng: random.Random, people: Sequence[Entity], city: str, event_id: str) -> Page:
    """A document that mentions people, a year and a city, and answers no question about them."""
    a, b = rng.choice(people).name, rng.choice(people).name
    event, year = rng.choice(words.EVENTS), _year(rng)
    text = rng.choice(words.EVENT_SENTENCES).format(event=event, year=year, city=city, a=a, b=b)
    return Page(Document(event_id, f"The {event} of {city}", text), event_id, ())


def draw_value(rng: random.Random, pool: NamePool, attribute: str) -> str:
    """A value that the attribute could have."""
    link = _LINK_KINDS.get(attribute)
    return pool.draw(link) if link else _FREE_VALUES[attribute](rng)


def near_duplicate(rng: random.Random, pool: NamePool, entity: Entity, taken: Collection[str]) -> Entity | None:
    """Another entity under the same label whose name differs in a part, and all of whose facts are others.

    None where no such name was found that is not taken: a stem has only so many ends.
    """
    drawn = (_similar_name(rng, pool, entity) for _ in range(MAX_NAMES_DRAWN))
    name = next((name for name in drawn if name not in taken), None)
    if name is None:
        return None
    facts = {}
    for attribute, value in entity.facts.items():
        facts[attribute] = value
        while facts[attribute] == value:
            facts[attribute] = draw_value(rng, pool, attribute)
    return replace(entity, id=f"{entity.id}-near", name=name, facts=facts, links={}, popular=False)


def _similar_name(rng: random.Random, pool: NamePool, entity: Entity) -> str:
    if entity.kind == "city":
        stem = next(stem for stem in words.CITY_STEMS if entity.name.startswith(stem))
        return stem + rng.choice(words.CITY_ENDS)
    parts, drawn = entity.name.split(" "), pool.draw(entity.kind).split(" ")
    place = rng.randrange(len(parts) - 2, len(parts))
    return " ".join([*parts[:place], drawn[place], *parts[place + 1 :]])


def build_world(rng: random.Random, config: WorldConfig) -> World:
    """Draw entities and write all their documents; near-duplicates in the very words of their originals."""
    pool = NamePool(rng, config.given_names, config.surnames)
    entities = draw_entities(
        rng,
        pool,
        count=config.num_entities,
        namesake_share=config.namesake_share,
        withheld_share=config.withheld_share,
        outside_share=config.outside_share,
        prefix="e",
    )
    described = {(entity.kind, entity.name, entity.label) for entity in entities}
    # No question could tell apart two of one name and label.
    popular = [e for e in popular_entities() if (e.kind, e.name, e.label) not in described]
    entities += rng.sample(popular, min(round(config.popular_share * config.num_entities), len(popular)))
    near_rng, taken = random.Random(config.seed), {entity.name for entity in entities}
    near_pool = NamePool(near_rng, config.given_names, config.surnames)
    pages: list[Page] = []
    duplicates: list[Entity] = []
    for entity in entities:
        words_of_this = copy.copy(rng)
        pages += write_pages(rng, entity)
        if near_rng.random() < config.near_duplicate_share:
            duplicate = near_duplicate(near_rng, near_pool, entity, taken)
            if duplicate is not None:
                duplicates.append(duplicate)
                taken.add(duplicate.name)
                pages += write_pages(words_of_this, duplicate)
    entities += duplicates
    people = [entity for entity in entities if entity.kind == "person"]
    cities = [entity.name for entity in entities if entity.kind == "city"]
    for number in range(round(config.events_per_entity * len(entities))):
        pages.append(write_event(rng, people, rng.choice(cities), f"event{number}"))
    rng.shuffle(pages)
    return World({entity.id: entity for entity in entities}, tuple(pages), ambiguous_ids(entities))


def ambiguous_ids(entities: Sequence[Entity]) -> frozenset[str]:
    """Ids of the entities whose full name another entity bears too."""
    counts: dict[str, int] = {}
    for entity in entities:
        counts[entity.name] = counts.get(entity.name, 0) + 1
    return frozenset(entity.id for entity in entities if counts[entity.name] > 1)
