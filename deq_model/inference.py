"""f for inference: weights that stay, prepared once; rows of any requests packed into one matrix.

It computes what ``EquilibriumWeights`` does, with constants multiplied out. With s = 1/√d_head, the
query's rows of W_qkv and the query's third of the injection are scaled by s, and s·r_w is part of
the injection, so that with q' = s (q + r_w) a score is ``q'·k + q'·R(δ) + s (r_r − r_w)·R(δ)``.

Letters: n rows, D ``d_model``, H ``n_head``, d ``d_head``, T distances.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from deq_model.feed_forward import FeedForward, PreparedFeedForward
from deq_model.function import LAYER_NORM_EPS, EquilibriumWeights
from deq_model.products import Format, prepare


@dataclass(frozen=True, slots=True)
class DistanceTable:
    """What distances add to scores, as a loop over keys reads it.

    Attributes:
        positions: ``(H, T, d)``, to be multiplied by the query.
        constant: ``(H, T)``, whatever the query.
    """

    positions: Tensor
    constant: Tensor


class InferenceFunction:
    """The parts of f between which a caller does the attention.

    Attributes:
        feed_forward: in the number format of the other products, or the caller's.
        nbytes: of the weights that one call reads.
    """

    def __init__(
        self,
        weights: EquilibriumWeights,
        form: Format,
        *,
        distances: int,
        feed_forward: FeedForward | None = None,
    ) -> None:
        """Prepares folded weights, which are in the dtype of states and on the device to be used.

        Args:
            weights: in full precision; they are copied.
            form: number format of the products.
            distances: T; no query may see a key at this distance or further.
            feed_forward: another one than the weights'; it has their place in ``nbytes``.
        """
        config = weights.config
        self.config, self._d_model = config, config.d_model
        self._scale = config.d_head**-0.5
        qkv = weights.qkv.detach().clone()
        qkv[: self._d_model] *= self._scale
        self._qkv = prepare(qkv, None, form)
        self._o = prepare(weights.o, weights.o_bias, form)
        self.feed_forward = feed_forward or PreparedFeedForward(weights, form)
        self.nbytes = self._qkv.nbytes + self._o.nbytes + self.feed_forward.nbytes
        self._query_bias = (self._scale * weights.r_w_bias).detach().flatten()
        self._set_positions(weights, distances)

    def _set_positions(self, weights: EquilibriumWeights, distances: int) -> None:
        table = weights.position_table(distances, weights.qkv.dtype).detach().permute(1, 2, 0)
        between = self._scale * (weights.r_r_bias - weights.r_w_bias).detach()
        constant = between[:, None].to(table.dtype) @ table
        # One column more, for keys that a query does not see: whatever the query, −inf.
        self._positions = functional.pad(table, (0, 1)).contiguous()
        self._constant = functional.pad(constant, (0, 1), value=-torch.inf).contiguous()

    @property
    def hidden(self) -> int:
        """The distance that stands for a key that is not seen."""
        return self._positions.shape[2] - 1

    def distance_table(self) -> DistanceTable:
        """A copy without the column of keys that are not seen."""
        positions = self._positions[:, :, : self.hidden].transpose(1, 2)
        constant = self._constant[:, 0, : self.hidden]
        return DistanceTable(positions.contiguous(), constant.contiguous())

    def fold_injection(self, injection: Tensor) -> Tensor:
        """``(…, 3·D)`` as the model makes it, to what ``channels`` takes."""
        folded = injection.clone()
        query = folded[..., : self._d_model]
        query.mul_(self._scale).add_(self._query_bias)
        return folded

    def channels(self, z: Tensor, injection: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries q', keys and values, ``(n, H, d)`` each.

        Args:
            z: ``(n, D)``.
            injection: ``(n, 3·D)``, folded.
        """
        inside = _layer_norm(z) if self.config.pre_lnorm else z
        mixed = _sum(self._qkv(inside), injection)
        query, key, value = mixed.view(len(z), 3, self.config.n_head, self.config.d_head).unbind(1)
        return query, key, value

    def by_distance(self, query: Tensor) -> Tensor:
        """The part of the scores that depends on distances alone: ``(H, n, T + 1)``.

        Column δ is for a key δ positions before the query; the last one is −inf.
        """
        return torch.baddbmm(self._constant, query.transpose(0, 1), self._positions)

    def finish(self, mixed: Tensor, z: Tensor) -> Tensor:
        """From attention's result to f(z).

        Args:
            mixed: ``(n, D)``, values by the softmax of the scores.
            z: ``(n, D)``.

        Returns:
            ``(n, D)`` in the dtype of z.
        """
        pre = self.config.pre_lnorm
        hidden = _sum(self._o(mixed), z)
        hidden = hidden if pre else _layer_norm(hidden)
        out = self.feed_forward(_layer_norm(hidden) if pre else hidden) + hidden
        return out if pre else _layer_norm(out)


def _sum(product: Tensor, other: Tensor) -> Tensor:
    """In the dtype of ``other``; ``product`` may be lost. A GPU takes both formats at once."""
    if product.device.type != "cpu":
        return product + other
    return product.to(other.dtype).add_(other)


def _layer_norm(x: Tensor) -> Tensor:
    return functional.layer_norm(x, (x.shape[-1],), eps=LAYER_NORM_EPS)
