"""Drawing tokens: exact distributions, filters by their definition, lazy tails."""

import math
import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.next_token import NextToken
from server.engine.requests import Sampling
from server.engine.sampling import draw
from tests.server.engine.helpers import small_model

MODEL = small_model(seed=3)
with torch.no_grad():  # likely clusters with likely words, so that tails are drawn from, too
    MODEL.softmax.cluster_bias.add_(2.0)
    for tail in (1, 2):
        MODEL.embedding.tables[tail].mul_(12.0)


def distribution(seed: int) -> NextToken:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(16, generator=generator, dtype=torch.float64)
    return NextToken(MODEL.softmax, hidden.detach())


def full(seed: int) -> torch.Tensor:
    """Log-probabilities of all words, ``(V,)``."""
    return MODEL.softmax.log_prob(distribution(seed)._hidden)[0]


def draws(seed: int, sampling: Sampling, count: int, **sets: object) -> Counter[int]:
    generator = random.Random(7)
    options = {"seen": (), "forbidden": (), **sets}
    with torch.no_grad():
        source = distribution(seed)
        return Counter(
            draw(source, sampling, generator=generator, **options)  # type: ignore[arg-type]
            for _ in range(count)
        )


def expected(seed: int, sampling: Sampling, seen: tuple[int, ...] = ()) -> list[float]:
    """The distribution after all filters, written plainly in Python."""
    with torch.no_grad():
        logprob = full(seed).tolist()
    score = [x * sampling.repetition_penalty if i in seen else x for i, x in enumerate(logprob)]
    chance = [math.exp(x / sampling.temperature) for x in score]
    order = sorted(range(len(chance)), key=lambda i: (-chance[i], i))
    kept = order[: sampling.top_k] if sampling.top_k else order
    total = sum(chance[i] for i in kept)
    nucleus, mass = [], 0.0
    for i in kept:
        if mass >= sampling.top_p * total:
            break
        nucleus.append(i)
        mass += chance[i]
    best = chance[nucleus[0]]
    final = [i for i in nucleus if chance[i] >= sampling.min_p * best]
    total = sum(chance[i] for i in final)
    return [chance[i] / total if i in final else 0.0 for i in range(len(chance))]


def assert_follows(counts: Counter[int], chances: list[float]) -> None:
    """Every frequency lies within 5 standard deviations (and 2 draws) of its chance."""
    n = counts.total()
    for token_id, chance in enumerate(chances):
        deviation = math.sqrt(n * chance * (1 - chance))
        assert abs(counts[token_id] - n * chance) <= 5 * deviation + 2, token_id


@pytest.mark.parametrize(
    ("sampling", "seen"),
    [
        (Sampling(), ()),
        (Sampling(temperature=0.6), ()),
        (Sampling(temperature=1.7), ()),
        (Sampling(top_k=5), ()),
        (Sampling(top_p=0.7), ()),
        (Sampling(min_p=0.3), ()),
        (Sampling(temperature=1.3, top_k=12, top_p=0.9, min_p=0.05), ()),
        (Sampling(repetition_penalty=1.8, top_k=10), (0, 3, 12, 30)),
        (Sampling(repetition_penalty=1.8), (0, 3, 12, 30)),
        (Sampling(repetition_penalty=0.4, temperature=1.2), (2, 13, 30, 31)),
    ],
)
def test_frequencies_follow_the_definition(sampling: Sampling, seen: tuple[int, ...]) -> None:
    for seed in range(3):
        counts = draws(seed, sampling, 4000, seen=seen)
        assert_follows(counts, expected(seed, sampling, seen))


def test_greedy_takes_the_best_word_wherever_it_is() -> None:
    clusters = set()
    for seed in range(60):
        with torch.no_grad():
            best = int(full(seed).argmax())
        assert set(draws(seed, Sampling(temperature=0.0), 2)) == {best}
        clusters.add(sum(best >= cutoff for cutoff in MODEL.config.cutoffs))
    assert len(clusters) > 1, "every best word was in the head: the test shows nothing of tails"


def test_forbidden_words_are_never_drawn() -> None:
    for temperature in (0.0, 1.0):
        first = draws(1, Sampling(temperature=temperature), 50)
        banned = set(first)
        later = draws(1, Sampling(temperature=temperature), 50, forbidden=banned)
        assert not banned & set(later)


def test_plain_draws_touch_one_tail_at_most() -> None:
    generator = random.Random(0)
    touched = Counter[int]()
    with torch.no_grad():
        for seed in range(200):
            source = distribution(seed)
            draw(source, Sampling(), seen=(), forbidden=(), generator=generator)
            touched[source.tails_computed] += 1
    assert set(touched) == {0, 1}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), k=st.integers(0, 40))
def test_top_is_the_sorted_distribution(seed: int, k: int) -> None:
    with torch.no_grad():
        source = distribution(seed)
        top = source.top(k)
        full = MODEL.softmax.log_prob(source._hidden)[0]
    order = full.sort(descending=True, stable=True).indices[:k].tolist()
    assert [token_id for token_id, _ in top] == order
    assert all(abs(value - float(full[i])) < 1e-12 for i, value in top)


def test_logprob_is_that_of_the_whole_distribution() -> None:
    with torch.no_grad():
        source = distribution(5)
        ours = torch.tensor([source.logprob(i) for i in range(40)], dtype=torch.float64)
        torch.testing.assert_close(ours, MODEL.softmax.log_prob(source._hidden)[0])


TINIEST = 5e-324


@pytest.mark.parametrize(
    ("sampling", "sets"),
    [
        (Sampling(temperature=TINIEST), {}),
        (Sampling(temperature=TINIEST, top_k=5, top_p=TINIEST, min_p=1.0), {}),
        (Sampling(temperature=TINIEST), {"forbidden": (0, 1)}),
        (Sampling(temperature=TINIEST, repetition_penalty=1e308), {"seen": (0, 3, 12)}),
    ],
)
def test_the_smallest_temperature_takes_the_most_likely(sampling: Sampling, sets: dict) -> None:
    for seed in range(20):
        ranked = full(seed).argsort(descending=True).tolist()
        barred = {*sets.get("forbidden", ()), *sets.get("seen", ())}
        best = next(token_id for token_id in ranked if token_id not in barred)
        assert draws(seed, sampling, 3, **sets) == {best: 3}


def test_a_penalty_beyond_all_bounds_still_draws() -> None:
    sampling = Sampling(temperature=TINIEST, repetition_penalty=1e308)
    for seed in range(20):
        assert 39 not in draws(seed, sampling, 3, seen=range(40), forbidden=(39,))
