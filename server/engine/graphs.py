"""Calls of f of a few fixed shapes: on a GPU each is recorded once as a graph and replayed.

Launching a call's operations one by one takes a GPU's host longer than the GPU needs for them. A
replay is one launch; what it reads and writes are the same buffers each time, the *inputs* are sent
in one copy when they change, and the residuals come back in one copy, the only thing that the host
waits for. Everything here is a function of such buffers and runs as well without a graph.

Letters: N places of a call in G groups of W, H ``n_head``, d ``d_head``, D ``d_model``, T entries
of a ring, m accepted tokens in M places.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from server.engine.calls import Kept, Parts, onward
from server.engine.layout import Layout
from server.engine.ledger import Verdict
from server.engine.padded import Arrangement, Shape, arrange, most_places, padded, stream_shapes
from server.engine.ring_attention import attend, can_attend
from server.engine.transfer import sent

SHORT = 8
"""Steps that solves have made at most in calls that read no more of the solver's history."""

_WARM_UPS = 2
"""Runs before a graph is recorded: libraries make what they need when they are first called."""


class Graphs:
    """Records functions of fixed buffers as graphs of one pool of memory.

    What a graph computes on its way is forgotten when it ends, and no two run at once, so that all
    may use the same memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._pool = torch.cuda.graph_pool_handle()

    def of(self, act: Callable[[], None]) -> Callable[[], None]:
        """What does the same as ``act``, which is run a few times if the device is a GPU."""
        if self._device.type != "cuda":
            return act
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    act()
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads may use the device meanwhile: that of another model's engine, say.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                act()
        return graph.replay


class Outputs:
    """What calls leave, of whatever shape.

    Attributes:
        z: ``(places, D)``, the states that the last call measured.
        residual: ``(places, 2)``, relative: there, and the least that was seen of each row.
    """

    def __init__(self, parts: Parts, places: int) -> None:
        dim = parts.injection.shape[1] // 3
        self.z = parts.injection.new_zeros(places, dim)
        self.residual = parts.injection.new_zeros(places, 2)


class PaddedCall:
    """A call of f of one shape, and the solver's step after it.

    Places that no row takes are of the spare rows of solver and work area, which nobody reads.
    """

    def __init__(
        self, parts: Parts, shape: Shape, outputs: Outputs, *, most: int, in_place: bool = False
    ) -> None:
        """Takes the buffers; all places are empty.

        Args:
            parts: what to work on; the last rows of solver and work area are spare.
            shape: of the call.
            outputs: where to leave what comes out.
            most: bound on the calls that a row has had before.
            in_place: whether groups of one place read their rings by the kernel for that.
        """
        self._parts, self._shape, self._outputs, self._most = parts, shape, outputs, most
        self._in_place = in_place and shape.width == 1
        slab, n = parts.slab, shape.rows
        device = slab.key.device
        sizes = [n] * 5 + [shape.groups]
        self._inputs = sent(self._values(self._empty()), device)
        parted = self._inputs.split(sizes)
        self._rows, self._work, self._entries, self._reach, self._settled, self._groups = parted
        self._ring = torch.arange(slab.ring, device=device)
        self._distance = torch.zeros(n, slab.ring, dtype=torch.long, device=device)
        self._known = torch.zeros(n, dtype=torch.bool, device=device)

    def _empty(self) -> list[list[int]]:
        """Rows, work rows, entries, reaches and marks of empty places, and their groups."""
        n, spare = self._shape.rows, self._parts.slab.spare
        rows = [len(self._parts.injection) - 1] * n
        return [rows, [spare] * n, [0] * n, [0] * n, [0] * n, [spare] * self._shape.groups]

    @staticmethod
    def _values(parted: list[list[int]]) -> list[int]:
        return [value for part in parted for value in part]

    def send(self, layout: Layout, arrangement: Arrangement, settled: list[bool]) -> None:
        """Sends the rows of a call, in one copy."""
        slab = self._parts.slab
        config = slab.config
        rows, work, entries, reach, known, _ = parted = self._empty()
        for i, place in enumerate(arrangement.places):
            at = layout.positions[i]
            rows[place], work[place] = layout.row_ids[i], layout.work[i]
            entries[place] = at % slab.ring
            # As in ``Packing``: what is within the query's context.
            context = at % config.tgt_len + config.mem_len
            reach[place] = min(context, config.attention_span - 1, at)
            known[place] = settled[i]
        parted[5] = arrangement.work
        self._inputs.copy_(sent(self._values(parted), self._inputs.device), non_blocking=True)

    def lay(self) -> None:
        """Makes of the inputs what does not change while nobody moves."""
        self._known.copy_(self._settled != 0)
        if self._in_place:
            return
        distance = (self._entries[:, None] - self._ring) % len(self._ring)
        seen = distance <= self._reach[:, None]
        self._distance.copy_(torch.where(seen, distance, self._parts.f.hidden))

    def make(self) -> None:
        """The call."""
        parts, rows, n = self._parts, self._rows, self._shape.rows
        z = parts.solver.propose(rows)
        query, key, value = parts.f.channels(z, parts.injection[rows])
        parts.slab.write_keys(self._work, self._entries, key, value)
        f_z = parts.f.finish(self._attend(query), z)
        parts.solver.advance(
            rows,
            f_z,
            settled=self._known,
            most=self._most,
            seen=self._outputs.residual[:n],
            measured=self._outputs.z[:n],
        )

    def _attend(self, query: Tensor) -> Tensor:
        """Values by the softmax of the scores, over whole rings: ``(N, H, d)`` to ``(N, D)``."""
        slab, groups = self._parts.slab, self._shape.groups
        n, n_head, d_head = query.shape
        by_distance = self._parts.f.by_distance(query)
        if self._in_place:
            where = {"work": self._groups, "entries": self._entries, "reach": self._reach}
            return attend(query, by_distance, slab.key, slab.value, **where)
        scores = by_distance.gather(2, self._distance.expand(n_head, n, -1))
        lifted = scores.view(n_head, groups, -1, slab.ring).transpose(0, 1)
        q = query.view(groups, -1, n_head, d_head).transpose(1, 2)
        dense = self._shape.dense
        key = slab.key[:groups] if dense else slab.key[self._groups]
        value = slab.value[:groups] if dense else slab.value[self._groups]
        weight = (q @ key.transpose(2, 3)).add_(lifted).softmax(-1)
        return (weight @ value).transpose(1, 2).reshape(n, n_head * d_head)


class PaddedKeep:
    """What is to be kept of up to M tokens that a call has brought to their ends.

    Attributes:
        z_star: ``(M, D)``, the states they are accepted at.
    """

    def __init__(self, parts: Parts, size: int, outputs: Outputs) -> None:
        """Takes the buffers, for M = ``size`` tokens; all places are empty."""
        self._parts, self._size, self._outputs = parts, size, outputs
        self._inputs = sent(self._values([]), parts.slab.key.device)
        parted = self._inputs.split(size)
        self._rows, self._work, self._entries, self._places, self._converged = parted
        self.z_star = outputs.z.new_zeros(size, outputs.z.shape[1])

    def _values(self, tokens: list[tuple[int, int, int, int, int]]) -> list[int]:
        empty = (len(self._parts.injection) - 1, self._parts.slab.spare, 0, 0, 1)
        full = tokens + [empty] * (self._size - len(tokens))
        return [value for part in zip(*full, strict=True) for value in part]

    def send(self, tokens: list[tuple[int, int, int, int, int]]) -> None:
        """Sends tokens in one copy: solver row, work row, entry, place, whether converged."""
        self._inputs.copy_(sent(self._values(tokens), self._inputs.device), non_blocking=True)

    def make(self) -> None:
        """Puts the tokens into the work area, as ``PackedCalls.keep`` does."""
        parts, rows, at = self._parts, self._rows, self._places
        z, residual = self._outputs.z[at], self._outputs.residual[at, 0]
        further = onward(z, parts.solver.propose(rows), residual)
        converged = (self._converged != 0)[:, None]
        z_star = torch.where(converged, further, parts.solver.best(rows).z)
        _, key, value = parts.f.channels(z_star, parts.injection[rows])
        parts.slab.write_keys(self._work, self._entries, key, value)
        parts.slab.write_states(self._work, self._entries, z_star)
        self.z_star.copy_(z_star)


class PaddedCalls:
    """Makes calls of f of as few shapes as will do; see ``Calls``."""

    def __init__(self, parts: Parts, *, max_rows: int, depth: int) -> None:
        """Makes nothing yet: a shape is recorded when it is first wanted, or by ``prepare``.

        Args:
            parts: what to work on; solver and injections have ``max_rows`` rows and a spare one.
            max_rows: of a call.
            depth: of the solver.
        """
        self._parts, self._max_rows = parts, max_rows
        # A kernel reads as much of a row's history as there is.
        self._mosts = [depth] if parts.solver.is_fused else sorted({min(SHORT, depth), depth})
        device = parts.slab.key.device
        self._graphs, self._in_place = Graphs(device), can_attend(device)
        self._outputs = Outputs(parts, most_places(max_rows))
        self._calls: dict[tuple[Shape, int], _Recorded] = {}
        self._keeps: dict[int, tuple[PaddedKeep, Callable[[], None]]] = {}
        self._layout: Layout | None = None
        self._arrangement: Arrangement
        self._residual: list[list[float]] = []

    def prepare(self, running: int) -> None:
        """Records what calls of one row each of up to ``running`` sequences need."""
        for shape in stream_shapes(running, in_place=self._in_place):
            for most in self._mosts:
                self._recorded(shape, most)
            self._keep_of(shape.rows)

    def call(self, layout: Layout, settled: list[bool], *, most_calls: int) -> list[float]:
        """See ``Calls``."""
        if layout is not self._layout:
            self._arrangement = arrange(
                layout,
                work_rows=self._parts.slab.spare + 1,
                max_rows=self._max_rows,
                in_place=self._in_place,
            )
            self._layout = layout  # last: what fails before is to be done again
        most = next((m for m in self._mosts if m >= most_calls), self._mosts[-1])
        recorded = self._recorded(self._arrangement.shape, most)
        recorded.run(layout, self._arrangement, settled)
        # The one thing that the host waits for.
        self._residual = self._outputs.residual[: self._arrangement.shape.rows].tolist()
        return [self._residual[place][0] for place in self._arrangement.places]

    def keep(self, verdicts: list[Verdict]) -> Kept:
        """See ``Calls``."""
        layout, places, ring = self._layout, self._arrangement.places, self._parts.slab.ring
        assert layout is not None, "there was no call"
        keep, run = self._keep_of(padded(len(verdicts)))
        keep.send(
            [
                (
                    verdict.row,
                    verdict.sequence.slot,
                    layout.positions[verdict.offset] % ring,
                    places[verdict.offset],
                    verdict.converged,
                )
                for verdict in verdicts
            ]
        )
        run()
        # A copy, since others hold on to states, and the next call's come to the same place.
        z_star = keep.z_star[: len(verdicts)].clone()
        return Kept(z_star, [self._residual[places[v.offset]][1] for v in verdicts])

    def _recorded(self, shape: Shape, most: int) -> "_Recorded":
        if (shape, most) not in self._calls:
            call = PaddedCall(self._parts, shape, self._outputs, most=most, in_place=self._in_place)
            self._calls[shape, most] = _Recorded(call, self._graphs)
        return self._calls[shape, most]

    def _keep_of(self, size: int) -> tuple[PaddedKeep, Callable[[], None]]:
        if size not in self._keeps:
            keep = PaddedKeep(self._parts, size, self._outputs)
            self._keeps[size] = keep, self._graphs.of(keep.make)
        return self._keeps[size]


class _Recorded:
    """A padded call with what it was sent last."""

    def __init__(self, call: PaddedCall, graphs: Graphs) -> None:
        self._call = call
        self._lay, self._make = graphs.of(call.lay), graphs.of(call.make)
        self._sent: tuple[Layout, list[bool]] | None = None

    def run(self, layout: Layout, arrangement: Arrangement, settled: list[bool]) -> None:
        """Sends what has changed, and makes the call."""
        last = self._sent
        if last is None or last[0] is not layout or last[1] != settled:
            self._sent = None
            self._call.send(layout, arrangement, settled)
            self._lay()
            self._sent = layout, settled
        self._make()
