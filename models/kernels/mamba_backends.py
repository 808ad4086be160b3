"""The packages mamba-ssm and causal-conv1d behind the interface."""

import importlib
import importlib.util
import sys
from types import ModuleType

from torch import Tensor

from models.kernels.interface import Convolve, Scan

SSD_MODULE = "mamba_ssm.ops.triton.ssd_combined"
CHUNK = 256  # tokens; what its kernels are tuned for


def import_ssd() -> ModuleType:
    """The module with mamba-ssm's chunked scan.

    The package's own import loads an extension that is not there when it was built without CUDA, and other libraries
    beside; its Triton kernels need neither. So a bare module of the package's name leads to them.

    Raises:
        ImportError: not installed, or the module itself cannot be imported.
    """
    if "mamba_ssm" not in sys.modules:
        spec = importlib.util.find_spec("mamba_ssm")
        if spec is None or spec.submodule_search_locations is None:
            raise ModuleNotFoundError("No module named 'mamba_ssm'")
        bare = ModuleType("mamba_ssm")
        bare.__path__ = list(spec.submodule_search_locations)
        sys.modules["mamba_ssm"] = bare
    return importlib.import_module(SSD_MODULE)


def ssd_scan() -> Scan:
    """Mamba-2 over whole runs of tokens, by mamba-ssm."""
    combined = import_ssd().mamba_chunk_scan_combined

    def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, /, *, state: Tensor) -> tuple[Tensor, Tensor]:
        y, after = combined(x, dt, A, B, C, CHUNK, initial_states=state, return_final_states=True)
        return y.float(), after.float()

    return scan


def convolve() -> Convolve:
    """The convolution over runs of tokens, by causal-conv1d."""
    function = importlib.import_module("causal_conv1d").causal_conv1d_fn

    def scan(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, /) -> tuple[Tensor, Tensor]:
        # With a state before it wants, and gives back, tensors whose channels lie next to each other.
        before = state.to(x.dtype).transpose(1, 2).contiguous().transpose(1, 2)
        y, after = function(
            x.contiguous().transpose(1, 2),
            weight.squeeze(1),
            bias,
            initial_states=before,
            return_final_states=True,
            activation="silu",
        )
        return y.transpose(1, 2), after

    return scan
