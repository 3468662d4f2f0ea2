"""Attention of one row a sequence as one GPU kernel, over its ring where it lies.

It needs Triton. Operations would copy each ring, or read all that lie between, and go over what a
query does not see.

Letters: n rows, H heads, d channels of a head, D = H·d, T distances.
"""

import torch
from torch import Tensor

try:
    import triton
    from triton import language as tl
except ImportError:  # torch for CPUs comes without it
    triton = None

_BLOCK = 64
"""Entries of a ring looked at together."""
_WARPS = 8


if triton is not None:

    @triton.jit  # type: ignore[untyped-decorator]
    def _kernel(  # type: ignore[no-untyped-def]
        mixed,
        query,
        by_distance,
        keys,
        values,
        work,
        entries,
        reaches,
        n,
        n_head,
        ring,
        columns,
        row_stride,
        D_HEAD: tl.constexpr,
        BLOCK: tl.constexpr,
        WIDTH: tl.constexpr,
    ):
        # One program is one head of one row: a softmax over the ring, part by part.
        i = tl.program_id(0).to(tl.int64)
        head = tl.program_id(1)
        own = tl.load(work + i)
        entry = tl.load(entries + i).to(tl.int32)
        reach = tl.load(reaches + i).to(tl.int32)
        channel = tl.arange(0, WIDTH)
        inside = channel < D_HEAD
        q = tl.load(query + i * row_stride + head * D_HEAD + channel, mask=inside, other=0.0)
        begin = (own * n_head + head) * ring * D_HEAD
        scores_at = by_distance + (head * n + i) * columns

        # What is largest so far; finite from the start, so that hidden parts leave no NaN.
        largest = tl.sum(q * 0.0, axis=0) - 1e30
        total = tl.sum(q * 0.0, axis=0)
        result = q * 0.0
        for first in range(0, ring, BLOCK):
            at = first + tl.arange(0, BLOCK)
            distance = entry - at
            distance = tl.where(distance < 0, distance + ring, distance)
            seen = (distance <= reach) & (at < ring)
            both = seen[:, None] & inside[None, :]
            cells = begin + (at[:, None] * D_HEAD + channel[None, :])
            key = tl.load(keys + cells, mask=both, other=0.0)
            score = tl.sum(key * q[None, :], axis=1)
            score += tl.load(scores_at + distance, mask=seen, other=0.0)
            score = tl.where(seen, score, float("-inf"))
            now = tl.maximum(largest, tl.max(score, axis=0))
            weight = tl.exp(score - now)
            before = tl.exp(largest - now)
            value = tl.load(values + cells, mask=both, other=0.0)
            result = result * before + tl.sum(weight[:, None] * value, axis=0)
            total = total * before + tl.sum(weight, axis=0)
            largest = now
        tl.store(mixed + (i * n_head + head) * D_HEAD + channel, result / total, mask=inside)


def can_attend(device: torch.device) -> bool:
    """Whether there is a kernel for a device."""
    return triton is not None and device.type == "cuda"


def attend(
    query: Tensor,
    by_distance: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    work: Tensor,
    entries: Tensor,
    reach: Tensor,
) -> Tensor:
    """Values by the softmax of the scores, ``(n, D)``.

    Args:
        query: ``(n, H, d)``, its heads side by side.
        by_distance: ``(H, n, T + 1)``, the part of the scores that depends on distances alone.
        key: ``(rows, H, ring, d)``, the work area's, those of the n rows included.
        value: the same.
        work: ``(n,)`` int64, rows of the work area.
        entries: ``(n,)`` int64, where in their rings the rows are.
        reach: ``(n,)`` int64, the furthest distance that a row sees.
    """
    n, n_head, d_head = query.shape
    assert query.stride()[1:] == (d_head, 1), "the heads of a query must lie side by side"
    mixed = query.new_empty(n, n_head * d_head)
    _kernel[(n, n_head)](
        mixed,
        query,
        by_distance.contiguous(),
        key,
        value,
        work,
        entries,
        reach,
        n,
        n_head,
        key.shape[2],
        by_distance.shape[2],
        query.stride(0),
        D_HEAD=d_head,
        BLOCK=_BLOCK,
        WIDTH=1 << (d_head - 1).bit_length(),
        num_warps=_WARPS,
    )
    return mixed
