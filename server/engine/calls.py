"""One call of f on the device, over just the rows there are: how it is made on a CPU.

Letters: n rows of the call, m accepted ones, D ``d_model``.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from deq_model.inference import InferenceFunction
from deq_model.solvers.rows import RowSolver
from server.engine.layout import Layout
from server.engine.ledger import Verdict
from server.engine.packing import Packing
from server.engine.rings import RingPacking, Rings, can_run
from server.engine.slab import Slab

MOST_STEP = 10.0
"""Times its residual that a last step may be long.

On trained models it is 1.3 times as long in the median and 2.5 at the 99th percentile; those that
were more than 20 times as long led away, to log-probabilities off by up to 0.5.
"""


@dataclass(frozen=True, slots=True)
class Parts:
    """What calls of f work on.

    Attributes:
        f: the function.
        solver: of the rows.
        slab: memory of the sequences.
        injection: ``(rows of the solver, 3·D)``, folded.
    """

    f: InferenceFunction
    solver: RowSolver
    slab: Slab
    injection: Tensor


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of accepted tokens.

    Attributes:
        z_star: ``(m, D)``, the states they were accepted at.
        best_residual: the least relative residual that was seen of each; inf for none.
    """

    z_star: Tensor
    best_residual: list[float]


class Calls(Protocol):
    """Makes the calls of f. A call, then what is to be kept of it."""

    def call(self, layout: Layout, settled: list[bool], *, most_calls: int) -> list[float]:
        """One call of f, and the solver's next step.

        Args:
            layout: the rows.
            settled: rows whose f is the one of their last call.
            most_calls: no row has had more before this one.

        Returns:
            The relative residuals.
        """

    def keep(self, verdicts: list[Verdict]) -> Kept:
        """Puts accepted tokens of the last call into their sequences' memory."""


class PackedCalls:
    """Over views of the work area, without padding."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._rings = Rings(parts.f, parts.slab) if can_run(parts.slab) else None
        self._layout: Layout | None = None
        self._packing: Packing | RingPacking
        self._z: Tensor

    def call(self, layout: Layout, settled: list[bool], *, most_calls: int) -> list[float]:
        """See ``Calls``."""
        parts = self._parts
        if layout is not self._layout:
            self._packing = (
                Packing(layout, parts.slab, parts.f.hidden)
                if self._rings is None
                else self._rings.lay(layout)
            )
            self._layout = layout  # last: what fails before is to be done again
        rows = self._packing.rows
        z = self._z = parts.solver.propose(rows)
        query, key, value = parts.f.channels(z, parts.injection[rows])
        mixed = self._packing.attend(parts.f, query, key, value)
        f_z = parts.f.finish(mixed, z)
        seen, known = z.new_empty(len(z), 2), torch.tensor(settled, device=z.device)
        parts.solver.advance(rows, f_z, settled=known, most=most_calls, seen=seen, measured=self._z)
        residual: list[float] = seen[:, 0].tolist()
        return residual

    def keep(self, verdicts: list[Verdict]) -> Kept:
        """See ``Calls``."""
        parts, packing, device = self._parts, self._packing, self._z.device
        at = torch.tensor([v.offset for v in verdicts], device=device)
        rows = packing.rows[at]
        work_rows, entries = packing.work_rows[at], packing.entries[at]
        best = parts.solver.best(rows)
        residual = torch.tensor([v.residual for v in verdicts], device=device)
        z_star = onward(self._z[at], parts.solver.propose(rows), residual)
        if not all(v.converged for v in verdicts):
            converged = torch.tensor([v.converged for v in verdicts], device=device)
            z_star = torch.where(converged[:, None], z_star, best.z)
        # What the work area holds for them is of the state that this call measured.
        _, key, value = parts.f.channels(z_star, parts.injection[rows])
        parts.slab.write_keys(work_rows, entries, key, value)
        parts.slab.write_states(work_rows, entries, z_star)
        return Kept(z_star, best.residual_rel.tolist())


def onward(z: Tensor, proposed: Tensor, residual: Tensor) -> Tensor:
    """The states to accept of rows that have converged at z.

    The call has told where to go next, and that is nearer to the fixed point than where it was;
    unless the step is out of proportion to the residual, by a history that is no longer true.

    Args:
        z: ``(m, D)``, what the call measured.
        proposed: ``(m, D)``, where the solver would go on.
        residual: ``(m,)``, relative, at z.
    """
    step = (proposed - z).norm(dim=1)
    wild = step > MOST_STEP * residual * z.norm(dim=1)
    return torch.where(wild[:, None], z, proposed)
