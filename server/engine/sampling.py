"""Drawing the next token from the adaptive softmax: exact, lazy about its tails, and steady.

Steady: with the same random number, states that are nearly the same nearly always give the same
token, however many words there are. Each word has a number of its own, drawn from the exponential
distribution, and the word whose weight is largest against its number wins (the Gumbel-max trick; in
logarithms, so that no word's weight need be computed).
A change of the filtered weights so changes the winner with a chance of at most about twice their
distance in total variation; the inverse of the cumulated distribution has no such bound. So a token
can be guessed before its predecessor's state is final (``guessing.py``).
"""

import functools
import math
import random
from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from server.engine.next_token import NextToken
from server.engine.requests import Sampling


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
    scores = _Scores(distribution, sampling, seen, forbidden)
    filtered = sampling.top_k or sampling.top_p < 1.0 or sampling.min_p > 0.0
    if sampling.temperature > 0 and not filtered:
        return _drawn(scores, uniform)
    while scores.bound > scores.best:
        scores.resolve_likeliest()
    if sampling.temperature == 0:
        return scores.id_of(int(scores.known.argmax()))
    weights = _filtered(scores, sampling)
    return scores.id_of(int((weights.log() + scores.luck(_Noise(uniform))).argmax()))


class _Scores:
    """Log-probabilities after penalty and bans: of the head, and of the tails resolved so far.

    Attributes:
        known: ``(m,)`` float64, in the order of ids.
        best: the largest of them.
        edges: first ids of the clusters, and ``n_token``.
    """

    def __init__(
        self,
        distribution: NextToken,
        sampling: Sampling,
        seen: Collection[int],
        forbidden: Collection[int],
    ) -> None:
        self._distribution, self._temperature = distribution, sampling.temperature
        self.edges = distribution.edges
        self._forbidden = forbidden
        self._penalty = sampling.repetition_penalty
        self._seen = seen if self._penalty != 1.0 else ()
        clusters = enumerate(distribution.clusters.tolist(), start=1)
        self._open = {cluster: logprob for cluster, logprob in clusters}
        self._resolved = [(0, self._modified(0))]
        if self._penalty < 1.0:  # it makes words likelier than their cluster tells
            for cluster in {distribution.cluster_of(i) for i in self._seen} - {0}:
                self.resolve(cluster)
        self._join()

    @property
    def clusters(self) -> int:
        """How many there are, the head included."""
        return len(self.edges) - 1

    def luck(self, noise: "_Noise") -> Tensor:
        """The random numbers of the known words, ``(m,)``."""
        parts = [noise.of(cluster, words.numel()) for cluster, words in self._resolved]
        return torch.cat(parts).to(self.known.device)

    @property
    def bound(self) -> float:
        """No word of a tail that is open scores higher; −inf when none is."""
        return max(self._open.values(), default=-math.inf)

    @property
    def highest(self) -> float:
        """No word scores higher."""
        return max(self.best, self.bound)

    @property
    def open_heights(self) -> dict[int, float]:
        """At most what the words of each open tail weigh together, as a logarithm."""
        return {cluster: self._most(cluster) for cluster in self._open}

    def _most(self, cluster: int) -> float:
        """By p_i ≤ Σp and, where the temperature makes words more alike, by their mean."""
        size = self.edges[cluster + 1] - self.edges[cluster]
        more_alike = max(0.0, 1 - 1 / self._temperature) * math.log(size)
        height: float = (self._open[cluster] - self.highest) / self._temperature
        return height + more_alike

    @property
    def word_weight(self) -> float:
        """No word of an open tail weighs more; −1 when none is open."""
        if not self._open:
            return -1.0
        return math.exp((self.bound - self.highest) / self._temperature)

    def resolve(self, cluster: int) -> Tensor:
        """Scores of the words of an open tail, which is not open any more."""
        del self._open[cluster]
        words = self._modified(cluster)
        self._resolved.append((cluster, words))
        self._resolved.sort(key=lambda pair: pair[0])
        self._join()
        return words

    def resolve_likeliest(self) -> None:
        """Resolves the likeliest tail that is open."""
        self.resolve(max(self._open, key=self._open.__getitem__))

    def heights(self, scores: Tensor, highest: float) -> Tensor:
        """Logarithms of what scores weigh: ``(score − highest) / temperature``, see ``highest``."""
        # The best word stays finite at any temperature, so that the smallest ones are greedy.
        return (scores - highest) / self._temperature

    def weights(self, scores: Tensor) -> Tensor:
        """What scores weigh."""
        return self.heights(scores, self.highest).exp()

    def id_of(self, index: int) -> int:
        """The word at an index of ``known``."""
        for cluster, words in self._resolved:
            if index < words.numel():
                return self.edges[cluster] + index
            index -= words.numel()
        raise IndexError(index)

    def _join(self) -> None:
        self.known = torch.cat([words for _, words in self._resolved])
        self.best = float(self.known.max())

    def _modified(self, cluster: int) -> Tensor:
        source = self._distribution
        words = (source.tail(cluster) if cluster else source.words).double()
        if self._seen:
            index = self._local(cluster, self._seen)
            words = words.index_copy(0, index, words[index] * self._penalty)
            # What a huge penalty makes infinite would be no number once it is compared with itself.
            words = words.clamp(min=torch.finfo(words.dtype).min)
        if self._forbidden:
            words = words.index_fill(0, self._local(cluster, self._forbidden), -torch.inf)
        return words

    def _local(self, cluster: int, ids: Collection[int]) -> Tensor:
        first, end = self.edges[cluster : cluster + 2]
        inside = sorted(i - first for i in ids if first <= i < end)
        return torch.tensor(inside, dtype=torch.long, device=self._distribution.words.device)


class _Noise:
    """Gumbel's random numbers, by one uniform number, a round, and what they are for.

    What they are for is a cluster's words; −1 stands for outcomes that are no words.
    """

    def __init__(self, uniform: float, turn: int = 0) -> None:
        self._uniform, self._turn = uniform, turn

    def after(self) -> "_Noise":
        """Others, for a draw that is made again."""
        return _Noise(self._uniform, self._turn + 1)

    def of(self, cluster: int, count: int) -> Tensor:
        """``(count,)`` float64 on the CPU, not to be changed."""
        bits = int(self._uniform * 2**53)  # all that a uniform number of Python's has
        return _gumbel(bits << 64 | self._turn << 32 | cluster + 1, count)


@functools.lru_cache(maxsize=256)
def _gumbel(key: int, count: int) -> Tensor:
    """Random numbers by a key of 128 bits; a guess and the draw that settles it share them."""
    generator = np.random.Generator(np.random.Philox(key=key))
    numbers = torch.from_numpy(generator.standard_exponential(count))
    return numbers.clamp_(min=torch.finfo(numbers.dtype).tiny).log_().neg_()


def _drawn(scores: _Scores, uniform: float) -> int:
    """Draws from all words, none of them filtered out.

    By rejection: a draw may fall to a tail's bound; then it falls to one of its words, or to what
    the bound was too high by, and is made again.
    """
    noise = _Noise(uniform)
    while True:
        tails, highest = scores.open_heights, scores.highest
        known = scores.heights(scores.known, highest).add_(scores.luck(noise))
        best = int(known.argmax())
        luck = noise.of(-1, scores.clusters)[list(tails)].tolist()
        bounds = [height + more for height, more in zip(tails.values(), luck, strict=True)]
        if not bounds or float(known[best]) >= max(bounds):
            return scores.id_of(best)
        cluster = list(tails)[bounds.index(max(bounds))]
        inside = scores.heights(scores.resolve(cluster), highest)
        noise = noise.after()
        excess = math.exp(tails[cluster]) - float(inside.exp().sum())
        index = int(inside.add(noise.of(cluster, inside.numel()).to(inside.device)).argmax())
        height = float(inside[index]) + float(noise.of(cluster, inside.numel())[index])
        if excess <= 0 or height >= math.log(excess) + float(noise.of(-1, 1)):
            return scores.edges[cluster] + index
        noise = noise.after()


def _filtered(scores: _Scores, sampling: Sampling) -> Tensor:
    """What the known words weigh that pass the filters, and 0 for the others; tails as needed."""
    while True:
        weights = scores.weights(scores.known)
        kept = _kept(weights, scores, sampling)
        if kept is not None:
            return torch.where(kept, weights, 0.0)
        scores.resolve_likeliest()


def _kept(weights: Tensor, scores: _Scores, sampling: Sampling) -> Tensor | None:
    """Which known words pass; None where that depends on the words of tails that are open."""
    kept = torch.ones_like(weights, dtype=torch.bool)
    bound, spread = scores.word_weight, sum(map(math.exp, scores.open_heights.values()))
    if 0 < sampling.top_k < scores.edges[-1]:
        least = _at(weights, sampling.top_k)
        if bound >= least:
            return None
        kept, bound, spread = _first(weights, sampling.top_k), -1.0, 0.0
    if sampling.top_p < 1.0:
        ranked, order = (weights * kept).sort(descending=True, stable=True)
        before = ranked.cumsum(0) - ranked
        total = float(ranked.sum())
        count, most = (
            int((before < sampling.top_p * mass).sum()) for mass in (total, total + spread)
        )
        if count != most or bound >= float(ranked[count - 1]):
            return None
        kept = kept & torch.zeros_like(kept).index_fill(0, order[:count], True)
        bound = -1.0
    if sampling.min_p > 0.0:
        if bound >= sampling.min_p:
            return None
        kept = kept & (weights >= sampling.min_p)  # the best word weighs 1
    return kept


def _at(weights: Tensor, rank: int) -> float:
    """The weight of a rank, from 1 on; −1 where there are fewer."""
    return float(weights.topk(rank).values[-1]) if rank <= weights.numel() else -1.0


def _first(weights: Tensor, count: int) -> Tensor:
    """The heaviest ``count``; among equals ids decide."""
    if count >= weights.numel():
        return torch.ones_like(weights, dtype=torch.bool)
    least = _at(weights, count)
    above = weights > least
    equal = (weights == least).nonzero().squeeze(1)[: count - int(above.sum())]
    return above.index_fill(0, equal, True)
