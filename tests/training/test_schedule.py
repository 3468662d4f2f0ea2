"""The learning rate over a run."""

from itertools import pairwise

import pytest

from training.options.optimiser import OptimiserOptions
from training.schedule import learning_rate

OPTIONS = OptimiserOptions(lr=0.1, min_lr=0.02, warmup_steps=10, max_steps=110)


def test_the_warm_up_is_linear_and_ends_at_the_top() -> None:
    rates = [learning_rate(step, OPTIONS) for step in range(10)]
    assert rates == pytest.approx([0.01 * (i + 1) for i in range(10)])
    assert learning_rate(10, OPTIONS) == pytest.approx(0.1)


def test_the_cosine_falls_to_the_minimum() -> None:
    rates = [learning_rate(step, OPTIONS) for step in range(10, 111)]
    assert all(late < early for early, late in pairwise(rates))
    assert learning_rate(60, OPTIONS) == pytest.approx(0.06)
    assert learning_rate(110, OPTIONS) == pytest.approx(0.02)


def test_a_run_without_warm_up_starts_at_the_top() -> None:
    assert learning_rate(0, OptimiserOptions(lr=0.1, warmup_steps=0)) == 0.1
