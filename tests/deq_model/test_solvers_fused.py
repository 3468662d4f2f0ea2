"""The solver's step as one kernel: in Triton's interpreter, where there is one, and without."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deq_model.native.library import find
from deq_model.solvers.fused import FusedStep
from deq_model.solvers.native import NativeStep
from deq_model.solvers.rows import RowSolver
from tests.deq_model.fused_rows import agree, solver
from tests.kernels import needs_kernels

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs Triton")
def test_the_kernel_does_what_the_operations_do() -> None:
    subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.deq_model.fused_rows"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        check=True,
        timeout=100,
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_kernel_on_a_gpu() -> None:
    device = torch.device("cuda")
    assert solver(device, torch.float32).is_fused
    agree(device)


def test_only_broyden_has_a_kernel() -> None:
    for method in ("anderson", "picard"):
        other = RowSolver(
            method,  # type: ignore[arg-type]
            capacity=1,
            dim=2,
            depth=3,
            device=torch.device("cpu"),
            dtype=torch.float32,
        )
        assert other.fused_step(FusedStep) is None
        assert not other.is_fused
    assert not solver(torch.device("cpu"), torch.float64).is_fused
    assert solver(torch.device("cpu"), torch.float32).is_fused == bool(find("observe"))


@needs_kernels
def test_the_kernel_of_a_cpu_does_what_the_operations_do() -> None:
    agree(torch.device("cpu"), NativeStep)


def test_advancing_is_observing_into_buffers() -> None:
    ours, theirs = (solver(torch.device("cpu"), torch.float64) for _ in range(2))
    rows, source = torch.tensor([3, 1]), torch.Generator().manual_seed(0)
    for each in (ours, theirs):
        each.start(rows, torch.zeros(2, 11, dtype=torch.float64))
    for call in range(6):
        f_z = torch.randn(2, 11, generator=source, dtype=torch.float64)
        settled = torch.tensor([call % 2 == 0, True])
        seen, measured = f_z.new_zeros(2, 2), torch.zeros_like(f_z)
        assert torch.equal(ours.propose(rows), theirs.propose(rows))
        z = ours.propose(rows)
        ours.advance(rows, f_z, settled=settled, most=call, seen=seen, measured=measured)
        residual = theirs.observe(rows, f_z, settled=settled).residual_rel
        torch.testing.assert_close(seen[:, 0], residual)
        torch.testing.assert_close(seen[:, 1], theirs.best(rows).residual_rel)
        assert torch.equal(measured, z)
