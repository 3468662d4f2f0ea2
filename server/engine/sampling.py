"""Drawing the next token from the adaptive softmax: exact, and lazy about its tails.

Letters: V ``n_token``. Everything here works on one position; log-probabilities are natural.
"""

import random
from collections.abc import Collection

import torch
from torch import Tensor

from deq_model.adaptive_softmax import ClusteredLogSoftmax, Head
from server.engine.types import Sampling


class NextToken:
    """The distribution after one hidden state; tails are computed when somebody needs them."""

    def __init__(self, softmax: ClusteredLogSoftmax, hidden: Tensor) -> None:
        """Takes the state ``(d_model,)``."""
        self._softmax = softmax
        self._hidden = hidden[None]
        self._head: Head = softmax.head(self._hidden)
        self._full: Tensor | None = None
        self._tails: dict[int, Tensor] = {}

    @property
    def tails_computed(self) -> int:
        """How many tail clusters were needed so far."""
        return len(self._tails)

    def full(self) -> Tensor:
        """Log-probabilities of all words, ``(V,)``."""
        if self._full is None:
            n_cluster = self._softmax.config.n_cluster
            tails = [self._in_tail(i) for i in range(1, n_cluster)]
            self._full = torch.cat([self._head.words[0], *tails])
        return self._full

    def logprob(self, token_id: int) -> float:
        """Of one word."""
        edges = self._softmax.edges
        cluster = sum(token_id >= edge for edge in edges[1:-1])
        if cluster == 0:
            return float(self._head.words[0, token_id])
        return float(self._in_tail(cluster)[token_id - edges[cluster]])

    def top(self, k: int) -> tuple[tuple[int, float], ...]:
        """The k most likely words, best first; ties by id."""
        if k == 0:
            return ()
        words = self._ranked(k)
        best, ids = words.sort(descending=True, stable=True)
        pairs = zip(ids[:k].tolist(), best[:k].tolist(), strict=True)
        return tuple((int(token_id), float(logprob)) for token_id, logprob in pairs)

    def _ranked(self, k: int) -> Tensor:
        """Log-probabilities of a prefix of the vocabulary that holds the k most likely words."""
        words, clusters = self._head.words[0], self._head.clusters[0]
        if clusters.numel() == 0:
            return words
        if k <= words.numel() and words.topk(k).values[-1] >= clusters.max():
            return words  # no word of a tail is likelier than its whole cluster
        return self.full()

    def _in_tail(self, cluster: int) -> Tensor:
        if cluster not in self._tails:
            within = self._softmax.tail(cluster, self._hidden)[0]
            self._tails[cluster] = self._head.clusters[0, cluster - 1] + within
        return self._tails[cluster]

    def draw_plain(self, uniform: float) -> int:
        """Draws from the distribution as it is: first the head, then at most one tail.

        One uniform number serves both: what is left of it inside the chosen cluster is uniform.
        """
        words, clusters = self._head.words[0], self._head.clusters[0]
        chances = torch.cat([words, clusters]).double().exp()
        index, rest = _invert(chances, uniform)
        if index < words.numel():
            return index
        cluster = index - words.numel() + 1
        local, _ = _invert(self._in_tail(cluster).double().exp(), rest)
        return self._softmax.edges[cluster] + local


def draw(
    distribution: NextToken,
    sampling: Sampling,
    *,
    seen: Collection[int],
    forbidden: Collection[int],
    generator: random.Random,
) -> int:
    """Draws a token: penalty, temperature, top-k, top-p, min-p, in this order.

    Args:
        distribution: after the last token.
        sampling: how to draw.
        seen: ids that the repetition penalty is for.
        forbidden: ids that cannot be drawn now.
        generator: of the request; one number is taken from it, also when greedy.

    Returns:
        The token's id.
    """
    uniform = generator.random()
    penalised = sampling.repetition_penalty != 1.0 and len(seen) > 0
    if sampling.temperature == 0 and not penalised and not forbidden:
        return distribution.top(1)[0][0]
    if _is_plain(sampling) and not penalised and not forbidden:
        return distribution.draw_plain(uniform)
    score = distribution.full().double()
    if penalised:
        index = torch.tensor(sorted(seen), device=score.device)
        score = score.index_copy(0, index, score[index] * sampling.repetition_penalty)
        # What a huge penalty makes infinite would be no number once it is compared with itself.
        score = score.clamp(min=torch.finfo(score.dtype).min)
    if forbidden:
        index = torch.tensor(sorted(forbidden), device=score.device)
        score = score.index_fill(0, index, -torch.inf)
    if sampling.temperature == 0:
        return int(score.argmax())
    # The best word stays finite at any temperature, so that the smallest ones are greedy.
    score = (score - score.max()) / sampling.temperature
    token_id, _ = _invert(_filtered(score, sampling).exp(), uniform)
    return token_id


def _is_plain(sampling: Sampling) -> bool:
    return (
        sampling.temperature == 1.0
        and sampling.top_k == 0
        and sampling.top_p == 1.0
        and sampling.min_p == 0.0
    )


def _filtered(score: Tensor, sampling: Sampling) -> Tensor:
    """Log-probabilities ``(V,)`` of the words that pass, −inf for the others."""
    score = score.log_softmax(-1)
    if 0 < sampling.top_k < score.numel():
        order = score.sort(descending=True, stable=True).indices
        score = score.index_fill(0, order[sampling.top_k :], -torch.inf).log_softmax(-1)
    if sampling.top_p < 1.0:
        ranked, order = score.sort(descending=True, stable=True)
        before = ranked.exp().cumsum(0) - ranked.exp()
        score = score.index_fill(0, order[before >= sampling.top_p], -torch.inf).log_softmax(-1)
    if sampling.min_p > 0.0:
        least = score.max().exp() * sampling.min_p
        score = score.masked_fill(score.exp() < least, -torch.inf)
    return score


def _invert(chances: Tensor, uniform: float) -> tuple[int, float]:
    """The outcome at ``uniform`` of the cumulated chances, and the uniform number left inside it.

    Chances need not sum to one. An outcome with chance zero is never returned.
    """
    cumulated = chances.cumsum(0)
    goal = uniform * float(cumulated[-1])
    index = int(torch.searchsorted(cumulated, goal, right=True))
    if index >= chances.numel():
        index = int(chances.nonzero()[-1])
    chance = float(chances[index])
    rest = (goal - (float(cumulated[index]) - chance)) / chance
    return index, min(max(rest, 0.0), 1.0)
