"""Broyden's step of many rows as one GPU kernel, where Triton is to be had.

It does what ``RowSolver.observe`` does with the method broyden, ranked by relative residuals and
without a line search, which takes about a hundred operations there: on few rows a GPU spends more
time between them than on them.

Letters: n rows, D channels, m depth.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

try:
    import triton
    from triton import language as tl
except ImportError:  # torch for CPUs comes without it
    triton = None

_WARPS = 4


if triton is not None:

    @triton.jit  # type: ignore[untyped-decorator]
    def _kernel(  # type: ignore[no-untyped-def]
        rows,
        f_z,
        settled,
        seen,
        measured,
        state,
        least_sizes,
        dampings,
        terms,
        counts,
        restart,
        least_norm,
        dim,
        DEPTH: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        # One program is one row. It loads what may be overwritten before its first sum, and
        # writes after the last: sums are where its threads wait for one another.
        i = tl.program_id(0).to(tl.int64)
        row = tl.load(rows + i)
        at = tl.arange(0, BLOCK)
        inside = at < dim
        out = tl.where(inside, 1, 0)
        inf = float("inf")

        vectors = state + row * 5 * dim + at
        z = tl.load(vectors, mask=inside, other=0.0)
        last_z = tl.load(vectors + dim, mask=inside, other=0.0)
        last_g = tl.load(vectors + 2 * dim, mask=inside, other=0.0)
        best_z = tl.load(vectors + 3 * dim, mask=inside, other=0.0)
        best_g = tl.load(vectors + 4 * dim, mask=inside, other=0.0)
        least = tl.load(least_sizes + 2 * row)
        least_abs = tl.load(least_sizes + 2 * row + 1)
        damping = tl.load(dampings + row)
        count = tl.load(counts + row)
        known = tl.load(settled + i) != 0
        f = tl.load(f_z + i * dim + at, mask=inside, other=0.0)

        # The residuals, and the best state.
        g = f - z
        size = tl.sqrt(tl.sum(g * g, axis=0))
        relative = size / tl.maximum(tl.sqrt(tl.sum(f * f, axis=0)), least_norm)
        size = tl.where(size < inf, size, inf)
        relative = tl.where(relative < inf, relative, inf)
        better = relative < tl.where(known, least, inf)
        best_z = tl.where(better, z, best_z)
        best_g = tl.where(better, g, best_g)
        found = tl.where(better, relative, least)

        # Back to the best state, where that is far better.
        worse = (relative == inf) | (relative > restart * least)
        fresh = (least == inf) | worse
        damping = tl.where(worse & (least < inf), damping * 0.5, damping)
        origin_z = tl.where(worse, best_z, z)
        origin_g = tl.where(worse, best_g, g)
        used = tl.where(worse | (count >= DEPTH), 0, count)

        # B's product with the change of g, and with g; the new term.
        dz = z - last_z
        dg = g - last_g
        v_new = -dz
        b_dg = -dg
        b_g = -origin_g
        pairs = terms + row * DEPTH * 2 * dim + at
        for j in range(used):
            u = tl.load(pairs + 2 * j * dim, mask=inside, other=0.0)
            v = tl.load(pairs + (2 * j + 1) * dim, mask=inside, other=0.0)
            v_new += tl.sum(u * dz, axis=0) * v
            b_dg += tl.sum(v * dg, axis=0) * u
            b_g += tl.sum(v * origin_g, axis=0) * u
        bottom = tl.sum(dg * v_new, axis=0)
        along = tl.sum(origin_g * v_new, axis=0)
        u_new = (dz - b_dg) / bottom
        odd = tl.sum(tl.where(tl.abs(u_new) < inf, 0, out), axis=0)
        usable = (fresh == 0) & (tl.abs(bottom) < inf) & (odd == 0)
        u_new = tl.where(usable & inside, u_new, 0.0)
        v_new = tl.where(usable & inside, v_new, 0.0)
        step = -(b_g + u_new * tl.where(usable, along, 0.0))

        # Where to go: plainly, where the step is none.
        lost = tl.sum(tl.where(tl.abs(step) < inf, 0, out), axis=0) != 0
        following = origin_z + tl.where(fresh | lost, damping * origin_g, step)
        wild = tl.sum(tl.where(tl.abs(following) < inf, 0, out), axis=0) != 0
        following = tl.where(wild, best_z, following)

        tl.store(measured + i * dim + at, z, mask=inside)
        tl.store(seen + 2 * i, relative)
        tl.store(seen + 2 * i + 1, found)
        tl.store(vectors, following, mask=inside)
        tl.store(vectors + dim, origin_z, mask=inside)
        tl.store(vectors + 2 * dim, origin_g, mask=inside)
        tl.store(vectors + 3 * dim, best_z, mask=inside)
        tl.store(vectors + 4 * dim, best_g, mask=inside)
        tl.store(least_sizes + 2 * row, found)
        tl.store(least_sizes + 2 * row + 1, tl.where(better, size, least_abs))
        tl.store(dampings + row, damping)
        tl.store(pairs + 2 * used * dim, u_new, mask=inside)
        tl.store(pairs + (2 * used + 1) * dim, v_new, mask=inside)
        tl.store(counts + row, tl.where(lost, 0, used + tl.where(usable, 1, 0)))


def can_fuse(device: torch.device) -> bool:
    """Whether there is a kernel for a device."""
    return triton is not None and device.type == "cuda"


@dataclass(frozen=True, slots=True)
class FusedStep:
    """The kernel and the buffers of all rows, which it changes in place.

    Attributes:
        state: ``(rows, 5, D)``: where to go; the state and residual of the last step; of the best.
        least: ``(rows, 2)`` the best state's residuals, relative and absolute.
        damping: ``(rows,)`` of plain steps.
        terms: ``(rows, m, 2, D)``.
        count: ``(rows,)`` int64, terms of each row.
        restart: see ``SolverOptions``.
        least_norm: a norm of f(z) below this counts as this.
    """

    state: Tensor
    least: Tensor
    damping: Tensor
    terms: Tensor
    count: Tensor
    restart: float
    least_norm: float

    def __call__(
        self,
        rows: Tensor,
        f_z: Tensor,
        settled: Tensor,
        *,
        seen: Tensor,
        measured: Tensor,
    ) -> None:
        """One observation.

        Args:
            rows: ``(n,)`` int64; a row that nobody reads may be there more than once.
            f_z: ``(n, D)`` in the dtype of states.
            settled: ``(n,)`` bool.
            seen: ``(n, 2)``, takes the relative residuals, and the least ones of each row.
            measured: ``(n, D)``, takes the states that f was asked at.
        """
        depth, dim = self.terms.shape[1], self.state.shape[2]
        tensors = (rows, f_z.contiguous(), settled, seen, measured)
        buffers = (self.state, self.least, self.damping, self.terms, self.count)
        _kernel[(len(rows),)](
            *tensors,
            *buffers,
            self.restart,
            self.least_norm,
            dim,
            DEPTH=depth,
            BLOCK=1 << (dim - 1).bit_length(),
            num_warps=_WARPS,
        )
