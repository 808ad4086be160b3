"""What this machine computes with: its device, and which packages with kernels are there."""

import importlib
import importlib.util
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import torch

from models.kernels.mamba_backends import import_ssd

# Distribution name -> the import that shows that its kernels are there.
PACKAGES: dict[str, Callable[[], object]] = {
    "triton": partial(importlib.import_module, "triton"),
    "flash-attn": partial(importlib.import_module, "flash_attn"),
    "mamba-ssm": import_ssd,
    "causal-conv1d": partial(importlib.import_module, "causal_conv1d"),
    "numba": partial(importlib.import_module, "numba"),
}
FOR_PROCESSORS = ("numba",)


@dataclass(frozen=True, slots=True)
class Package:
    """An optional package: version None where it is not installed; problem: why it cannot be used, else None."""

    version: str | None
    problem: str | None

    @property
    def usable(self) -> bool:
        return self.version is not None and self.problem is None


@dataclass(frozen=True, slots=True)
class Environment:
    """Where a decoder runs. capability: the GPU's compute capability, None without one.

    converts_half: whether the processor has instructions between float16 and float32, without which compiled code is
    left with a function that is not there.
    """

    device: str
    device_name: str
    capability: tuple[int, int] | None
    torch_version: str
    has_paged_varlen: bool
    packages: Mapping[str, Package]
    converts_half: bool = True

    @property
    def is_gpu(self) -> bool:
        return self.capability is not None


def probe_package(distribution: str, load: Callable[[], object] | None) -> Package:
    """load: its import, which for compiled ones needs a GPU's libraries and some seconds; None to look it up only."""
    try:
        found = version(distribution)
    except PackageNotFoundError:
        return Package(None, "not installed")
    if load is None:
        return Package(found, None)
    try:
        load()
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        reason = str(error).splitlines() or [repr(error)]
        return Package(found, f"its import fails: {reason[0]}")
    return Package(found, None)


def has_paged_varlen() -> bool:
    """Whether torch's own variable-length attention reads a block table (torch 2.13 and newer)."""
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return False
    varlen = importlib.import_module("torch.nn.attention.varlen")
    return "block_table" in varlen.varlen_attn.__annotations__


def converts_half() -> bool:
    """Whether the processor has instructions for float16, as all but old ones of Intel's and AMD's do."""
    if platform.machine().lower() not in ("x86_64", "amd64") or importlib.util.find_spec("llvmlite") is None:
        return True
    return bool(importlib.import_module("llvmlite.binding").get_host_cpu_features().get("f16c"))


def probe(device: torch.device) -> Environment:
    """Look at the machine. The packages that the other kind of device has a use for are looked up, but not loaded."""
    is_gpu = device.type == "cuda"
    packages = {
        name: probe_package(name, load if is_gpu != (name in FOR_PROCESSORS) else None)
        for name, load in PACKAGES.items()
    }
    return Environment(
        device=device.type,
        device_name=torch.cuda.get_device_name(device) if is_gpu else "CPU",
        capability=torch.cuda.get_device_capability(device) if is_gpu else None,
        torch_version=torch.__version__,
        has_paged_varlen=has_paged_varlen(),
        packages=packages,
        converts_half=is_gpu or converts_half(),
    )
