"""The adaptive softmax for inference: tables and projections prepared once, see ``products``."""

import torch
from torch import Tensor

from deq_model.adaptive_softmax import AdaptiveLogSoftmax, ClusteredLogSoftmax
from deq_model.products import Format, Product, prepare


class PreparedLogSoftmax(ClusteredLogSoftmax):
    """The distribution of an ``AdaptiveLogSoftmax`` whose parameters stay."""

    def __init__(self, softmax: AdaptiveLogSoftmax, form: Format) -> None:
        """Copies the parameters.

        Args:
            softmax: in full precision, on the device to be used.
            form: number format of the products. bfloat16 would cost log-probabilities two digits.
        """
        self.config, self.edges = softmax.config, softmax.edges
        self._clusters = [_prepared(softmax, i, form) for i in range(self.config.n_cluster)]

    def _head_logits(self, hidden: Tensor) -> Tensor:
        return _apply(self._clusters[0], hidden)

    def _tail_logits(self, cluster: int, hidden: Tensor) -> Tensor:
        return _apply(self._clusters[cluster], hidden)


def _prepared(softmax: AdaptiveLogSoftmax, cluster: int, form: Format) -> list[Product]:
    """The products of a cluster, in order; the head's table with the clusters' rows behind it."""
    weight, bias = softmax.table(cluster)
    if cluster == 0 and softmax.config.cutoffs:
        weight = torch.cat([weight, softmax.cluster_weight])
        bias = torch.cat([bias, softmax.cluster_bias])
    projection = softmax.projection(cluster)
    first = [] if projection is None else [prepare(projection.t(), None, form)]
    return [*first, prepare(weight, bias, form)]


def _apply(products: list[Product], hidden: Tensor) -> Tensor:
    for product in products:
        hidden = product(hidden)
    return hidden
