"""Residuals call by call, and how many calls a tolerance takes.

Letters: C calls of f, S samples (blocks of one stream each), L tokens of a block.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deq_model.model import DEQLanguageModel
from deq_model.solvers.loop import solve
from deq_model.solvers.options import SolverOptions
from training.evaluating.solving import BlockView

_LEAST_NORM = 1e-12
QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """Calls of f that a tolerance takes.

    Attributes:
        tol: the tolerance.
        calls: mean over the samples; one that never came there counts with all its calls.
        share: of the samples that came there.
    """

    tol: float
    calls: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """How the residual falls: quantiles over rows after each call, ``(C,)`` each."""

    low: tuple[float, ...]
    middle: tuple[float, ...]
    high: tuple[float, ...]


class Traced:
    """f, with a note of the relative residual of every row at every call."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        self._f = f
        self.residual: list[Tensor] = []

    def __call__(self, z: Tensor) -> Tensor:
        """f(z)."""
        f_z = self._f(z)
        seen = (f_z - z).norm(dim=-1) / f_z.norm(dim=-1).clamp(min=_LEAST_NORM)
        self.residual.append(seen.masked_fill(~seen.isfinite(), torch.inf).double().cpu())
        return f_z


def trace(
    model: DEQLanguageModel, view: BlockView, options: SolverOptions, *, whole_block: bool
) -> Tensor:
    """Solves a block again from zeros.

    Returns:
        ``(C, B, rows)`` relative residuals at each call, rows being 1 for a whole block as one
        vector and L for token by token.
    """
    f = view.function(model)
    batch, length, d_model = view.z_star.shape
    shape = (batch, 1, length * d_model) if whole_block else (batch, length, d_model)
    flat = Traced(lambda z: f(z.view(batch, length, d_model)).view(shape))
    solve(flat, view.z_star.new_zeros(shape), options)
    return torch.stack(flat.residual)


def calls_to(residual: Tensor, tol: float) -> Tensor:
    """Calls after which all rows of a sample are done, as the solver's loop counts it.

    A row is done when its residual and those of all rows before it are under the tolerance in the
    same call or were earlier.

    Args:
        residual: ``(C, S, rows)``.
        tol: the tolerance.

    Returns:
        ``(S,)`` float64; inf where it did not happen.
    """
    calls, samples, rows = residual.shape
    done = torch.zeros(samples, rows, dtype=torch.bool)
    needed = torch.full((samples,), torch.inf, dtype=torch.float64)
    for call in range(calls):
        done = (done | (residual[call] <= tol)).cumprod(1).bool()
        over = done.all(1) & needed.isinf()
        needed = torch.where(over, float(call + 1), needed)
    return needed


def reaches(traces: Sequence[Tensor], tolerances: Sequence[float], *, budget: int) -> list[Reach]:
    """Calls to each tolerance, over the samples of all traces."""
    found = []
    for tol in tolerances:
        needed = torch.cat([calls_to(residual, tol) for residual in traces])
        came = needed.isfinite()
        calls = torch.where(came, needed, float(budget))
        found.append(Reach(tol=tol, calls=float(calls.mean()), share=float(came.double().mean())))
    return found


def band(traces: Sequence[Tensor]) -> Band:
    """Quantiles over all rows of all traces; one that ended earlier goes on at its last value."""
    longest = max(len(residual) for residual in traces)
    rows = torch.cat(
        [torch.cat([r, r[-1:].expand(longest - len(r), -1, -1)]).flatten(1) for r in traces],
        dim=1,
    )
    points = torch.tensor(QUANTILES, dtype=rows.dtype)
    low, middle, high = torch.quantile(rows, points, dim=1, interpolation="nearest").tolist()
    return Band(low=tuple(low), middle=tuple(middle), high=tuple(high))
