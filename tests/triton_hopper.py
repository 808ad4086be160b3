"""Compiles every Triton kernel for a Hopper GPU on a machine that has none, by calling the functions that launch them.

What Triton's interpreter runs its compiler may refuse. Prints the kernels' names and what each takes of shared memory,
as JSON. To be run in a process of its own, for triton takes one driver and knows at import whether it interprets.
"""

import json
import os
import sys

import torch

os.environ.pop("TRITON_INTERPRET", None)

from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from models.config import ScoreSpec
from models.kernels import attention_triton as attention
from models.kernels import recurrent_triton as recurrent

SHARED: dict[str, int] = {}


class Launcher:
    def __init__(self, _source: object, metadata: object) -> None:
        SHARED[metadata.name] = max(metadata.shared, SHARED.get(metadata.name, 0))

    def __call__(self, *_arguments: object) -> None:
        """The kernel is compiled, and there is nothing that could run it."""


class Loader:
    """An H100's limits, beyond which triton refuses a kernel when it is loaded."""

    def get_device_properties(self, _device: int) -> dict[str, int]:
        return {"max_shared_mem": 232_448}

    def load_binary(self, *_binary: object) -> tuple[int, int, int, int, int]:
        return 1, 1, 0, 0, 1024  # module, function, registers, spilled ones, most threads


class Driver:
    utils = Loader()
    launcher_cls = Launcher

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def attend(dtype: torch.dtype, head_dim: int, scores: ScoreSpec, sinks: torch.Tensor | None) -> None:
    keys, values = (torch.zeros(4, 16, 2, head_dim, dtype=dtype) for _ in range(2))
    tables, lengths = torch.zeros(3, 600, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    q = torch.zeros(50, 8, head_dim, dtype=dtype)
    attention.write_kv(keys, values, keys[0], values[0], torch.zeros(16, dtype=torch.int64))
    attention.attend_decode(q[:3], keys, values, tables, lengths, scores=scores, sinks=sinks)
    attention.attend_decode(q[:3], keys, values, tables[:, :1], lengths, scores=scores, sinks=sinks)
    starts = torch.zeros(4, dtype=torch.int32)
    attention.attend_prefill(q, keys, values, tables, starts, lengths, max_query=len(q), scores=scores, sinks=sinks)


def recur(dtype: torch.dtype) -> None:
    slots, zeros = torch.zeros(2, dtype=torch.int64), torch.zeros
    bc, dt = zeros(2, 1, 128, dtype=dtype), zeros(2, 8)
    recurrent.conv_step(zeros(2, 96, dtype=dtype), zeros(3, 96, 3), slots, zeros(96, 1, 4, dtype=dtype), zeros(96))
    recurrent.ssd_step(zeros(2, 8, 64, dtype=dtype), dt, dt[0], bc, bc, pool=zeros(3, 8, 64, 128), slots=slots)
    x, bc, decays = zeros(2, 96, dtype=dtype), zeros(2, 16, dtype=dtype), zeros(96, 16)
    recurrent.selective_step(x, x.float(), decays, bc, bc, pool=zeros(3, 96, 16), slots=slots)
    recurrent.selective_scan(x[None], x[None].float(), decays, bc[None], bc[None], state=zeros(1, 96, 16))
    q, v = zeros(2, 4, 128, dtype=dtype), zeros(2, 8, 128, dtype=dtype)
    recurrent.delta_step(q, q, v, dt, dt, pool=zeros(3, 8, 128, 128), slots=slots)


def recur_over_narrow(state: torch.dtype) -> None:
    slots, dt = torch.zeros(2, dtype=torch.int64), torch.zeros(2, 8)
    bc, x = torch.zeros(2, 1, 128), torch.zeros(2, 8, 64)
    recurrent.ssd_step(x, dt, dt[0], bc, bc, pool=torch.zeros(3, 8, 64, 128, dtype=state), slots=slots)
    pool, rates = torch.zeros(3, 8, 16, dtype=state), torch.zeros(8, 16)
    recurrent.selective_step(dt, dt, rates, rates[:2], rates[:2], pool=pool, slots=slots)
    q, v = torch.zeros(2, 4, 128), torch.zeros(2, 8, 128)
    recurrent.delta_step(q, q, v, dt, dt, pool=torch.zeros(3, 8, 128, 128, dtype=state), slots=slots)


if __name__ == "__main__":
    driver.set_active(Driver())
    attend(torch.bfloat16, 128, ScoreSpec(), None)
    attend(torch.bfloat16, 80, ScoreSpec(softcap=50.0, window=4096), torch.zeros(8, dtype=torch.bfloat16))
    attend(torch.float32, 64, ScoreSpec(), None)
    recur(torch.bfloat16)
    recur(torch.float32)
    recur_over_narrow(torch.bfloat16)
    recur_over_narrow(torch.float16)
    json.dump(SHARED, sys.stdout)
