"""How long jobs are foretold to take, and what is learned of how long they took."""

import random

import pytest

from server.engine.errors import Cancelled, DeadlineExceeded, EngineFailed, TooLate
from server.engine.forecast import Forecast, Margin
from server.engine.requests import ScoreJob
from server.engine.work import Work


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def job(size: int, deadline: float | None = None) -> ScoreJob:
    return ScoreJob(job_id="j", tokens=(1,) * size, deadline=deadline, sink=lambda event: None)


def at_100_tokens_a_second(clock: Clock) -> Forecast:
    forecast = Forecast(clock)
    forecast.look([Work(job(5), clock.now)], 0)
    clock.now += 1.0
    forecast.look([], 100)
    return forecast


def ended(forecast: Forecast, clock: Clock, took_s: float, error=None, deadline=None) -> None:
    work = Work(job(100, deadline), clock.now, foretold_s=forecast.foretell(100, 0))
    clock.now += took_s
    work.finished, work.error = True, error
    forecast.end(work)


def test_a_job_is_refused_that_its_margin_does_not_fit():
    forecast = at_100_tokens_a_second(Clock())
    assert forecast.foretell(60, 40) == pytest.approx(1.0)
    forecast.check(1.0, Margin.FIRST + 0.01, 1.0, others_wait=True)
    with pytest.raises(TooLate, match=r"at least 3 s away with what goes .*, got 2\.9 s"):
        forecast.check(1.0, Margin.FIRST - 0.1, 1.0, others_wait=True)
    forecast.check(1.0, Margin.LEAST + 0.01, 1.0, others_wait=False)
    with pytest.raises(TooLate, match="at least 2 s away"):
        forecast.check(1.0, Margin.LEAST - 0.1, 1.0, others_wait=False)
    assert forecast.retry_after_s(250) == pytest.approx(2.5)


def test_tokens_that_are_solved_again_take_their_time():
    clock = Clock()
    forecast = at_100_tokens_a_second(clock)
    forecast.look([Work(job(100), clock.now)], 100)
    assert forecast.foretell(200, 0) == pytest.approx(3.0)
    forecast.look([Work(job(100), clock.now, again=(1,) * 50)], 100)
    assert forecast.foretell(200, 0) == pytest.approx(3.5)


def test_nothing_is_refused_while_nothing_is_known():
    forecast = Forecast(Clock())
    assert forecast.foretell(10_000, 10_000) is None
    forecast.check(None, 0.0, 1.0, others_wait=True)


@pytest.mark.parametrize(
    ("factor", "margin"), [(1.0, Margin.LEAST), (4.0, 4.0), (50.0, Margin.MOST)]
)
def test_the_margin_follows_what_jobs_took(factor, margin):
    clock = Clock()
    forecast = at_100_tokens_a_second(clock)
    for _ in range(100):
        ended(forecast, clock, factor)
    assert forecast.margin == pytest.approx(margin)
    for others_wait in (True, False):  # what comes later shares the calls of f, queue or none
        forecast.check(1.0, margin + 0.01, 1.0, others_wait=others_wait)
        with pytest.raises(TooLate):
            forecast.check(1.0, margin - 0.01, 1.0, others_wait=others_wait)


def test_the_margin_holds_for_all_but_one_in_a_hundred():
    margin, noise = Margin(), random.Random(0)
    factors = [noise.lognormvariate(0.5, 0.4) for _ in range(20_000)]
    over = 0
    for factor in factors:
        over += factor > margin.times
        margin.note(1.0, factor, late=False)
    assert 0.004 < over / len(factors) < 0.02


def test_a_job_that_its_deadline_ended_counts_for_more_than_its_time():
    margin = Margin()
    for _ in range(100):
        margin.note(1.0, 3.0, late=True)
    assert margin.times == pytest.approx(3.6)


def test_it_learns_from_those_that_were_done_or_late_alone():
    clock = Clock()
    forecast = at_100_tokens_a_second(clock)
    for _ in range(100):
        ended(forecast, clock, 5.0, EngineFailed("defect"))
        ended(forecast, clock, 5.0, Cancelled("by its caller"), deadline=clock.now + 60)
    assert forecast.margin == Margin.FIRST
    for _ in range(100):
        # gRPC ends a call at its deadline, a moment before the engine would.
        ended(forecast, clock, 3.99, Cancelled("by its caller"), deadline=clock.now + 4)
        ended(forecast, clock, 4.0, DeadlineExceeded("late"), deadline=clock.now + 4)
    assert forecast.margin == pytest.approx(4.8)


def test_what_is_foretold_in_no_time_teaches_nothing():
    clock = Clock()
    forecast = at_100_tokens_a_second(clock)
    for _ in range(100):
        work = Work(job(5), clock.now, foretold_s=forecast.foretell(5, 0))
        clock.now += 2.0
        forecast.end(work)
    assert forecast.margin == Margin.FIRST
