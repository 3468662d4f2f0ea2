"""Attention with relative positions (arXiv 1901.02860), over dense or padded groups of queries.

Letters: R groups (samples, or requests), W queries of a group, K keys, H heads, d channels of a
head, T rows of the position table.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def inverse_frequency(d_model: int) -> Tensor:
    """``ω_j = 10000^(−2j/d_model)``: ``(d_model/2,)`` float64 on the CPU."""
    exponent = torch.arange(0, d_model, 2, dtype=torch.float64, device="cpu") / d_model
    return 1 / 10000**exponent


def sinusoid_table(
    length: int, d_model: int, *, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """``[sin(δ ω); cos(δ ω)]`` for δ = 0 … length − 1.

    Returns:
        ``(length, d_model)``, sines first. Computed in float64, then rounded once.
    """
    frequency = inverse_frequency(d_model).to(device)
    angle = torch.arange(length, device=device, dtype=torch.float64)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1).to(dtype)


@dataclass(frozen=True, slots=True)
class Span:
    """Who sees whom, and how far apart they are.

    Attributes:
        delta: ``(R or 1, W, K)`` int64, query position − key position; 0 for keys that follow.
        visible: ``(R or 1, W, K)`` bool; every query sees at least one key.
        masked: whether any key is hidden from any query.
    """

    delta: Tensor
    visible: Tensor
    masked: bool


def span(query_position: Tensor, key_position: Tensor, *, first: Tensor, reach: int) -> Span:
    """The span of queries over keys by their positions.

    Args:
        query_position: ``(R or 1, W)`` int64.
        key_position: ``(R or 1, K)`` int64; negative marks a slot that holds no key.
        first: ``(R or 1, W)`` int64, the first position a query's context has.
        reach: keys at this distance or further are masked.
    """
    distance = query_position[:, :, None] - key_position[:, None, :]
    visible = (distance >= 0) & (distance < reach) & (key_position[:, None, :] >= 0)
    visible = visible & (key_position[:, None, :] >= first[:, :, None])
    return Span(distance.clamp(min=0), visible, not bool(visible.all()))


def relative_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    positions: Tensor,
    r_w_bias: Tensor,
    r_r_bias: Tensor,
    span: Span,
    dropout: Tensor | None = None,
) -> Tensor:
    """``softmax(((q + r_w)·k + (q + r_r)·R(δ)) / √d) v``.

    Args:
        query: ``(R, W, H, d)``.
        key: ``(R, K, H, d)``.
        value: ``(R, K, H, d)``.
        positions: ``(T, H, d)``, R(δ) by row, T above every visible δ.
        r_w_bias: ``(H, d)``.
        r_r_bias: ``(H, d)``.
        span: which keys each query sees, and at what distance.
        dropout: ``(R, H, W, K)`` mask on the attention weights, or None.

    Returns:
        ``(R, W, H·d)``. Scores are rounded to float32 where a mask is applied, also in a float64
        model: the published f does so, and its numbers are reproduced to 1e-10 only that way.
    """
    groups, width, heads, _ = query.shape
    by_distance = torch.einsum("rwhd,thd->rhwt", query + r_r_bias, positions)
    delta = span.delta.clamp(max=positions.shape[0] - 1)
    index = delta[:, None].expand(groups, heads, width, key.shape[1])
    shifted = by_distance.gather(-1, index)
    return _mixed(query + r_w_bias, key, value, shifted, span=span, dropout=dropout)


def sliding_positions(positions: Tensor) -> Tensor:
    """``block_attention``'s form of the table R(δ) for δ = 0 … K − 1: ``(K + 1, H, d)``.

    Distances fall, and a row of zeros follows that only masked scores read.
    """
    return torch.cat([positions.flip(0), torch.zeros_like(positions[:1])])


def block_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    positions: Tensor,
    r_w_bias: Tensor,
    r_r_bias: Tensor,
    span: Span,
    dropout: Tensor | None = None,
) -> Tensor:
    """``relative_attention`` of queries at the last W of K consecutive positions.

    Query w's score by distance to key k stands at column ``W − 1 − w + k`` of its row, in a table
    by falling distance: with rows of K + 1 columns that is one slice of the flattened scores, and
    nothing needs to be gathered, nor scattered on the way back.

    Args:
        query: ``(R, W, H, d)``.
        key: ``(R, K, H, d)``.
        value: ``(R, K, H, d)``.
        positions: ``(K + 1, H, d)``, from ``sliding_positions``.
        r_w_bias: ``(H, d)``.
        r_r_bias: ``(H, d)``.
        span: which keys each query sees.
        dropout: ``(R, H, W, K)`` mask on the attention weights, or None.

    Returns:
        ``(R, W, H·d)``.
    """
    width, length = query.shape[1], key.shape[1]
    by_distance = torch.einsum("rwhd,thd->rhwt", query + r_r_bias, positions).flatten(-2)
    shifted = by_distance[..., width - 1 : width - 1 + width * length].unflatten(
        -1, (width, length)
    )
    return _mixed(query + r_w_bias, key, value, shifted, span=span, dropout=dropout)


def _mixed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    by_distance: Tensor,
    *,
    span: Span,
    dropout: Tensor | None,
) -> Tensor:
    """Values by the softmax of both scores; ``by_distance`` is ``(R, H, W, K)``."""
    content = torch.einsum("rwhd,rkhd->rhwk", query, key)
    score = (content + by_distance) * query.shape[-1] ** -0.5
    if span.masked:
        score = score.float().masked_fill(~span.visible[:, None], float("-inf"))
    weight = score.to(value.dtype).softmax(-1)
    if dropout is not None:
        weight = weight * dropout
    return torch.einsum("rhwk,rkhd->rwhd", weight, value).flatten(-2)
