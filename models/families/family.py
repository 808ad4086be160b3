"""What a family is: how its config.json is read, and how its tensors lie in files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.config import ModelConfig


def as_they_lie(name: str, config: ModelConfig) -> None:
    """No other order of rows, for no tensor."""
    del name, config


@dataclass(frozen=True, slots=True)
class Layout:
    """One way in which a family's tensors lie in files.

    tensor_name: our parameter name -> the checkpoint's; parameters of one name are its rows, in their order in the
    decoder, and a name with `{expert}` in it stands for one tensor for each row of the parameter. row_order: in which
    order a tensor's rows are taken, where not as they lie. transposed: how the names of tensors end whose last two
    dimensions are the other way round. packed: how those end that are packed as MXFP4 in two, NAME_blocks and
    NAME_scales.
    """

    tensor_name: Callable[[str], str]
    row_order: Callable[[str, ModelConfig], Sequence[int] | None] = as_they_lie
    transposed: tuple[str, ...] = ()
    packed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
    """How one architecture's published checkpoints map to ours.

    covers: published models of the family, for the page of models. read_config: the parsed config.json ->
    ModelConfig. layouts: in which ways their tensors lie; of several the one that fits a checkpoint best. ignored: how
    the names of tensors begin that are not needed for text. wraps: the architectures of the text models before which
    this one puts encoders of images. quant_methods: values of `quant_method` whose packed weights are read.
    """

    covers: str
    read_config: Callable[[Mapping[str, Any]], ModelConfig]
    layouts: tuple[Layout, ...]
    ignored: tuple[str, ...] = ()
    wraps: tuple[str, ...] = ()
    quant_methods: tuple[str, ...] = ()
