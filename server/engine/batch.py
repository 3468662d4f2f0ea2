"""One call of f on the rows of many sequences, and what became of each token.

Letters: N rows of the call, R sequences, W the widest window, D ``d_model``.
"""

from collections import Counter
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from deq_model.attention import relative_attention, span
from deq_model.function import EquilibriumWeights
from deq_model.model import DEQLanguageModel
from deq_model.solvers.options import Method
from deq_model.solvers.rows import RowSolver
from deq_model.warm_start import WarmStart
from server.engine.scheduler import Entry, Scheduler, Sequence
from server.engine.slab import Slab
from server.engine.starts import first_states
from server.engine.types import Solve, Solved

_FAR = 1 << 40
"""Positions of padding start here: beyond every token's reach."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A token that is done.

    Attributes:
        sequence: it belongs to.
        index: in the sequence's inputs.
        z_star: ``(D,)``.
        solved: how it was solved.
    """

    sequence: Sequence
    index: int
    z_star: Tensor
    solved: Solved


class PackedAttention:
    """Attention of packed rows: each sequence over its own memory and its own window."""

    def __init__(
        self, weights: EquilibriumWeights, slab: Slab, positions: Tensor, sequences: Seq[Sequence]
    ) -> None:
        """Lays out the rows of ``sequences``, in order; ``positions`` is the table R(δ)."""
        self._weights, self._positions = weights, positions
        config, device = weights.config, positions.device
        width = max(len(sequence.active) for sequence in sequences)
        grid, query_position, first = [], [], []
        row = 0
        for sequence in sequences:
            count, begin = len(sequence.active), sequence.start + sequence.accepted
            grid.append([row + i if i < count else -1 for i in range(width)])
            at = [begin + i if i < count else _FAR + i for i in range(width)]
            query_position.append(at)
            first.append([max(0, p - p % config.tgt_len - config.mem_len) for p in at])
            row += count
        # Padding reads the row of zeros behind the last one: another sequence's NaN stays there.
        self._grid = torch.tensor(grid, device=device) % (row + 1)
        self._flat = (torch.tensor(grid, device=device).flatten() >= 0).nonzero().squeeze(1)
        self._history = slab.history([sequence.slot for sequence in sequences])
        at_rows = torch.tensor(query_position, device=device)
        self._span = span(
            at_rows,
            torch.cat([self._history.position, at_rows], dim=1),
            first=torch.tensor(first, device=device),
            reach=config.attention_span,
        )

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """``(N, n_head, d_head)`` each to ``(N, D)``."""
        mixed = relative_attention(
            self._padded(query),
            torch.cat([self._history.key, self._padded(key)], dim=1),
            torch.cat([self._history.value, self._padded(value)], dim=1),
            positions=self._positions,
            r_w_bias=self._weights.r_w_bias,
            r_r_bias=self._weights.r_r_bias,
            span=self._span,
        )
        return mixed.flatten(0, 1)[self._flat]

    def _padded(self, rows: Tensor) -> Tensor:
        return torch.cat([rows, torch.zeros_like(rows[:1])])[self._grid]


class Batch:
    """The solver's side of the engine: rows in, accepted tokens out."""

    def __init__(
        self,
        model: DEQLanguageModel,
        weights: EquilibriumWeights,
        slab: Slab,
        *,
        max_batch_tokens: int,
        method: Method = "broyden",
        depth: int = 12,
        warm_start: WarmStart | None = None,
    ) -> None:
        """Makes room for the rows; ``weights`` are the model's, folded and cast, as the map is."""
        config = weights.config
        like = model.injection.weight
        self._model, self._weights, self._slab = model, weights, slab
        self._warm_start = warm_start
        self._solver = RowSolver(
            method,
            capacity=max_batch_tokens,
            dim=config.d_model,
            depth=depth,
            device=like.device,
            dtype=like.dtype,
        )
        self._injection = like.new_zeros(max_batch_tokens, 3 * config.d_model)
        self._nfe = [0] * max_batch_tokens
        self._unsettled: set[int] = set()
        self._positions = weights.position_table(config.klen, like.dtype)

    @property
    def starts_warm(self) -> bool:
        """Whether solves begin at fitted first states."""
        return self._warm_start is not None

    def enter(self, entries: Seq[Entry]) -> None:
        """Starts the solves of tokens that enter."""
        if not entries:
            return
        device = self._injection.device
        tokens = torch.tensor([e.sequence.inputs[e.index] for e in entries], device=device)
        rows = torch.tensor([e.row for e in entries], device=device)
        self._injection[rows] = injection = self._model.inject(tokens)
        z_init = first_states(
            self._warm_start, entries, injection, solver=self._solver, slab=self._slab
        )
        self._solver.start(rows, z_init)
        for entry in entries:
            self._nfe[entry.row] = 0

    def step(self, scheduler: Scheduler, options: dict[Sequence, Solve]) -> list[Accepted]:
        """One call of f on all rows; accepted tokens are in their slots afterwards.

        Args:
            scheduler: whose running sequences take part; it is told who is done.
            options: of each sequence.

        Returns:
            The accepted tokens, each sequence's in order.
        """
        sequences = [s for s in scheduler.running if s.rows]
        row_ids = [row for sequence in sequences for row in sequence.active]
        rows = torch.tensor(row_ids, device=self._injection.device)
        settled = [
            i == 0 and row not in self._unsettled
            for sequence in sequences
            for i, row in enumerate(sequence.active)
        ]
        z = self._solver.propose(rows)
        attend = PackedAttention(self._weights, self._slab, self._positions, sequences)
        f_z = self._weights(z, self._injection[rows], attend)
        seen = self._solver.observe(rows, f_z, settled=torch.tensor(settled, device=rows.device))
        for row in row_ids:
            self._nfe[row] += 1
        residual = seen.residual_rel.tolist()
        verdicts: list[_Verdict] = []
        at = 0
        for sequence in sequences:
            count = len(sequence.active)
            verdicts += self._judge(sequence, options[sequence], residual[at : at + count], at)
            at += count
        accepted = self._store(z, verdicts)
        done = Counter(token.sequence for token in accepted)
        for sequence in sequences:
            scheduler.accept(sequence, done[sequence])
        # What these rows saw last was f behind another state than the one that was accepted.
        moved = {v.sequence for v in verdicts if not v.converged}
        self._unsettled = {sequence.rows[0] for sequence in moved if sequence.rows}
        return accepted

    def _judge(
        self, sequence: Sequence, solve: Solve, residual: list[float], offset: int
    ) -> list["_Verdict"]:
        """The prefix of a window that is done after this call.

        Once a token is accepted at another state than the one this call measured, what the call
        says of later tokens is about a different history: they wait for the next call, unless
        their own budget is spent.
        """
        verdicts: list[_Verdict] = []
        measured = True
        for i, row in enumerate(sequence.active):
            converged = measured and residual[i] <= solve.tol
            if not converged and self._nfe[row] < solve.max_nfe:
                break
            verdicts.append(
                _Verdict(sequence, sequence.accepted + i, row, offset + i, residual[i], converged)
            )
            measured = measured and converged
        return verdicts

    def _store(self, z: Tensor, verdicts: list["_Verdict"]) -> list[Accepted]:
        if not verdicts:
            return []
        device = z.device
        rows = torch.tensor([v.row for v in verdicts], device=device)
        current = z[torch.tensor([v.offset for v in verdicts], device=device)]
        best = self._solver.best(rows)
        converged = torch.tensor([v.converged for v in verdicts], device=device)
        z_star = torch.where(converged[:, None], current, best.z)
        key, value = self._weights.project_history(z_star, self._injection[rows])
        positions = [v.sequence.start + v.index for v in verdicts]
        self._slab.write(
            torch.tensor([v.sequence.slot for v in verdicts], device=device),
            torch.tensor(positions, device=device),
            key=key,
            value=value,
            z=z_star,
        )
        solved = [
            self._solved(verdict, best_residual)
            for verdict, best_residual in zip(verdicts, best.residual_rel.tolist(), strict=True)
        ]
        accepted = []
        for i, verdict in enumerate(verdicts):
            self._slab.advance(verdict.sequence.slot, positions[i] + 1, solved[i])
            accepted.append(Accepted(verdict.sequence, verdict.index, z_star[i], solved[i]))
        return accepted

    def _solved(self, verdict: "_Verdict", best_residual: float) -> Solved:
        nfe = self._nfe[verdict.row]
        if verdict.converged:
            return Solved(nfe, verdict.residual, "converged")
        finite = best_residual != float("inf")
        return Solved(nfe, best_residual, "max_nfe" if finite else "nonfinite")


@dataclass(frozen=True, slots=True)
class _Verdict:
    sequence: Sequence
    index: int
    row: int
    offset: int
    residual: float
    converged: bool
