"""Facts of the world about which two documents disagree, and the rule by which a reader can tell who is right.

An outdated register says another thing than the entity's own page, and says of itself that later pages replace it. So
of every disputed fact there is one document that states it and is in force; who takes the register's word has read
the right passage and not the rule.
"""

import random
from dataclasses import replace

from evals.config import ConfigError
from evals.datasets import world_words as words
from evals.datasets.world import Entity, NamePool, Page, World, WorldConfig, draw_value
from evals.records import Document
from evals.scoring.lexical import contains

MAX_VALUES_DRAWN = 200
# Not a year that anything of the world has: a register is no answer to "when".
REGISTER_YEARS = (1600, 1699)
NOTICES = (
    "This register of {year} is out of date: later pages replace it.",
    "The register of {year} was replaced; where later pages say otherwise, they are right.",
    "In {year} this was the register; what later pages say holds in its place.",
)


def add_conflicts(world: World, config: WorldConfig) -> World:
    """The same world, with a register about each of `conflict_share` of the stated facts.

    Near-duplicates have none: they say the same as their originals.
    """
    if not config.conflict_share:
        return world
    rng = random.Random(f"{config.seed} conflicts")
    pool = NamePool(rng, config.given_names, config.surnames)
    stated = sorted(
        (page.entity_id, attribute)
        for page in world.pages
        for attribute in page.stated
        if not page.entity_id.endswith("-near")
    )
    disputed = rng.sample(stated, round(config.conflict_share * len(stated)))
    registers = [_register(rng, pool, world.entities[entity_id], attribute) for entity_id, attribute in disputed]
    pages = [*world.pages, *registers]
    rng.shuffle(pages)
    return replace(world, pages=tuple(pages), disputed=frozenset(disputed))


def _register(rng: random.Random, pool: NamePool, entity: Entity, attribute: str) -> Page:
    """A document that states a false value of one fact. It `states` nothing that a question may ask for."""
    kind = words.KINDS[entity.kind]
    article = "an" if entity.label[0] in "aeiou" else "a"
    year = rng.randint(*REGISTER_YEARS)
    sentences = [
        rng.choice(NOTICES).format(year=year),
        rng.choice(kind.intro).format(n=entity.name, l=entity.label, al=f"{article} {entity.label}"),
        rng.choice(kind.attributes[attribute].statements).format(
            s=entity.name, v=_other_value(rng, pool, entity, attribute)
        ),
    ]
    document = Document(f"{entity.id}/{attribute}/register", f"Register of {year}", " ".join(sentences))
    return Page(document, f"{entity.id}/register", ())


def _other_value(rng: random.Random, pool: NamePool, entity: Entity, attribute: str) -> str:
    """Neither has the other in its words: no answer could be taken for both."""
    true = entity.facts[attribute]
    for _ in range(MAX_VALUES_DRAWN):
        value = draw_value(rng, pool, attribute)
        if not contains(value, true) and not contains(true, value) and not contains(entity.name, value):
            return value
    raise ConfigError("--world: there are no other names for a conflict; raise given_names or surnames")
