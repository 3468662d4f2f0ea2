"""One call of f on the rows of many sequences, and what became of each token.

Letters: n rows of the call, D ``d_model``.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from deq_model.embedding import AdaptiveEmbedding
from deq_model.function import EquilibriumWeights
from deq_model.inference import InferenceFunction
from deq_model.int8_feed_forward import Int8FeedForward
from deq_model.model import DEQLanguageModel
from deq_model.products import Format, prepare
from deq_model.solvers.options import Method
from deq_model.solvers.rows import RowSolver
from deq_model.warm_start import WarmStart
from server.engine.calls import Calls, PackedCalls, Parts
from server.engine.graphs import PaddedCalls
from server.engine.layout import Layout, Layouts
from server.engine.ledger import Ledger, Options, Verdict
from server.engine.scheduler import Entry, Scheduler, Sequence
from server.engine.slab import Slab
from server.engine.solve import Solved
from server.engine.starts import first_states
from server.engine.transfer import sent

_PORTION = 1 << 14
"""Words embedded at once."""


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


@dataclass(frozen=True, slots=True)
class Called:
    """What a call of f has told.

    Attributes:
        layout: its rows.
        residual: of each, relative.
        verdicts: the tokens that are done.
    """

    layout: Layout
    residual: list[float]
    verdicts: list[Verdict]


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
        early_int8: bool = False,
        method: Method = "broyden",
        depth: int = 30,
        warm_start: WarmStart | None = None,
        padded: bool | None = None,
    ) -> None:
        """Makes room for the rows.

        Args:
            model: embeds and injects.
            weights: its f, folded, in full precision; they are copied.
            slab: memory of the sequences.
            max_rows: tokens that may be solved at once.
            form: number format of the products of f.
            early_int8: whether the feed-forward is one of 8-bit differences, on a CPU.
            method: of the solver.
            depth: past steps that a row remembers.
            warm_start: map to first states; None for zeros.
            padded: whether calls are of a few fixed shapes, as they must be on a GPU, and are not
                on a CPU; None for what the device is.
        """
        config = weights.config
        like = model.injection.weight
        self._padded = like.device.type != "cpu" if padded is None else padded
        self._slab, self._warm_start = slab, warm_start
        self._embed = _Table(model.embedding, like, form) if self._padded else model.embedding
        self._int8 = (
            Int8FeedForward(weights, rows=max_rows) if early_int8 and not self._padded else None
        )
        self._f = InferenceFunction(weights, form, distances=config.klen, feed_forward=self._int8)
        self._inject = prepare(model.injection.weight, model.injection.bias, form)
        capacity = max_rows + self._padded
        self._solver = RowSolver(
            method,
            capacity=capacity,
            dim=config.d_model,
            depth=depth,
            device=like.device,
            dtype=like.dtype,
        )
        self._injection = like.new_zeros(capacity, 3 * config.d_model)
        self._max_rows, self._ledger, self._layouts = max_rows, Ledger(max_rows), Layouts()
        parts = Parts(self._f, self._solver, slab, self._injection)
        self._calls: Calls = (
            PaddedCalls(parts, max_rows=max_rows, depth=depth)
            if self._padded
            else PackedCalls(parts)
        )

    @property
    def starts_warm(self) -> bool:
        """Whether solves begin at fitted first states."""
        return self._warm_start is not None

    def warm_up(self) -> None:
        """Records the graphs of streams on a GPU."""
        if isinstance(self._calls, PaddedCalls):
            self._calls.prepare(self._slab.spare)

    def enter(self, entries: Seq[Entry]) -> None:
        """Starts the solves of tokens that enter."""
        if not entries:
            return
        ids = [entry.sequence.inputs[entry.index] for entry in entries]
        both = sent(ids + [entry.row for entry in entries], self._injection.device)
        tokens, rows = both.view(2, -1)
        injection = self._inject(self._embed(tokens)).to(self._injection.dtype)
        self._injection[rows] = self._f.fold_injection(injection)
        z_init = first_states(
            self._warm_start, entries, injection, solver=self._solver, slab=self._slab
        )
        self._solver.start(rows, z_init)
        for entry in entries:
            self._ledger.begin(entry.row)

    @property
    def first_residuals(self) -> list[float]:
        """Relative residuals of the states at which solves began in the last call."""
        return self._ledger.first_residuals

    def far(self, rows: Seq[int]) -> float:
        """Largest relative residual in the last calls on rows; inf where there was none."""
        return max(self._ledger.residual(row) for row in rows)

    def standing(self, row: int) -> Tensor:
        """Where the solve in a row stands, ``(D,)``: at the state that f is asked at next."""
        return self._solver.propose(slice(row, row + 1))[0]

    def restore(self, sequence: Sequence, z_star: Tensor) -> None:
        """Puts into a sequence's memory what solving its first n tokens would; no call of f.

        Args:
            sequence: none of its tokens is accepted yet.
            z_star: ``(n, D)`` fixed points of ``sequence.inputs[:n]``.
        """
        begin = max(0, len(z_star) - self._slab.klen)
        inputs = sequence.inputs[begin : len(z_star)]
        self.rebuild(sequence.slot, inputs, z_star[begin:], start=sequence.start + begin)

    def rebuild(self, row: int, inputs: Seq[int], z_star: Tensor, *, start: int) -> None:
        """Puts fixed points ``(n, D)`` of tokens from position ``start`` on into a row's memory.

        Keys and values follow from them and the injections; n is at most a context.
        """
        slab, device = self._slab, self._injection.device
        injection = self._inject(self._embed(sent(inputs, device))).to(self._injection.dtype)
        _, key, value = self._f.channels(z_star, self._f.fold_injection(injection))
        at = torch.arange(start, start + len(z_star), device=device)
        rows = torch.full_like(at, row)
        slab.write_keys(rows, at % slab.ring, key, value)
        slab.write_states(rows, at % slab.ring, z_star)

    def step(self, scheduler: Scheduler, options: Options) -> list[Accepted]:
        """One call of f on all active rows; accepted tokens are in their memory afterwards.

        Args:
            scheduler: of the sequences that take part; it is told who is done.
            options: of each sequence.

        Returns:
            The accepted tokens, each sequence's in order.
        """
        called = self.call(options)
        accepted = self.keep(called.verdicts)
        self.leave(scheduler, called)
        return accepted

    def call(self, options: Options) -> Called:
        """One call of f on the active rows of the sequences in ``options``.

        Where it raises it may be made again, with the same sequences or fewer, once ``begin_anew``
        has been told of those.
        """
        layout = self._layouts.of([sequence for sequence in options if sequence.granted])
        if relearning := self._ledger.relearning(layout):
            self._solver.forget(sent(relearning, self._injection.device))
        new = self._choose_anchors(layout, options)
        residual = self._calls.call(
            layout, self._ledger.settled(layout, new), most_calls=self._ledger.most_calls(layout)
        )
        error = [0.0] * len(residual) if self._int8 is None else self._int8.error_by_row()
        self._ledger.note(layout, residual, error)
        return Called(layout, residual, self._ledger.judge(layout, options, residual))

    def begin_anew(self, sequences: Seq[Sequence]) -> None:
        """Has solves that a call failed amid begin again where they stand.

        Nobody knows how far the call came: some rows may have moved and others not, a history may
        be half written, an anchor may not be the one that was chosen. Where a solve stands is
        always a state to begin at, so that is all that is kept of it.
        """
        rows = [row for sequence in sequences for row in sequence.active]
        at = sent(rows, self._injection.device)
        self._solver.start(at, self._solver.propose(at))
        for row in rows:
            self._ledger.begin_anew(row)

    def keep(self, verdicts: list[Verdict]) -> list[Accepted]:
        """Puts tokens that the last call has brought to their ends into their memory.

        Where it raises nothing has changed that matters: it may be done again, also in parts.
        """
        if not verdicts:
            return []
        kept = self._calls.keep(verdicts)
        accepted = []
        for i, (verdict, least) in enumerate(zip(verdicts, kept.best_residual, strict=True)):
            sequence, solved = verdict.sequence, verdict.solved(least)
            self._slab.advance(sequence.slot, sequence.start + verdict.index + 1, solved)
            accepted.append(Accepted(sequence, verdict.index, kept.z_star[i], solved))
        return accepted

    def leave(self, scheduler: Scheduler, called: Called) -> None:
        """Has tokens that are done leave their windows, in sequences that still run."""
        self._ledger.leave(scheduler, called.layout, called.verdicts, called.residual)

    def _choose_anchors(self, layout: Layout, options: Options) -> list[bool]:
        """Sets what the feed-forward's rows are differences from; which get an anchor now."""
        if self._int8 is None:
            return [False] * len(layout.row_ids)
        exact = self._ledger.exact(layout, options)
        own = self._ledger.anchored(layout, exact)
        rows = zip(layout.row_ids, own, strict=True)
        anchors = [row if has_one else self._int8.zero for row, has_one in rows]
        self._int8.set_rows(torch.tensor(anchors), torch.tensor(exact))
        return exact


class _Table:
    """The embedding as one table, for a GPU: its clusters' tables need the host to part ids.

    It is in the format of the product behind it, which would round the embedding to that anyway.
    """

    def __init__(self, embedding: AdaptiveEmbedding, like: Tensor, form: Format) -> None:
        dtype: torch.dtype = like.dtype if like.device.type == "cpu" else getattr(torch, form)
        ids = torch.arange(embedding.edges[-1], device=like.device)
        with torch.no_grad():
            parts = [embedding(part).to(dtype) for part in ids.split(_PORTION)]
        self._table = torch.cat(parts)

    def __call__(self, tokens: Tensor) -> Tensor:
        """``(n,)`` ids to ``(n, D)``."""
        return self._table[tokens]
