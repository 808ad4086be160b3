"""Gives a decoder's mixers the backends that the rule chooses for them, once, when it is loaded."""

import importlib
from collections.abc import Mapping
from typing import Any

import torch

from models.attention import Attention
from models.decoder import Decoder
from models.kernels.choose import Choice, choices_for, choose, operations_of
from models.kernels.environment import Environment
from models.kernels.interface import AttentionKernels, RecurrentKernels
from models.kernels.torch_backend import ATTENTION, DELTA_RULE, SELECTIVE_SCAN, SSD
from models.ssm import RecurrentMixer

PLAIN = {"selective scan": SELECTIVE_SCAN, "SSD scan": SSD, "delta scan": DELTA_RULE}
TRITON = "models.kernels.triton_backend"
FLASH, MAMBA = "models.kernels.flash_backends", "models.kernels.mamba_backends"


def _attribute(module: str, name: str) -> Any:
    # By name: what a backend is made of is imported only where the rule takes it.
    return getattr(importlib.import_module(module), name)


def attention_kernels(backend: str) -> AttentionKernels:
    made: AttentionKernels
    if backend == "flash-attn":
        made = _attribute(FLASH, "flash_attn_kernels")()
    elif backend == "varlen_attn":
        made = _attribute(FLASH, "varlen_kernels")()
    else:
        made = _attribute(TRITON, "ATTENTION") if backend == "triton" else ATTENTION
    return made


def recurrent_kernels(chosen: Mapping[str, str]) -> RecurrentKernels:
    """chosen: operation -> backend."""
    scan, step = (name for name in chosen if not name.startswith("convolution"))
    plain = PLAIN[scan]

    def of(operation: str, default: Any, triton_name: str) -> Any:
        backend = chosen.get(operation, "torch")
        if backend == "mamba-ssm":
            return _attribute(MAMBA, "ssd_scan")()
        if backend == "causal-conv1d":
            return _attribute(MAMBA, "convolve")()
        return _attribute(TRITON, triton_name) if backend == "triton" else default

    return RecurrentKernels(
        convolve=of("convolution", plain.convolve, ""),
        convolve_step=of("convolution step", plain.convolve_step, "conv_step"),
        scan=of(scan, plain.scan, "selective_scan"),
        step=of(step, plain.step, f"{step.split()[0].lower()}_step"),
    )


def bind(decoder: Decoder, environment: Environment, dtype: torch.dtype, block_size: int) -> tuple[Choice, ...]:
    """Give every mixer its kernels; returns the choices, each different one once."""
    name = str(dtype).removeprefix("torch.")
    for module in decoder.modules():
        if not isinstance(module, Attention | RecurrentMixer):
            continue
        chosen: dict[str, str] = {
            operation: choose(operation, environment, need).backend
            for operation, need in operations_of(module.spec, name, block_size)
        }
        if isinstance(module, Attention):
            module.kernels = attention_kernels(chosen["attention"])
        else:
            module.kernels = recurrent_kernels(chosen)
            module.prepare()
    return choices_for(decoder.config.layers, environment, name, block_size)
