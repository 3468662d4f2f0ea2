"""Where the solve of a token that enters begins: at zeros, or where a fitted map says."""

from collections.abc import Sequence as Seq

from torch import Tensor

from deq_model.solvers.rows import RowSolver
from deq_model.warm_start import WarmStart
from server.engine.scheduler import Entry, Sequence
from server.engine.slab import Slab
from server.engine.transfer import sent


def first_states(
    warm_start: WarmStart | None,
    entries: Seq[Entry],
    injection: Tensor,
    *,
    solver: RowSolver,
    slab: Slab,
) -> Tensor:
    """First states of tokens that enter, ``(n, D)``.

    The state before a token is the one its predecessor was accepted at, or where that one's solve
    stands, or that one's own first state if both enter now; zeros before the first token of all.

    Args:
        warm_start: the map; None for zeros.
        entries: the n tokens, those of a sequence in their order, in its ``rows`` already.
        injection: ``(n, 3·D)``.
        solver: of the rows.
        slab: of the accepted tokens.
    """
    previous = injection.new_zeros(len(entries), injection.shape[1] // 3)
    if warm_start is None:
        return previous
    parents, moving, settled = _predecessors(entries, slab)
    device = injection.device
    if moving:
        previous[sent(list(moving), device)] = solver.propose(sent(list(moving.values()), device))
    if settled:
        previous[sent(list(settled), device)] = slab.last_states(list(settled.values()))
    return warm_start.chain(injection, previous, parents)


def _predecessors(
    entries: Seq[Entry], slab: Slab
) -> tuple[list[int], dict[int, int], dict[int, int]]:
    """Parents among the entries (−1 for none), and by index the rows and the slots of others."""
    parents, moving, settled = [-1] * len(entries), {}, {}
    latest: dict[Sequence, int] = {}
    for i, entry in enumerate(entries):
        sequence = entry.sequence
        behind = entry.index - sequence.accepted
        if sequence in latest:
            parents[i] = latest[sequence]
        elif behind > 0:
            moving[i] = sequence.rows[behind - 1]
        elif slab.length(sequence.slot) > 0:
            settled[i] = sequence.slot
        latest[sequence] = i
    return parents, moving, settled
