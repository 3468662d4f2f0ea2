"""The distribution after one state; tails of the softmax are computed when somebody needs them.

Log-probabilities are natural.
"""

from torch import Tensor

from deq_model.adaptive_softmax import ClusteredLogSoftmax, Head


class NextToken:
    """Of the word after a state.

    Attributes:
        edges: first ids of the clusters, and ``n_token``.
    """

    def __init__(
        self, softmax: ClusteredLogSoftmax, hidden: Tensor, head: Head | None = None
    ) -> None:
        """Takes the state ``(d_model,)``, and the head there if it is known: ``(1, …)``."""
        self._softmax = softmax
        self._hidden = hidden[None]
        self._head = softmax.head(self._hidden) if head is None else head
        self._tails: dict[int, Tensor] = {}
        self.edges = softmax.edges

    @property
    def tails_computed(self) -> int:
        """How many tail clusters were needed so far."""
        return len(self._tails)

    @property
    def words(self) -> Tensor:
        """Log-probabilities of the frequent words, ``(c1,)``."""
        return self._head.words[0]

    @property
    def clusters(self) -> Tensor:
        """Log-probabilities of the tails, cluster 1 first: each is above those of its words."""
        return self._head.clusters[0]

    def tail(self, cluster: int) -> Tensor:
        """Log-probabilities of the words of a tail ``cluster`` ≥ 1, computed once."""
        if cluster not in self._tails:
            within = self._softmax.tail(cluster, self._hidden)[0]
            self._tails[cluster] = self.clusters[cluster - 1] + within
        return self._tails[cluster]

    def cluster_of(self, token_id: int) -> int:
        """The cluster of a word, 0 for the head."""
        return sum(token_id >= edge for edge in self.edges[1:-1])

    def logprob(self, token_id: int) -> float:
        """Of one word."""
        cluster = self.cluster_of(token_id)
        words = self.tail(cluster) if cluster else self.words
        return float(words[token_id - self.edges[cluster]])

    def top(self, k: int) -> tuple[tuple[int, float], ...]:
        """The k most likely words, best first; ties by id."""
        if k == 0:
            return ()
        found = self._best_of(0, k)
        for cluster in range(1, len(self.edges) - 1):
            # No word of a tail is likelier than its whole cluster; among equals ids decide.
            if len(found) < k or float(self.clusters[cluster - 1]) > found[-1][1]:
                found = sorted([*found, *self._best_of(cluster, k)], key=_falling)[:k]
        return tuple(found)

    def _best_of(self, cluster: int, k: int) -> list[tuple[int, float]]:
        words = self.tail(cluster) if cluster else self.words
        least = words.topk(min(k, words.numel())).values[-1]
        # More than k where some are equal to the last: of these the first ids count.
        local = (words >= least).nonzero().squeeze(1)
        pairs = zip(local.tolist(), words[local].tolist(), strict=True)
        edge = self.edges[cluster]
        return sorted(((edge + i, value) for i, value in pairs), key=_falling)[:k]


def _falling(pair: tuple[int, float]) -> tuple[float, int]:
    return -pair[1], pair[0]
