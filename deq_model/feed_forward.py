"""The feed-forward ``W_2 relu(W_1 x + b_1) + b_2`` for inference.

It has nearly all of f's weights, and works on tokens one by one. ``int8_feed_forward.py`` has
another way to compute it.

Letters: n tokens, D ``d_model``, I ``d_inner``.
"""

from typing import Protocol

from torch import Tensor

from deq_model.function import EquilibriumWeights
from deq_model.products import Format, prepare


class FeedForward(Protocol):
    """``(n, D)`` to the same, in the dtype of x.

    Attributes:
        nbytes: of the weights, which a call reads whole.
    """

    nbytes: int

    def __call__(self, x: Tensor) -> Tensor:
        """The feed-forward."""


class PreparedFeedForward:
    """With weights prepared in one number format."""

    def __init__(self, weights: EquilibriumWeights, form: Format) -> None:
        """Takes weights in full precision; they are copied."""
        self._in = prepare(weights.ff1, weights.ff1_bias, form, relu=True)
        self._out = prepare(weights.ff2, weights.ff2_bias, form)
        self.nbytes = self._in.nbytes + self._out.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """The feed-forward; between the products numbers stay in the kernels' format."""
        return self._out(self._in(x)).to(x.dtype)
