"""What this machine computes with: its device, and which packages with kernels are there."""

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

# Distribution name -> the module whose import shows that its kernels are there.
PACKAGES = {
    "triton": "triton",
    "flash-attn": "flash_attn",
    "mamba-ssm": "mamba_ssm",
    "causal-conv1d": "causal_conv1d",
}


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
    """Where a decoder runs. capability: the GPU's compute capability, None without one."""

    device: str
    device_name: str
    capability: tuple[int, int] | None
    torch_version: str
    has_paged_varlen: bool
    packages: Mapping[str, Package]

    @property
    def is_gpu(self) -> bool:
        return self.capability is not None


def probe_package(distribution: str, module: str, *, try_import: bool) -> Package:
    """try_import: also load it, which for compiled ones needs a GPU's libraries and some seconds."""
    try:
        found = version(distribution)
    except PackageNotFoundError:
        return Package(None, "not installed")
    if not try_import:
        return Package(found, None)
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return Package(found, f"import {module} fails: {str(error).splitlines()[0] if str(error) else error!r}")
    return Package(found, None)


def has_paged_varlen() -> bool:
    """Whether torch's own variable-length attention reads a block table (torch 2.13 and newer)."""
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return False
    varlen = importlib.import_module("torch.nn.attention.varlen")
    return "block_table" in varlen.varlen_attn.__annotations__


def probe(device: torch.device) -> Environment:
    """Look at the machine. On a CPU the packages are only looked up, not loaded: none of them is used there."""
    is_gpu = device.type == "cuda"
    packages = {name: probe_package(name, module, try_import=is_gpu) for name, module in PACKAGES.items()}
    return Environment(
        device=device.type,
        device_name=torch.cuda.get_device_name(device) if is_gpu else "CPU",
        capability=torch.cuda.get_device_capability(device) if is_gpu else None,
        torch_version=torch.__version__,
        has_paged_varlen=has_paged_varlen(),
        packages=packages,
    )
