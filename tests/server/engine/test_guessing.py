"""Tokens guessed ahead: the same texts in fewer calls of f, whatever becomes of the guesses."""

import functools
import random
import time
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine import guessing
from server.engine.costs import CostCurve
from server.engine.layout import Layout
from server.engine.ledger import Ledger
from server.engine.limits import EngineLimits
from server.engine.next_token import NextToken
from server.engine.observer import Unobserved
from server.engine.requests import Piece, Sampling, Stop
from server.engine.results import Drawn, Failed, Generated, PromptSolved
from server.engine.sampling import draw
from server.engine.scheduler import STREAM_SLOWDOWN, Scheduler, Sequence
from server.engine.solve import Solve
from tests.server.engine.helpers import (
    NEAR,
    TIGHT,
    Caller,
    drawn_ids,
    logprobs,
    reference,
    running_engine,
    small_model,
)

MODEL = small_model(seed=4).eval()
TEXT = tuple(torch.randint(0, 40, (29,), generator=torch.Generator().manual_seed(1)).tolist())
SAMPLINGS = (
    Sampling(seed=1),
    Sampling(temperature=0.0),
    Sampling(temperature=1.5, seed=2),
    Sampling(top_k=5, top_p=0.9, seed=3),
    Sampling(min_p=0.1, repetition_penalty=1.7, seed=4),
)


def limits(guess_ahead: int, **more: int) -> EngineLimits:
    sizes = {"max_batch_tokens": 24, "max_running": 4, "window": 6, **more}
    return EngineLimits(guess_ahead=guess_ahead, **sizes)


class Watch(Unobserved):
    """Counts calls of f and what became of guesses."""

    def __init__(self) -> None:
        self.calls = self.right = self.withdrawn = self.most_rows = 0

    def step(self, *, rows: int, sequences: int, seconds: float) -> None:
        self.calls += 1
        self.most_rows = max(rows, self.most_rows)

    def guessed(self, *, right: int, withdrawn: int) -> None:
        self.right += right
        self.withdrawn += withdrawn


def watched(caller: Caller) -> Watch:
    caller.engine._runner.observer = watch = Watch()
    return watch


def text_of(caller: Caller, sampling: Sampling, count: int = 20) -> list[int]:
    stop = Stop(max_tokens=count, min_tokens=4, stop_ids=frozenset({7}), eos_id=0)
    return drawn_ids(caller.events(caller.generate(TEXT[:3], 0, sampling=sampling, stop=stop)))


@pytest.fixture(scope="module")
def shared() -> Iterator[Caller]:
    with running_engine(MODEL, limits(4, max_running=8)) as caller:
        yield caller


@functools.cache
def texts_without() -> list[list[int]]:
    with running_engine(MODEL, limits(0)) as caller:
        watch = watched(caller)
        texts = [text_of(caller, sampling) for sampling in SAMPLINGS]
        assert (watch.right, watch.withdrawn, watch.most_rows) == (0, 0, 4)  # <eos> and the prompt
    return texts


@pytest.mark.parametrize("near", [0.2, 1e-3, float("inf")], ids=["usual", "late", "at once"])
def test_texts_are_those_without_guesses(near: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guessing, "NEAR", near)
    with running_engine(MODEL, limits(4)) as caller:
        watch = watched(caller)
        assert [text_of(caller, sampling) for sampling in SAMPLINGS] == texts_without()
    assert watch.right > 0
    if near > 1:  # from their first states: some must be withdrawn
        assert watch.withdrawn > 0


def test_a_text_takes_half_the_calls() -> None:
    calls = []
    for ahead in (0, 4):
        with running_engine(MODEL, limits(ahead)) as caller:
            watch = watched(caller)
            caller.result(caller.generate((1,), 0, stop=Stop(max_tokens=30)))
            calls.append(watch.calls)
    assert calls[1] < calls[0] / 2


def test_guesses_leave_no_trace_in_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guessing, "NEAR", float("inf"))
    with running_engine(MODEL, limits(4)) as caller, caller.session() as lease:
        watch = watched(caller)
        tokens: list[int] = []
        for seed in range(4):
            job = caller.generate((seed,), 5, lease=lease, sampling=Sampling(seed=seed))
            events = caller.events(job)
            final = events[-1]
            assert isinstance(final, Generated)
            assert final.session is not None
            tokens += [seed, *drawn_ids(events)]
            assert final.session.position == len(tokens)
            expected = sum(reference(MODEL, tuple(tokens)))
            assert final.session.totals.logprob_sum == pytest.approx(expected, abs=NEAR)
        event = caller.result(caller.score((3, 9), lease=lease))
        assert logprobs(event) == pytest.approx(reference(MODEL, (*tokens, 3, 9))[-2:], abs=NEAR)
    assert watch.withdrawn > 0


@pytest.mark.parametrize("max_calls", [1, 3, 8, 15, 40])
def test_a_budget_ends_what_is_accepted(max_calls: int) -> None:
    with running_engine(MODEL, limits(4)) as caller, caller.session() as lease:
        stop = Stop(max_tokens=20, eos_id=None)
        job = caller.generate((1, 2), 0, stop=stop, lease=lease, max_calls=max_calls)
        events = caller.events(job)
        final = events[-1]
        assert isinstance(final, Generated)
        assert final.stats.nfe_total <= max_calls
        assert final.reason == "calls"
        found = drawn_ids(events)
        whole = drawn_ids(caller.events(caller.generate((1, 2), 0, stop=stop)))
        assert found == whole[: len(found)]
        assert final.session is not None
        assert final.session.position <= 2 + len(found)


def test_streams_that_fill_a_call_are_not_guessed() -> None:
    """Where a row more takes as much longer as there are more, none pays."""
    proportional = CostCurve.measured([(1, 1e-3)])
    flat = CostCurve.measured([(1, 1e-3), (24, 1.2e-3)])
    for costs, guessed in ((proportional, False), (flat, True)):
        with running_engine(MODEL, limits(4), costs=costs) as caller:
            watch = watched(caller)
            jobs = [caller.generate((i,), 0, stop=Stop(max_tokens=12)) for i in range(3)]
            for job in jobs:
                caller.result(job)
        assert (watch.right + watch.withdrawn > 0) == guessed
        assert (watch.most_rows > 6) == guessed


def test_the_last_token_is_not_followed_by_a_guess() -> None:
    with running_engine(MODEL, limits(4)) as caller:
        watch = watched(caller)
        for count in (1, 2, 3):
            stop = Stop(max_tokens=count, eos_id=None)
            caller.result(caller.generate((5,), 0, stop=stop, sampling=Sampling(temperature=0)))
        assert watch.withdrawn == 0
        assert watch.right <= 0 + 1 + 2


@settings(max_examples=25, deadline=None)
@given(
    loose=st.booleans(),
    seeds=st.lists(st.integers(0, 1000), min_size=3, max_size=3),
    score=st.booleans(),
)
def test_batch_mates_change_no_text(
    shared: Caller, loose: bool, seeds: list[int], score: bool
) -> None:
    def texts() -> list[str]:
        prompts = enumerate(seeds)
        return [shared.generate((i,), 8, sampling=Sampling(seed=seed)) for i, seed in prompts]

    alone = [drawn_ids(shared.events(job)) for job in texts()]
    others = [shared.score(TEXT)] if score else []
    if loose:
        others.append(shared.generate((9,), 6, solve=Solve(tol=1e-3, max_nfe=100)))
    assert [drawn_ids(shared.events(job)) for job in texts()] == alone
    for other in others:
        shared.result(other)


def test_calls_on_guesses_are_of_no_budget() -> None:
    """A token converges by its own calls, however many were made while it was a guess."""
    short = Solve(tol=TIGHT.tol, max_nfe=15)
    statuses = []
    for ahead in (0, 4):
        with running_engine(MODEL, limits(ahead)) as caller:
            stop = Stop(max_tokens=25, eos_id=None)
            events = caller.events(caller.generate((1,), 0, stop=stop, solve=short))
        found = [event.token.solved for event in events if isinstance(event, Drawn)]
        statuses.append([solved.status for solved in found])
        for solved in found:
            if solved.nfe > short.max_nfe:
                assert ahead > 0
                assert solved.status == "converged"
    assert statuses[0].count("converged") < 5
    assert statuses[1].count("converged") > 20


class Halting:
    """A text sink that breaks at its third token."""

    def __init__(self) -> None:
        self.fed = 0

    def feed(self, token_id: int) -> Piece:
        self.fed += 1
        if self.fed == 3:
            raise RuntimeError("full")
        return Piece("x")

    def finish(self) -> str:
        return ""


def test_jobs_end_with_guesses_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    """However that is; all rows are free at the end, and others go on."""
    monkeypatch.setattr(guessing, "NEAR", float("inf"))
    endless = Stop(max_tokens=10_000, eos_id=None)
    with running_engine(MODEL, limits(4)) as caller, caller.session() as lease:
        other = caller.generate((3,), 30, stop=Stop(max_tokens=30, eos_id=None))
        broken = caller.result(caller.generate((1,), 0, stop=endless, text=Halting()))
        assert isinstance(broken, Failed)
        late = caller.generate((1,), 0, stop=endless, answer_by=time.monotonic() + 0.3, lease=lease)
        assert isinstance(caller.result(late), Generated)
        cancelled = caller.generate((2,), 0, stop=endless)
        assert isinstance(caller.open[cancelled].get(timeout=60), PromptSolved)
        caller.engine.cancel(cancelled)
        assert isinstance(caller.result(cancelled), Failed)
        strict = Solve(tol=1e-7, max_nfe=1, policy="error")
        assert isinstance(caller.result(caller.generate((2,), 9, solve=strict)), Failed)
        assert len(drawn_ids(caller.events(other))) == 30


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.floats(0.001, 0.2))
def test_near_distributions_draw_alike(seed: int, size: float) -> None:
    """They part in at most twice their distance in total variation, and some standard errors."""
    torch.manual_seed(seed)
    hidden = torch.randn(16, dtype=torch.float64)
    moved = hidden + size * torch.randn(16, dtype=torch.float64)
    numbers = random.Random(seed)
    draws, parted = 300, 0
    with torch.no_grad():
        one, other = (NextToken(MODEL.softmax, state) for state in (hidden, moved))
        chances = [MODEL.softmax.log_prob(state[None])[0].exp() for state in (hidden, moved)]
        for _ in range(draws):
            number = numbers.getrandbits(64)
            found = {
                draw(source, Sampling(), seen=(), forbidden=(), generator=random.Random(number))
                for source in (one, other)
            }
            parted += len(found) > 1
    bound = float((chances[0] - chances[1]).abs().sum())  # twice the total variation
    deviation = (draws * bound * max(0.0, 1 - bound)) ** 0.5 if bound < 1 else 0.0
    assert parted <= draws * bound + 5 * deviation + 1


def test_what_is_withdrawn_gives_its_rows_back() -> None:
    scheduler = Scheduler(max_batch_tokens=6, max_running=2, window=5)
    sequence = Sequence(slot=0, start=0, inputs=[1, 2, 3, 4], draws=True, guessed=2)
    scheduler.add(sequence)
    assert len(scheduler.enter()) == 4
    scheduler.accept(sequence, 1, near=3)
    scheduler.withdraw(sequence)
    assert (sequence.inputs, sequence.guessed, len(sequence.rows)) == ([1, 2], 0, 1)
    assert sequence.granted == 1 == scheduler.active_rows
    assert sequence.interactive
    sequence.inputs += [5, 6, 7, 8]
    entries = scheduler.enter()
    assert [entry.index for entry in entries] == [2, 3, 4, 5]
    rows = [entry.row for entry in entries]
    assert len({*rows, *sequence.rows}) == 5


@pytest.mark.parametrize("streams", [1, 4])
def test_guesses_come_first_and_others_are_given_more(streams: int) -> None:
    """What streams bear is counted with their guesses."""
    costs = CostCurve.measured([(1, 1e-3), (64, 9e-3)])
    scheduler = Scheduler(
        max_batch_tokens=64, max_running=streams + 1, window=40, max_rows=128, costs=costs
    )
    for slot in range(streams):
        text = Sequence(slot=slot, start=0, inputs=[1], draws=True, owner=f"stream {slot}")
        scheduler.add(text)
    long = Sequence(slot=streams, start=0, inputs=[1] * 100, owner="long")
    scheduler.add(long)
    scheduler.enter()
    for sequence in scheduler.active:
        scheduler.accept(sequence, 0, near=40)
        if sequence.draws:
            sequence.inputs += [2] * 4
            sequence.guessed = 4
    scheduler.enter()
    assert all(s.granted == 5 for s in scheduler.running if s.draws)
    bearable = costs.within(STREAM_SLOWDOWN * costs.seconds(5 * streams))
    assert long.granted == bearable - 5 * streams > 1


def test_behind_a_far_token_no_row_is_computed_exactly() -> None:
    """A row that is near gets no anchor while one before it in its window is far."""
    sequence = Sequence(slot=0, start=0, inputs=[1, 2, 3])
    scheduler = Scheduler(max_batch_tokens=3, max_running=1, window=3)
    scheduler.add(sequence)
    ledger, options = Ledger(3), {sequence: Solve(tol=1e-3, max_nfe=100)}
    for entry in scheduler.enter():
        ledger.begin(entry.row)
    layout, rough = Layout.of([sequence]), [8e-3] * 3
    assert ledger.exact(layout, options) == [False, False, False], "nothing is known yet"
    ledger.note(layout, [0.5, 1e-2, 0.5], rough)
    assert ledger.exact(layout, options) == [False, False, False]
    ledger.note(layout, [1e-2, 1e-2, 0.5], rough)
    exact = ledger.exact(layout, options)
    assert exact == [True, True, False]
    assert ledger.anchored(layout, exact) == exact
    ledger.note(layout, [5e-3, 5e-3, 1e-2], [0.0, 0.0, 8e-3])
    assert ledger.exact(layout, options) == [False] * 3, "none that could be accepted needs it"
    ledger.note(layout, [5e-3, 5e-3, 1e-2], [8e-3, 0.0, 8e-3])
    exact = ledger.exact(layout, options)
    assert exact == [True, False, True]
    assert ledger.anchored(layout, exact) == [True] * 3
    ledger.note(layout, [float("inf"), 1e-3, 1e-3], [0.0, 1e-4, 0.0])
    assert ledger.anchored(layout, [False] * 3) == [False, True, True], "an anchor was not finite"
