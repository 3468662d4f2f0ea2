"""One call of f on the rows of many sequences, and what became of each token.

Letters: n rows of the call, D ``d_model``.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from deq_model.feed_forward import FeedForward, Int8FeedForward
from deq_model.function import EquilibriumWeights
from deq_model.inference import InferenceFunction
from deq_model.model import DEQLanguageModel
from deq_model.products import Format, prepare
from deq_model.solvers.options import Method
from deq_model.solvers.rows import RowSolver
from deq_model.warm_start import WarmStart
from server.engine.packing import Packing
from server.engine.precision import MOST_ROUGH, Costs, rough_rows, switch_residual
from server.engine.scheduler import GATE, Entry, Scheduler, Sequence
from server.engine.slab import Slab
from server.engine.solve import Solve, Solved
from server.engine.starts import first_states
from server.engine.timing import product_costs

MOST_STEP = 10.0
"""Times its residual that a last step may be long.

On trained models it is 1.3 times as long in the median and 2.5 at the 99th percentile; those that
were more than 20 times as long led away, to log-probabilities off by up to 0.5.
"""


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


@dataclass(slots=True)
class _Row:
    """What is known of the solve in a row.

    Attributes:
        nfe: calls of f on it.
        far: whether it is far enough from its fixed point for a rough f.
        rough: whether its last call was of the rough f.
        settled: whether its history is what it was in its last call, were it the first of its
            window.
    """

    nfe: int = 0
    far: bool = True
    rough: bool = False
    settled: bool = True


class Batch:
    """The solver's side of the engine: rows in, accepted tokens out."""

    def __init__(
        self,
        model: DEQLanguageModel,
        weights: EquilibriumWeights,
        slab: Slab,
        *,
        max_rows: int,
        form: Format,
        rough: bool = False,
        method: Method = "broyden",
        depth: int = 30,
        warm_start: WarmStart | None = None,
    ) -> None:
        """Makes room for the rows.

        Args:
            model: embeds and injects.
            weights: its f, folded, in full precision; they are copied.
            slab: memory of the sequences.
            max_rows: tokens that may be solved at once.
            form: number format of the products of f.
            rough: whether rows far from their fixed point may be computed in 8 bits.
            method: of the solver.
            depth: past steps that a row remembers.
            warm_start: map to first states; None for zeros.
        """
        config = weights.config
        like = model.injection.weight
        self._embed, self._slab, self._warm_start = model.embedding, slab, warm_start
        self._f = InferenceFunction(weights, form, distances=config.klen)
        self._inject = prepare(model.injection.weight, model.injection.bias, form)
        self._rough = Int8FeedForward(weights) if rough else None
        self._costs: Costs | None = None
        self._solver = RowSolver(
            method,
            capacity=max_rows,
            dim=config.d_model,
            depth=depth,
            device=like.device,
            dtype=like.dtype,
        )
        self._injection = like.new_zeros(max_rows, 3 * config.d_model)
        self._rows = [_Row() for _ in range(max_rows)]
        self._packing: Packing | None = None
        self._packed: list[tuple[int, int, int]] = []

    @property
    def starts_warm(self) -> bool:
        """Whether solves begin at fitted first states."""
        return self._warm_start is not None

    def measure_feed_forward(self) -> None:
        """Times it in both formats, if there are two: until then all rows are accurate."""
        if self._rough is not None:
            sample = torch.randn(len(self._rows), self._f.config.d_model)
            self._costs = Costs(
                accurate=product_costs(self._f.feed_forward, sample),
                rough=product_costs(self._rough, sample),
            )

    def enter(self, entries: Seq[Entry]) -> None:
        """Starts the solves of tokens that enter."""
        if not entries:
            return
        device = self._injection.device
        tokens = torch.tensor([e.sequence.inputs[e.index] for e in entries], device=device)
        rows = torch.tensor([e.row for e in entries], device=device)
        injection = self._inject(self._embed(tokens)).to(self._injection.dtype)
        self._injection[rows] = self._f.fold_injection(injection)
        z_init = first_states(
            self._warm_start, entries, injection, solver=self._solver, slab=self._slab
        )
        self._solver.start(rows, z_init)
        for entry in entries:
            self._rows[entry.row] = _Row()

    def restore(self, sequence: Sequence, z_star: Tensor) -> None:
        """Puts into a sequence's memory what solving its first n tokens would; no call of f.

        Args:
            sequence: none of its tokens is accepted yet.
            z_star: ``(n, D)`` fixed points of ``sequence.inputs[:n]``.
        """
        slab, device = self._slab, self._injection.device
        begin = max(0, len(z_star) - slab.klen)
        tokens = torch.tensor(sequence.inputs[begin : len(z_star)], device=device)
        injection = self._inject(self._embed(tokens)).to(self._injection.dtype)
        _, key, value = self._f.channels(z_star[begin:], self._f.fold_injection(injection))
        at = torch.arange(begin, len(z_star), device=device) + sequence.start
        rows = torch.full_like(at, sequence.slot)
        slab.write_keys(rows, at % slab.ring, key, value)
        slab.write_states(rows, at % slab.ring, z_star[begin:])

    def step(self, scheduler: Scheduler, options: dict[Sequence, Solve]) -> list[Accepted]:
        """One call of f on all active rows; accepted tokens are in their memory afterwards.

        Args:
            scheduler: whose running sequences take part; it is told who is done.
            options: of each sequence.

        Returns:
            The accepted tokens, each sequence's in order.
        """
        packing = self._packing_of(list(scheduler.active))
        rough = self._choose(packing, options)
        z = self._solver.propose(packing.rows)
        f_z = self._call(packing, z, rough)
        settled = self._settled(packing, set(rough))
        seen = self._solver.observe(packing.rows, f_z, settled=settled)
        residual = seen.residual_rel.tolist()
        self._note(packing, options, residual)
        verdicts = self._judge(packing, options, residual)
        accepted = self._store(packing, z, verdicts)
        self._leave(scheduler, packing, verdicts, residual)
        return accepted

    def _packing_of(self, sequences: list[Sequence]) -> Packing:
        """The rows' places; as long as nobody moves, those of the call before."""
        sequences.sort(key=lambda sequence: sequence.slot)
        now = [(s.slot, s.start + s.accepted, len(s.active)) for s in sequences]
        if self._packing is None or now != self._packed or self._packing.sequences != sequences:
            self._packing, self._packed = Packing(sequences, self._slab, self._f.config.klen), now
        return self._packing

    def _choose(self, packing: Packing, options: dict[Sequence, Solve]) -> list[int]:
        """Rows of the call to compute roughly."""
        if self._rough is None or self._costs is None:
            return []
        wishes = []
        for sequence in packing.sequences:
            # What a token is accepted with when its budget is spent must be of the accurate f.
            most = min(options[sequence].max_nfe - 1, MOST_ROUGH)
            rows = (self._rows[row] for row in sequence.active)
            wishes += [row.far and row.nfe < most for row in rows]
        return rough_rows(wishes, self._costs)

    def _call(self, packing: Packing, z: Tensor, rough: list[int]) -> Tensor:
        """f(z), with some rows' feed-forward in 8 bits."""
        query, key, value = self._f.channels(z, self._injection[packing.rows])
        mixed = packing.attend(self._f, query, key, value)
        if not rough:
            return self._f.finish(mixed, z, self._f.feed_forward)
        assert self._rough is not None
        feed_forward: FeedForward = self._rough
        if len(rough) < len(z):
            feed_forward = _Mixed(self._rough, self._f.feed_forward, rough, len(z))
        return self._f.finish(mixed, z, feed_forward)

    def _settled(self, packing: Packing, rough: set[int]) -> Tensor:
        """Which rows' f is the one of their last call: the first of a window, mostly."""
        settled = [False] * len(packing.row_ids)
        for offset in packing.offsets:
            settled[offset] = self._rows[packing.row_ids[offset]].settled
        for i, row_id in enumerate(packing.row_ids):
            row = self._rows[row_id]
            settled[i] = settled[i] and (row.nfe == 0 or row.rough == (i in rough))
            row.rough = i in rough
        return torch.tensor(settled, device=self._injection.device)

    def _note(
        self, packing: Packing, options: dict[Sequence, Solve], residual: list[float]
    ) -> None:
        """Counts the call, and sees which rows have come near their fixed points."""
        at = 0
        for sequence in packing.sequences:
            switch = switch_residual(options[sequence].tol)
            for row_id in sequence.active:
                row = self._rows[row_id]
                row.nfe += 1
                row.far = row.far and residual[at] > switch
                row.settled = True
                at += 1

    def _judge(
        self,
        packing: Packing,
        options: dict[Sequence, Solve],
        residual: list[float],
    ) -> list["_Verdict"]:
        """The prefixes of the windows that are done after this call.

        Once a token is accepted at another state than the one this call measured, what the call
        says of later tokens is about a different history: they wait for the next call, unless
        their own budget is spent.
        """
        verdicts: list[_Verdict] = []
        for sequence, offset in zip(packing.sequences, packing.offsets, strict=True):
            solve, measured = options[sequence], True
            for i, row in enumerate(sequence.active):
                at = offset + i
                state = self._rows[row]
                converged = measured and not state.rough and residual[at] <= solve.tol
                if not converged and state.nfe < solve.max_nfe:
                    break
                index = sequence.accepted + i
                verdicts.append(_Verdict(sequence, index, row, at, residual[at], converged))
                measured = measured and converged
        return verdicts

    def _store(self, packing: Packing, z: Tensor, verdicts: list["_Verdict"]) -> list[Accepted]:
        if not verdicts:
            return []
        device = self._injection.device
        at = torch.tensor([v.offset for v in verdicts], device=device)
        rows = packing.rows[at]
        work_rows, entries = packing.work_rows[at], packing.entries[at]
        best = self._solver.best(rows)
        residual = torch.tensor([v.residual for v in verdicts], device=device)
        z_star = self._onward(z[at], rows, residual)
        if not all(v.converged for v in verdicts):
            converged = torch.tensor([v.converged for v in verdicts], device=device)
            z_star = torch.where(converged[:, None], z_star, best.z)
        # What the work area holds for them is of the state that this call measured.
        _, key, value = self._f.channels(z_star, self._injection[rows])
        self._slab.write_keys(work_rows, entries, key, value)
        self._slab.write_states(work_rows, entries, z_star)
        accepted = []
        for i, (verdict, least) in enumerate(
            zip(verdicts, best.residual_rel.tolist(), strict=True)
        ):
            sequence, solved = verdict.sequence, self._solved(verdict, least)
            length = sequence.start + verdict.index + 1
            self._slab.advance(sequence.slot, length, solved)
            accepted.append(Accepted(sequence, verdict.index, z_star[i], solved))
        return accepted

    def _onward(self, z: Tensor, rows: Tensor, residual: Tensor) -> Tensor:
        """The states to accept of rows that have converged at z ``(n, D)``.

        The call has told where to go next, and that is nearer to the fixed point than where it was;
        unless the step is out of proportion to the residual, by a history that is no longer true.
        """
        onward = self._solver.propose(rows)
        step = (onward - z).norm(dim=1)
        wild = step > MOST_STEP * residual * z.norm(dim=1)
        return torch.where(wild[:, None], z, onward)

    def _solved(self, verdict: "_Verdict", best_residual: float) -> Solved:
        nfe = self._rows[verdict.row].nfe
        if verdict.converged:
            return Solved(nfe, verdict.residual, "converged")
        finite = best_residual != float("inf")
        return Solved(nfe, best_residual, "max_nfe" if finite else "nonfinite")

    def _leave(
        self,
        scheduler: Scheduler,
        packing: Packing,
        verdicts: list["_Verdict"],
        residual: list[float],
    ) -> None:
        """Tells the scheduler who is done, and who is near."""
        done = dict.fromkeys(packing.sequences, 0)
        for verdict in verdicts:
            done[verdict.sequence] += 1
        for (sequence, count), offset in zip(done.items(), packing.offsets, strict=True):
            behind = residual[offset + count : offset + sequence.granted]
            near = next((i for i, size in enumerate(behind) if size > GATE), len(behind))
            scheduler.accept(sequence, count, near=near)
        # What the next row saw last was f behind another state than the one accepted, if that was
        # not the one of this call, or if the row rested.
        called = set(packing.row_ids)
        for verdict in verdicts:
            rows = verdict.sequence.rows
            if rows and not (verdict.converged and rows[0] in called):
                self._rows[rows[0]].settled = False


@dataclass(frozen=True, slots=True)
class _Verdict:
    sequence: Sequence
    index: int
    row: int
    offset: int
    residual: float
    converged: bool


class _Mixed:
    """A feed-forward that is rough in some rows of a call."""

    def __init__(self, rough: FeedForward, accurate: FeedForward, which: list[int], n: int) -> None:
        self.nbytes = rough.nbytes + accurate.nbytes
        self._rough, self._accurate = rough, accurate
        chosen = set(which)
        self._which = torch.tensor(which)
        self._others = torch.tensor([i for i in range(n) if i not in chosen])

    def __call__(self, x: Tensor) -> Tensor:
        """Both, each on its own rows."""
        out = torch.empty_like(x)
        out[self._which] = self._rough(x[self._which])
        out[self._others] = self._accurate(x[self._others])
        return out
