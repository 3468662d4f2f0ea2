"""The solver's kernel against what it stands for. As a program: in Triton's interpreter, on a CPU.

Run it with ``TRITON_INTERPRET=1`` there.
"""

import torch
from torch import Tensor

from deq_model.solvers.fused import FusedStep
from deq_model.solvers.native import NativeStep
from deq_model.solvers.rows import RowSolver

ROWS, DIM, DEPTH, CALLS = 5, 11, 4, 30


def solver(device: torch.device, dtype: torch.dtype) -> RowSolver:
    return RowSolver("broyden", capacity=ROWS + 1, dim=DIM, depth=DEPTH, device=device, dtype=dtype)


def agree(device: torch.device, kind: type[FusedStep] | type[NativeStep] = FusedStep) -> None:
    """Drives two solvers through hard and broken values, one by the kernel."""
    dtype = torch.float64 if kind is FusedStep else torch.float32
    plain, fused = solver(device, dtype), solver(device, dtype)
    step = fused.fused_step(kind)
    assert step is not None
    source = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64).to(device, dtype)

    matrices, shift = 0.35 * drawn(ROWS, DIM, DIM), drawn(ROWS, DIM)
    rows = torch.tensor([4, 0, 2, 1], device=device)
    for each in (plain, fused):
        each.start(rows, torch.zeros(len(rows), DIM, dtype=dtype, device=device))
    restarts = 0
    for call in range(CALLS):
        z, measured_z = plain.propose(rows), fused.propose(rows)
        f_z = torch.tanh((matrices[rows] @ z[..., None]).squeeze(-1)) + shift[rows]
        f_z = _disturbed(f_z, call)
        settled = torch.tensor([True, call % 3 != 0, True, call % 5 != 1], device=device)
        before = plain.least(rows)[:, 0]
        found = plain.observe(rows, f_z, settled=settled, most=call)
        restarts += int((found.residual_rel > 100 * before).sum())
        seen, measured = torch.full_like(z[:, :2], -1), torch.full_like(z, -1)
        step(rows, f_z, settled, seen=seen, measured=measured)
        assert torch.equal(measured, measured_z)
        near(seen, torch.stack([found.residual_rel, plain.least(rows)[:, 0]], dim=1))
        near(fused._state, plain._state)
        near(fused._least, plain._least)
        near(fused._damping, plain._damping)
        assert torch.equal(fused._rule.count, plain._rule.count)
    assert restarts > 3, "nothing went back to its best state: the test shows little"


def _disturbed(f_z: Tensor, call: int) -> Tensor:
    f_z = f_z.clone()
    if call in (0, 3, 9):
        f_z[1] = torch.nan
    if call in (4, 12):
        f_z[2] = torch.inf
    if call % 7 == 5:
        f_z[0] *= 5
    if call == 20:
        f_z[3] += 40
    return f_z


def near(ours: Tensor, theirs: Tensor) -> None:
    close = (1e-7, 1e-9) if ours.dtype == torch.float64 else (1e-2, 1e-3)
    torch.testing.assert_close(ours, theirs, rtol=close[0], atol=close[1])


if __name__ == "__main__":
    agree(torch.device("cpu"))
