"""Adaptive input embedding (arXiv 1809.10853): rare words have narrow vectors."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from deq_model.config import ModelConfig


def cluster_of(tokens: Tensor, edges: tuple[int, ...]) -> Tensor:
    """The vocabulary cluster of every id, by the clusters' first ids and ``n_token`` at the end.

    An id below 0 falls into the first cluster and one of ``n_token`` or more into the last, whose
    tables then refuse it: it is an error, and not a word of no cluster.
    """
    return torch.bucketize(tokens.contiguous(), tokens.new_tensor(edges[1:-1]), right=True)


class AdaptiveEmbedding(nn.Module):
    """``e(x) = √d_model · P_i E_i[x − c_i]`` for x in cluster i.

    With ``div_val == 1`` one table holds every word. Tables are ``(size, width)``, projections
    ``(d_model, width)``.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.d_model = config.d_model
        self.edges = config.cluster_edges if config.div_val > 1 else (0, config.n_token)
        sizes = [high - low for low, high in zip(self.edges[:-1], self.edges[1:], strict=True)]
        widths = [config.cluster_width(i) for i in range(len(sizes))]
        self.tables = nn.ParameterList(
            nn.Parameter(torch.empty(size, width))
            for size, width in zip(sizes, widths, strict=True)
        )
        self.projections = nn.ParameterList(
            nn.Parameter(torch.empty(config.d_model, width))
            for width in (widths if config.has_projections else [])
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Embeds ids of any shape: ``(…)`` int64 to ``(…, d_model)``.

        Raises:
            IndexError: an id outside ``[0, n_token)`` (on the CPU; CUDA asserts).
        """
        scale = math.sqrt(self.d_model)
        if len(self.tables) == 1:
            return self._cluster(0, tokens) * scale
        flat = tokens.reshape(-1)
        out = self.tables[0].new_zeros(flat.shape[0], self.d_model)
        cluster = cluster_of(flat, self.edges)
        for i in range(len(self.tables)):
            inside = cluster == i
            rows = inside.nonzero().squeeze(1)
            if not len(rows) and out.device.type == "cpu" and not torch.is_grad_enabled():
                continue  # most clusters have none of a few words
            out = out.index_copy(0, rows, self._cluster(i, flat[rows] - self.edges[i]))
        embedded: Tensor = out.view(*tokens.shape, self.d_model) * scale
        return embedded

    def _cluster(self, i: int, local: Tensor) -> Tensor:
        vectors: Tensor = functional.embedding(local, self.tables[i])
        if len(self.projections):
            vectors = functional.linear(vectors, self.projections[i])
        return vectors
