"""Adaptive log-softmax (arXiv 1609.04309): a head over frequent words and tails behind clusters.

Letters: N positions, V ``n_token``, c1 the first cutoff, k the number of tail clusters.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from deq_model.config import ModelConfig
from deq_model.embedding import AdaptiveEmbedding, cluster_of


@dataclass(frozen=True, slots=True)
class Head:
    """Log-probabilities of the head.

    Attributes:
        words: ``(N, c1)`` of the frequent words.
        clusters: ``(N, k)`` of the tail clusters, cluster 1 first.
    """

    words: Tensor
    clusters: Tensor


class ClusteredLogSoftmax(ABC):
    """``log p(w | hidden)`` by whatever makes the logits of the head and of the tails.

    The published layout numbers the clusters' columns of the head backwards: cluster 1 owns the
    last one, cluster 2 the one before it.

    Attributes:
        config: of the model.
        edges: first ids of the clusters, and ``n_token``.
    """

    config: ModelConfig
    edges: tuple[int, ...]

    @abstractmethod
    def _head_logits(self, hidden: Tensor) -> Tensor:
        """Of the frequent words, then of the clusters as published: ``(N, c1 + k)``."""

    @abstractmethod
    def _tail_logits(self, cluster: int, hidden: Tensor) -> Tensor:
        """Of the words of a tail ``cluster`` ≥ 1: ``(N, size)``."""

    def head(self, hidden: Tensor) -> Head:
        """The head's log-probabilities for ``hidden`` of ``(N, d_model)``."""
        logprob = _log_softmax(self._head_logits(hidden))
        c1 = self.edges[1]
        return Head(logprob[:, :c1], logprob[:, c1:].flip(1))

    def tail(self, cluster: int, hidden: Tensor) -> Tensor:
        """``log p(w | cluster)`` for the words of tail ``cluster`` ≥ 1: ``(N, size)``."""
        return _log_softmax(self._tail_logits(cluster, hidden))

    def target_logprob(self, hidden: Tensor, target: Tensor) -> Tensor:
        """``log p(target)``, touching a tail only for the positions whose target is in it.

        Args:
            hidden: ``(N, d_model)``.
            target: ``(N,)`` int64 in ``[0, n_token)``.

        Returns:
            ``(N,)`` natural logarithms.

        Raises:
            IndexError, RuntimeError: a target outside ``[0, n_token)`` (on the CPU; CUDA asserts).
        """
        head = self.head(hidden)
        cluster = cluster_of(target, self.edges)
        in_head = torch.where(cluster == 0, target, 0)
        logprob = head.words.gather(1, in_head[:, None]).squeeze(1)
        for i in range(1, self.config.n_cluster):
            rows = (cluster == i).nonzero().squeeze(1)
            if rows.numel() == 0:
                continue
            local = (target[rows] - self.edges[i])[:, None]
            within = self.tail(i, hidden[rows]).gather(1, local).squeeze(1)
            logprob = logprob.index_copy(0, rows, head.clusters[rows, i - 1] + within)
        return logprob

    def log_prob(self, hidden: Tensor) -> Tensor:
        """The whole distribution: ``(N, d_model)`` to ``(N, n_token)``."""
        head = self.head(hidden)
        tails = [
            head.clusters[:, i - 1 : i] + self.tail(i, hidden)
            for i in range(1, self.config.n_cluster)
        ]
        return torch.cat([head.words, *tails], dim=1)


class AdaptiveLogSoftmax(nn.Module, ClusteredLogSoftmax):
    """The parameters of the softmax, tied to the embedding's as configured.

    Cluster i's logits are ``(hidden · P_i) · out_iᵀ + b_i``; the head's table is followed by one
    row per tail cluster.
    """

    def __init__(self, config: ModelConfig, embedding: AdaptiveEmbedding) -> None:
        super().__init__()
        self.config = config
        self.edges = config.cluster_edges
        self._embedding = (embedding,)  # in a tuple: tied, but not a submodule of this one
        n_tail = len(config.cutoffs)
        self.tables = nn.ParameterList(
            ()
            if config.tie_weights
            else (nn.Parameter(torch.empty_like(t)) for t in embedding.tables)
        )
        sizes = [table.shape[0] for table in embedding.tables]
        self.biases = nn.ParameterList(nn.Parameter(torch.empty(size)) for size in sizes)
        self.projections = nn.ParameterDict(
            {
                str(i): nn.Parameter(torch.empty(config.d_model, config.cluster_width(i)))
                for i in range(config.n_cluster)
                if config.has_projections and not config.tie_projs[i]
            }
        )
        if n_tail:
            self.cluster_weight = nn.Parameter(torch.empty(n_tail, config.d_embed))
            self.cluster_bias = nn.Parameter(torch.empty(n_tail))

    def table(self, cluster: int) -> tuple[Tensor, Tensor]:
        """Output table ``(size, width)`` and bias ``(size,)`` of a cluster."""
        tables = self._embedding[0].tables if self.config.tie_weights else self.tables
        if self.config.div_val > 1:
            return tables[cluster], self.biases[cluster]
        rows = slice(self.edges[cluster], self.edges[cluster + 1])
        return tables[0][rows], self.biases[0][rows]

    def projection(self, cluster: int) -> Tensor | None:
        """P_i of a cluster ``(d_model, width)``; None where states are as wide as the table."""
        if not self.config.has_projections:
            return None
        if self.config.tie_projs[cluster]:
            shared = self._embedding[0].projections
            tied: Tensor = shared[cluster if self.config.div_val > 1 else 0]
            return tied
        own: Tensor = self.projections[str(cluster)]
        return own

    def _project(self, cluster: int, hidden: Tensor) -> Tensor:
        weight = self.projection(cluster)
        return hidden if weight is None else hidden @ weight

    def _head_logits(self, hidden: Tensor) -> Tensor:
        projected = self._project(0, hidden)
        logits = functional.linear(projected, *self.table(0))
        if self.config.cutoffs:  # logits are joined, since a joint table would be copied each time
            clusters = functional.linear(projected, self.cluster_weight, self.cluster_bias)
            logits = torch.cat([logits, clusters], dim=1)
        return logits

    def _tail_logits(self, cluster: int, hidden: Tensor) -> Tensor:
        return functional.linear(self._project(cluster, hidden), *self.table(cluster))


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
