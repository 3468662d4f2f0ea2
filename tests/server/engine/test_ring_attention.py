"""Attention in one kernel: in Triton's interpreter, where there is one, and on a GPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.server.engine.ring_rows import agree

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs Triton")
def test_the_kernel_does_what_the_operations_do() -> None:
    subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.server.engine.ring_rows"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        check=True,
        timeout=100,
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_kernel_on_a_gpu() -> None:
    with torch.no_grad():
        agree(torch.device("cuda"))
