"""Sampling defaults: what a checkpoint's generation_config.json wants where a request says nothing."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from models.errors import ModelError
from server.checkpoint_json import read_json

FILE = "generation_config.json"
MAX_REPETITION = 100.0
# Fields that would change the answers and are not implemented, with the values at which they change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "guidance_scale": (1,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "penalty_alpha": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "max_new_tokens": (),
    "exponential_decay_length_penalty": (),
    "bad_words_ids": ([],),
    "begin_suppress_tokens": ([],),
    "suppress_tokens": ([],),
    "sequence_bias": ({}, []),
    "stop_strings": ("", []),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
}


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What a request gets that leaves these fields out. top_k 0, top_p 1, min_p 0 and
    repetition_penalty 1 are off; temperature 0 is greedy.

    Without anything said they are those of OpenAI's API.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """`ignored`: what the file asks for beyond the defaults, as "field value"; it is not implemented."""

    defaults: SamplingDefaults = SamplingDefaults()
    ignored: tuple[str, ...] = ()


def read_generation_config(directory: Path) -> GenerationConfig:
    """The defaults that generation_config.json gives; OpenAI's where it, or the whole file, is silent.

    Raises:
        ModelError: the file cannot be read, or a field has a value that no request could have.
    """
    file = directory / FILE
    content = read_json(file)
    defaults = SamplingDefaults(
        temperature=_number(file, content, "temperature", default=1.0, most=2),
        top_p=_number(file, content, "top_p", default=1.0, above=0, most=1),
        top_k=_top_k(file, content),
        min_p=_number(file, content, "min_p", default=0.0, most=1),
        repetition_penalty=_number(file, content, "repetition_penalty", default=1.0, above=0, most=MAX_REPETITION),
    )
    sampled = content.get("do_sample")
    if sampled is not None and not isinstance(sampled, bool):
        raise ModelError(f"{file}: do_sample must be true or false, not {sampled!r}")
    if sampled is False:
        defaults = replace(defaults, temperature=0.0)
    asked = {name: content[name] for name in NEUTRAL if content.get(name) is not None}
    ignored = (f"{name} {value!r:.40}" for name, value in asked.items() if value not in NEUTRAL[name])
    return GenerationConfig(defaults, tuple(ignored))


def _number(
    file: Path, content: dict[str, Any], name: str, *, default: float, most: float, above: float | None = None
) -> float:
    """A field of at least 0, or above something, and at most `most`."""
    value = content.get(name)
    if value is None:
        return default
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # A NaN fails every comparison.
    if number and (value >= 0 if above is None else value > above) and value <= most:
        return float(value)
    least = "at least 0" if above is None else f"above {above}"
    raise ModelError(f"{file}: {name} must be a number, {least} and at most {most}, not {value!r}")


def _top_k(file: Path, content: dict[str, Any]) -> int:
    value = content.get("top_k")
    if value is None:
        return 0
    if type(value) is not int or not -1 <= value < 2**31:
        raise ModelError(f"{file}: top_k must be a whole number, at least -1 and below 2**31, not {value!r}")
    return max(0, value)
