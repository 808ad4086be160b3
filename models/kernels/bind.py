"""Gives a decoder's mixers the backends that the rule chooses for them, once, when it is loaded."""

import importlib
from collections.abc import Mapping
from typing import Any

import torch

from models.activations import PLAIN as PLAIN_ACTIVATIONS
from models.activations import Activating
from models.attention import Attention
from models.decoder import Decoder
from models.experts import Router
from models.kernels.choose import Choice, Need, choices_for, choose, operations_of
from models.kernels.environment import Environment
from models.kernels.interface import AttentionKernels, RecurrentKernels
from models.kernels.torch_backend import ATTENTION, DELTA_RULE, SELECTIVE_SCAN, SSD
from models.layers import MLP, Normalising, rms_norm
from models.linear import PLAIN as PLAIN_LINEAR
from models.linear import LinearKernels, Projecting
from models.ssm import RecurrentMixer

PLAIN = {"selective scan": SELECTIVE_SCAN, "SSD scan": SSD, "delta scan": DELTA_RULE}
# Where the kernels of an operation by a backend are, but for plain torch's. By name: what a backend is made of is
# imported only where the rule takes it.
KERNELS = {
    ("attention", "triton"): ("triton_backend", "ATTENTION"),
    ("convolution step", "triton"): ("triton_backend", "conv_step"),
    ("selective scan", "triton"): ("triton_backend", "selective_scan"),
    ("selective step", "triton"): ("triton_backend", "selective_step"),
    ("SSD step", "triton"): ("triton_backend", "ssd_step"),
    ("delta step", "triton"): ("triton_backend", "delta_step"),
    ("linear", "numba"): ("linear_numba", "LINEAR"),
    ("norm", "numba"): ("norm_numba", "rms_norm"),
    ("activations", "numba"): ("activations_numba", "ACTIVATIONS"),
    ("attention", "numba"): ("attention_numba", "ATTENTION"),
    ("convolution", "numba"): ("runs_numba", "convolve"),
    ("convolution step", "numba"): ("recurrent_numba", "conv_step"),
    ("selective scan", "numba"): ("runs_numba", "selective_scan"),
    ("selective step", "numba"): ("recurrent_numba", "selective_step"),
    ("SSD scan", "numba"): ("runs_numba", "ssd_scan"),
    ("SSD step", "numba"): ("recurrent_numba", "ssd_step"),
    ("delta scan", "numba"): ("runs_numba", "delta_scan"),
    ("delta step", "numba"): ("recurrent_numba", "delta_step"),
}
# The same for libraries, whose kernels a function fetches.
MAKERS = {
    ("attention", "flash-attn"): ("flash_backends", "flash_attn_kernels"),
    ("attention", "varlen_attn"): ("flash_backends", "varlen_kernels"),
    ("convolution", "causal-conv1d"): ("mamba_backends", "convolve"),
    ("SSD scan", "mamba-ssm"): ("mamba_backends", "ssd_scan"),
}
# Kernels for all runs of a step at once, where a backend has them.
RUNS = {
    ("convolution", "numba"): ("runs_numba", "convolve_runs"),
    ("selective scan", "numba"): ("runs_numba", "selective_runs"),
    ("SSD scan", "numba"): ("runs_numba", "ssd_runs"),
    ("delta scan", "numba"): ("runs_numba", "delta_runs"),
}


def kernels_of(operation: str, backend: str, plain: Any) -> Any:
    """An operation's kernels by a backend. plain: those in torch."""
    if backend == "torch":
        return plain
    key, makes = (operation, backend), (operation, backend) in MAKERS
    found = _fetched(*(MAKERS if makes else KERNELS)[key])
    return found() if makes else found


def _fetched(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"models.kernels.{module}"), name)


def _runs_of(operation: str, backend: str) -> Any:
    """None: the backend takes one run after the other."""
    key = operation, backend
    return _fetched(*RUNS[key]) if key in RUNS else None


def attention_kernels(backend: str) -> AttentionKernels:
    kernels: AttentionKernels = kernels_of("attention", backend, ATTENTION)
    return kernels


def recurrent_kernels(chosen: Mapping[str, str]) -> RecurrentKernels:
    """chosen: operation -> backend."""
    scan, step = (name for name in chosen if not name.startswith("convolution"))
    plain = PLAIN[scan]
    return RecurrentKernels(
        convolve=kernels_of("convolution", chosen["convolution"], plain.convolve),
        convolve_step=kernels_of("convolution step", chosen["convolution step"], plain.convolve_step),
        scan=kernels_of(scan, chosen[scan], plain.scan),
        step=kernels_of(step, chosen[step], plain.step),
        convolve_runs=_runs_of("convolution", chosen["convolution"]),
        scan_runs=_runs_of(scan, chosen[scan]),
    )


def bind(
    decoder: Decoder,
    environment: Environment,
    dtype: torch.dtype,
    block_size: int,
    state_dtype: torch.dtype = torch.float32,
    *,
    int8: bool = False,
) -> tuple[Choice, ...]:
    """Give every mixer its kernels; returns the choices, each different one once.

    Args:
        dtype: of the weights. state_dtype: of the states that recurrences carry from step to step.
        int8: matrices of weights in 8 bits, but for routers', whose choices are all or nothing.
    """
    name, state = (str(each).removeprefix("torch.") for each in (dtype, state_dtype))
    backend = choose("linear", environment, Need(name)).backend
    linear: LinearKernels = kernels_of("linear", backend, PLAIN_LINEAR)
    norm = kernels_of("norm", choose("norm", environment, Need(name)).backend, rms_norm)
    backend = choose("activations", environment, Need(name)).backend
    functions = kernels_of("activations", backend, PLAIN_ACTIVATIONS)
    lay_out = linear.lay_out_int8 if int8 else linear.lay_out
    for module in decoder.modules():
        if isinstance(module, Attention | MLP) and lay_out is not None:
            module.opening.lay_out(lay_out)
        if isinstance(module, Projecting):
            module.linear = linear.multiply
            its_own = linear.lay_out if isinstance(module, Router) else lay_out
            if its_own is not None:
                module.lay_out(its_own)
        if isinstance(module, Normalising):
            module.kernel = norm
        if isinstance(module, Activating):
            module.functions = functions
        if not isinstance(module, Attention | RecurrentMixer):
            continue
        chosen: dict[str, str] = {
            operation: choose(operation, environment, need).backend
            for operation, need in operations_of(module.spec, name, block_size, state)
        }
        if isinstance(module, Attention):
            module.kernels = attention_kernels(chosen["attention"])
        else:
            module.kernels = recurrent_kernels(chosen)
            module.prepare()
    return choices_for(decoder.config.layers, environment, name, block_size, state)
