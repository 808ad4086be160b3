"""Every Triton kernel through the compiler, for a GPU that need not be there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("triton", reason="triton has no build for this machine")


def test_kernels_compile_for_a_hopper_gpu(tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", str(ROOT / "tests" / "triton_hopper.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shared = json.loads(done.stdout)
    sources = (ROOT / "models" / "kernels").glob("*_triton.py")
    launched = {name for file in sources for name in re.findall(r"(\w+_kernel)\[", file.read_text(encoding="utf-8"))}
    assert len(launched) == 9
    assert set(shared) == launched
    # A decode step lives on bytes in flight: four programs' tiles must fit on a processor of an H100.
    assert 4 * shared["_decode_kernel"] <= 228 << 10
