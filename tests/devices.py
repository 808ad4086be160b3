"""The devices that a test runs on: always the CPU, and a GPU where there is one (`-m gpu` runs those alone)."""

import pytest
import torch

DEVICES = (
    "cpu",
    pytest.param(
        "cuda",
        marks=(pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
    ),
)
