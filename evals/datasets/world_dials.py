"""The dials of the fictional world as a user sets them: `namesakes=0.5,hops=0.3`, each within its bounds."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from evals.config import ConfigError
from evals.datasets import world_words as words
from evals.datasets.world import WorldConfig

MAX_POPULAR = 200  # of the 240 that there are: some may bear the name and label of an entity of the world


@dataclass(frozen=True, slots=True)
class Dial:
    """A field of WorldConfig, its short name, and from where to where it can be set."""

    field: str
    alias: str | None
    low: float
    high: float
    whole: bool = False


# Upper bounds are what the vocabulary can give: of names, of labels that tell namesakes apart, of popular entities.
DIALS = (
    Dial("namesake_share", "namesakes", 0, 0.9),
    Dial("near_duplicate_share", "near_duplicates", 0, 1),
    Dial("two_hop_share", "hops", 0, 1),
    Dial("conflict_share", "conflict", 0, 0.5),
    Dial("popular_share", "popular", 0, 0.5),
    Dial("unanswerable_share", "unanswerable", 0, 0.5),
    Dial("namesake_question_share", "namesake_questions", 0, 1),
    Dial("withheld_share", "withheld", 0, 1),
    Dial("outside_share", "outside", 0, 1),
    Dial("events_per_entity", "events", 0, 10),
    Dial("num_entities", "entities", 200, 4000, whole=True),
    Dial("given_names", None, 10, len(words.GIVEN_NAMES), whole=True),
    Dial("surnames", None, 20, 1000, whole=True),
)
_BY_NAME: Mapping[str, Dial] = MappingProxyType(
    {name: dial for dial in DIALS for name in (dial.field, dial.alias) if name is not None}
)
QUESTION_SHARES = ("unanswerable_share", "two_hop_share", "namesake_question_share", "conflict_share")


def set_dials(text: str, config: WorldConfig) -> WorldConfig:
    """`config` with the dials that the text sets.

    Raises:
        ConfigError: a dial is not known, stands twice, is no number or out of its bounds; or they do not fit together.
    """
    values: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise ConfigError(f"--world must be dials as namesakes=0.5,hops=0.3, got {part.strip()!r}")
        dial = _BY_NAME.get(name)
        if dial is None:
            raise ConfigError(f"--world: {name!r} is no dial; there are: {', '.join(map(describe, DIALS))}")
        if dial.field in values:
            raise ConfigError(f"--world: {name} is set twice")
        values[dial.field] = _number(dial, value)
    changed: WorldConfig = replace(config, **values)  # type: ignore[arg-type]
    _check_together(changed)
    return changed


def describe(dial: Dial) -> str:
    """Its short name, and its bounds."""
    return f"{dial.alias or dial.field} ({dial.low:g} to {dial.high:g})"


def _number(dial: Dial, text: str) -> float:
    kind = "a whole number" if dial.whole else "a number"
    try:
        value = int(text) if dial.whole else float(text)
    except ValueError as error:
        raise ConfigError(f"--world: {describe(dial)} must be {kind}, got {text!r}") from error
    # Not "value < low or ...": a NaN is neither.
    if not dial.low <= value <= dial.high:
        raise ConfigError(f"--world: {dial.alias or dial.field} must be from {dial.low:g} to {dial.high:g}, got {text}")
    return value


def _check_together(config: WorldConfig) -> None:
    asked = sum(getattr(config, name) for name in QUESTION_SHARES)
    if asked > 1:
        names = ", ".join(dial.alias or dial.field for dial in DIALS if dial.field in QUESTION_SHARES)
        raise ConfigError(f"--world: {names} are shares of the questions and together at most 1, got {asked:g}")
    num_popular = round(config.popular_share * config.num_entities)
    if num_popular > MAX_POPULAR:
        raise ConfigError(
            f"--world: popular={config.popular_share:g} of {config.num_entities} entities are {num_popular}; "
            f"there are {MAX_POPULAR}, so at most popular={MAX_POPULAR / config.num_entities:.3g}"
        )
