"""The learning rate over a run."""

from itertools import pairwise
from typing import Any

import pytest

from training.options.optimiser import OptimiserOptions
from training.schedule import Schedule


def rates(steps: range, **changes: Any) -> list[float]:
    values = {"lr": 0.1, "min_lr": 0.02, "warmup_steps": 10, "max_steps": 110}
    schedule = Schedule(OptimiserOptions(**values | changes))
    return [schedule.rate(step) for step in steps]


@pytest.mark.parametrize("kind", ["cosine", "inverse_root", "plateau", "constant"])
def test_the_warm_up_is_linear_and_ends_at_the_top(kind: str) -> None:
    assert rates(range(10), schedule=kind) == pytest.approx([0.01 * (i + 1) for i in range(10)])
    assert rates(range(9, 11), schedule=kind) == pytest.approx([0.1, 0.1], rel=0.05)


def test_the_cosine_falls_to_the_minimum() -> None:
    found = rates(range(10, 111))
    assert all(late < early for early, late in pairwise(found))
    assert found[0] == pytest.approx(0.1)
    assert found[50] == pytest.approx(0.06)
    assert found[100] == pytest.approx(0.02)


def test_a_run_without_warm_up_starts_at_the_top() -> None:
    for kind in ("cosine", "inverse_root", "plateau", "constant"):
        assert rates(range(1), warmup_steps=0, schedule=kind) == [0.1]


def test_the_inverse_root() -> None:
    found = rates(range(39, 1000, 120), schedule="inverse_root")  # steps 40, 160, …
    assert found[:2] == pytest.approx([0.05, 0.025])


def test_a_constant_rate_stays() -> None:
    assert set(rates(range(10, 500, 7), schedule="constant")) == {0.1}


def plateau(**changes: Any) -> Schedule:
    values = {"lr": 1.0, "min_lr": 0.1, "warmup_steps": 0, "plateau_patience": 2}
    return Schedule(OptimiserOptions(schedule="plateau", **values | changes))


def test_the_plateau_waits_then_lowers_the_rate() -> None:
    schedule = plateau()
    seen = []
    for nll in (5.0, 4.0, 4.0, 3.9, 4.0, 4.1, 4.0, float("nan")):
        schedule.observe(nll)
        seen.append(schedule.rate(0))
    assert seen == [1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.25]


def test_the_plateau_ends_at_the_minimum() -> None:
    schedule = plateau(plateau_patience=1)
    for _ in range(9):
        schedule.observe(1.0)
    assert schedule.rate(0) == 0.1


def test_the_plateau_goes_on_from_its_state() -> None:
    losses = (3.0, 3.1, 2.9, 3.0, 3.0, 3.0, 2.8, 3.0, 3.0)
    straight, first, second = plateau(), plateau(), plateau()
    for nll in losses:
        straight.observe(nll)
    for nll in losses[:4]:
        first.observe(nll)
    second.load_state_dict(first.state_dict())
    for nll in losses[4:]:
        second.observe(nll)
    assert second.state_dict() == straight.state_dict()
    assert second.rate(0) == straight.rate(0) < 1.0
