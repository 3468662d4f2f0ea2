"""Bad steps are told from sound ones, and treated as the policy says."""

import json
import math
import re
from typing import Any

import pytest

from training.guard import FEWEST, Guard, Signs
from training.options.run import GuardOptions


def signs(**changes: Any) -> Signs:
    values: dict[str, Any] = {
        "loss": 3.0,
        "grad_norm": 1.0,
        "residual": 1e-3,
        "solved": True,
        "backward_failed": False,
    }
    return Signs(**values | changes)


def settled(**options: Any) -> Guard:
    """A guard that has seen enough sound steps of loss 3."""
    guard = Guard(GuardOptions(**options))
    for _ in range(FEWEST):
        assert guard.judge(signs()).reason is None
    return guard


BAD = [
    ({"loss": math.nan}, "the loss is not finite"),
    ({"loss": math.inf}, "the loss is not finite"),
    ({"grad_norm": math.nan}, "the gradient is not finite"),
    ({"loss": 5.1}, r"the loss is a spike: 5.100 > 3.000 \+ 2"),
    ({"residual": 1.5}, "the forward solver diverged: mean residual 1.5 > 1"),
    ({"residual": math.nan}, "the forward solver diverged"),
    ({"residual": math.inf}, "the forward solver diverged"),
    ({"backward_failed": True}, "the backward solver diverged"),
]


@pytest.mark.parametrize(("change", "reason"), BAD)
@pytest.mark.parametrize("action", ["skip", "warn", "stop"])
def test_bad_steps_get_the_action(change: dict[str, Any], reason: str, action: str) -> None:
    verdict = settled(action=action).judge(signs(**change))
    assert re.match(reason, verdict.reason or "")
    finite = not ("loss is not" in reason or "gradient" in reason)
    assert verdict.action == ("skip" if action == "warn" and not finite else action)
    assert verdict.applies == (action == "warn" and finite)


def test_sound_steps_pass() -> None:
    guard = settled()
    for loss in (3.0, 4.9, 0.1, 3.5):
        verdict = guard.judge(signs(loss=loss))
        assert (verdict.reason, verdict.applies) == (None, True)


def test_the_first_losses_are_no_spikes() -> None:
    guard = Guard(GuardOptions())
    for loss in (2.0, 9.0, 6.0, 3.0, 11.0):
        assert guard.judge(signs(loss=loss)).reason is None


def test_the_mean_follows_sound_steps_only() -> None:
    guard = settled()
    for _ in range(50):
        assert guard.judge(signs(loss=6.0)).reason is not None
    for _ in range(400):
        guard.judge(signs(loss=4.5))
    assert guard.judge(signs(loss=6.0)).reason is None


def test_a_loss_that_was_let_through_moves_the_mean_slowly() -> None:
    guard = settled(action="warn")
    assert guard.judge(signs(loss=1e9)).reason is not None
    assert guard.judge(signs(loss=5.5)).reason is not None
    for _ in range(400):
        guard.judge(signs(loss=6.0))
    assert guard.judge(signs(loss=6.0)).reason is None


def test_solvers_are_looked_at_when_there_are_some() -> None:
    guard = Guard(GuardOptions())
    assert guard.judge(signs(solved=False, residual=5.0)).reason is None
    assert guard.judge(signs(residual=5.0)).reason is not None


def test_the_end_of_pretraining_may_raise_the_loss() -> None:
    guard = Guard(GuardOptions())
    for _ in range(30):
        guard.judge(signs(solved=False))
    assert guard.judge(signs(solved=False, loss=6.0)).reason is not None
    assert guard.judge(signs(solved=True, loss=6.0)).reason is None


def test_checks_can_be_off() -> None:
    guard = settled(spike=0.0, residual=0.0)
    assert guard.judge(signs(loss=50.0, residual=70.0)).reason is None


def test_so_many_skipped_in_a_row_are_too_many() -> None:
    guard = settled(max_skipped=2)
    guard.judge(signs(loss=math.nan))
    assert not guard.exhausted
    guard.judge(signs())
    guard.judge(signs(loss=math.nan))
    assert not guard.exhausted
    guard.judge(signs(loss=math.nan))
    assert guard.exhausted


def test_it_goes_on_from_its_state() -> None:
    losses = [3.0, 3.5, 2.0, math.nan, 2.5, 9.0, 3.1, 3.0, 2.2, 2.1, 2.0, 2.4, 6.0, 2.0, 4.8]
    straight, first, second = (Guard(GuardOptions()) for _ in range(3))
    expected = [straight.judge(signs(loss=loss)) for loss in losses]
    found = [first.judge(signs(loss=loss)) for loss in losses[:7]]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    found += [second.judge(signs(loss=loss)) for loss in losses[7:]]
    assert found == expected
    assert [verdict.reason is None for verdict in found].count(False) == 2
    assert second.state_dict() == straight.state_dict()
