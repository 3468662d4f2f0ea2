"""What many jobs share fails for real, in an engine: once, now and then, or for one of them."""

import itertools
import random
import threading

import pytest
import torch

from server.engine.blame import LEAST_PARTS
from server.engine.errors import EngineFailed, OutOfMemory
from server.engine.layout import Layout
from server.engine.ledger import Ledger
from server.engine.limits import EngineLimits
from server.engine.requests import Sampling
from server.engine.results import Failed, Scored
from server.engine.scheduler import Scheduler, Sequence
from server.engine.solve import Solve
from tests.kernels import needs_int8
from tests.server.engine.helpers import (
    MODEL,
    NEAR,
    TEXT,
    drawn_ids,
    logprobs,
    running_engine,
    small_model,
)

LIMITS = EngineLimits(max_batch_tokens=40, max_running=8, window=5, prefix_cache=200)
GUILTY = 39
"""A word that only the guilty job has."""
TEXTS = [tuple(t % 39 for t in TEXT[i : i + 12]) for i in range(6)]
BAD = (1, 2, GUILTY, 4)


def run_jobs(caller, bad=None):
    """Scores and two texts beside them, begun in one turn: answers, and what the bad one got."""
    with caller.held():
        jobs = [caller.score(text, owner=str(i % 2)) for i, text in enumerate(TEXTS[:4])]
        texts = [
            caller.generate((3 + i,), 9, owner=str(i), sampling=Sampling(seed=i)) for i in range(2)
        ]
        guilty = None if bad is None else bad(caller)
    answers = [logprobs(caller.result(job)) for job in jobs]
    drawn = [drawn_ids(caller.events(text)) for text in texts]
    return answers, drawn, None if guilty is None else caller.result(guilty)


@pytest.fixture(scope="module")
def undisturbed():
    with running_engine(MODEL, LIMITS) as caller:
        return run_jobs(caller)[:2]


def is_as(found, undisturbed):
    for logprobs_, expected in zip(found[0], undisturbed[0], strict=True):
        assert logprobs_ == pytest.approx(expected, abs=NEAR)
    assert found[1] == undisturbed[1]


# (part of the engine, method): what jobs share.
BOOKKEEPING = [("_scheduler", "enter"), ("_runner._runs", "take_predictions")]
SHARED = [
    ("_batch", "enter"),
    ("_batch", "call"),
    ("_batch", "keep"),
    ("_batch._calls", "call"),
    ("_batch._calls", "keep"),
    ("_batch._f", "finish"),
    ("_batch._ledger", "judge"),
    ("_batch._solver", "advance"),
    ("_runner._softmax", "target_logprob"),
    ("_runner._softmax", "head"),
    ("_runner._guesses", "wanted"),
]
# Of the former there is nothing but the result, which is lost with it.
FAILURES = [(*step, "before") for step in BOOKKEEPING + SHARED]
FAILURES += [(*step, "after") for step in SHARED]


def part(engine, path):
    for name in path.split("."):
        engine = getattr(engine, name)
    return engine


@pytest.mark.parametrize(("path", "name", "when"), FAILURES)
def test_what_fails_once_does_no_harm(path, name, when, undisturbed, monkeypatch):
    """Before it has done anything, or when all is done and nobody has been told."""
    with running_engine(MODEL, LIMITS) as caller:
        owner = part(caller.engine, path)
        real, calls, broke = getattr(owner, name), itertools.count(), threading.Event()

        def breaks(*args, **kwargs):
            is_it = next(calls) == 3
            if is_it and when == "before":
                broke.set()
                raise RuntimeError("lost")
            result = real(*args, **kwargs)
            if is_it:
                broke.set()
                raise RuntimeError("lost")
            return result

        monkeypatch.setattr(owner, name, breaks)
        found = run_jobs(caller)
        assert broke.is_set()
        is_as(found, undisturbed)
        assert caller.engine.check().result(60) == []


def breaks_at_embedding(engine, raises):
    embed = engine._batch._embed

    def embeds(tokens):
        if GUILTY in tokens.tolist():
            raises()
        return embed(tokens)

    engine._batch._embed = embeds


def breaks_at_f(engine, raises):
    call = engine._batch._calls.call

    def calls(layout, settled, *, most_calls):
        residual = call(layout, settled, most_calls=most_calls)  # the solver has moved on
        if any(GUILTY in sequence.inputs for sequence in layout.sequences):
            raises()
        return residual

    engine._batch._calls.call = calls


def breaks_at_keeping(engine, raises):
    keep = engine._batch._calls.keep

    def keeps(verdicts):
        if any(GUILTY in verdict.sequence.inputs for verdict in verdicts):
            raises()
        return keep(verdicts)

    engine._batch._calls.keep = keeps


def breaks_at_scoring(engine, raises):
    target_logprob = engine._runner._softmax.target_logprob

    def scores(hidden, targets):
        if GUILTY in targets.tolist():
            raises()
        return target_logprob(hidden, targets)

    engine._runner._softmax.target_logprob = scores


def breaks_at_drawing(engine, raises):
    draw = engine._runner._draw

    def draws(drawing, works):
        if any(GUILTY in work.tokens for work in works):
            raises()
        draw(drawing, works)

    engine._runner._draw = draws


PLACES = [
    breaks_at_embedding,
    breaks_at_f,
    breaks_at_keeping,
    breaks_at_scoring,
    breaks_at_drawing,
]


def lost():
    raise RuntimeError("lost")


def full():
    torch.empty(1 << 60)  # what the allocator itself says to too much


@pytest.mark.parametrize(
    ("raises", "told"), [(lost, EngineFailed), (full, OutOfMemory)], ids=["defect", "memory"]
)
@pytest.mark.parametrize("breaks", PLACES)
def test_only_the_one_whose_fault_it_is_ends(breaks, raises, told, undisturbed, caplog):
    with running_engine(MODEL, LIMITS) as caller, caller.session("eve") as lease:
        before = caller.scored(caller.score((5, 6), lease=lease, owner="eve")).session
        breaks(caller.engine, raises)
        found = run_jobs(caller, lambda c: c.score(BAD, lease=lease, owner="eve"))
        assert isinstance(found[2], Failed)
        assert isinstance(found[2].error, told)
        is_as(found, undisturbed)
        assert caller.engine.sessions.view(lease).position == before.position
        assert isinstance(caller.result(caller.score((7,), lease=lease, owner="eve")), Scored)
        assert caller.engine.check().result(60) == []
        assert "is done again" in caplog.text


def test_two_guilty_ones_and_one_with_many_sequences(undisturbed):
    with running_engine(MODEL, LIMITS) as caller:
        breaks_at_f(caller.engine, lost)
        found = run_jobs(caller, lambda c: c.score((1,), candidates=(BAD, (2, 3), BAD, (4, 5))))
        assert isinstance(found[2], Failed)
        is_as(found, undisturbed)
        assert caller.engine.check().result(60) == []


def test_a_fault_of_all_ends_all_and_the_engine_goes_on(undisturbed):
    with running_engine(MODEL, LIMITS) as caller:
        calls, tries = caller.engine._batch._calls, itertools.count()
        call = calls.call

        def breaks(*args, **kwargs):
            next(tries)
            raise RuntimeError("device lost")

        with caller.held():
            jobs = [caller.score(text) for text in TEXTS]
            calls.call = breaks
        errors = [caller.result(job).error for job in jobs]
        assert {type(error) for error in errors} == {EngineFailed}
        assert "device lost" not in str(errors[0])
        caller.engine.check().result(60)
        assert next(tries) <= 4 * LEAST_PARTS
        calls.call = call
        is_as(run_jobs(caller), undisturbed)


# Steps of a shared call of f.
STEPS = [
    (path, name)
    for path, name in SHARED
    if path in ("_batch._calls", "_batch._f", "_batch._ledger", "_batch._solver")
] + [("_batch", "call")]
NOW_AND_THEN = 0.15
"""Of calls of f, those that fail."""


class Failures:
    """Has calls of f fail at random, before or after a step of them; never two in a row."""

    def __init__(self, engine, seed, monkeypatch):
        self.count = 0
        self._random, self._armed, self._rested = random.Random(seed), None, False
        for step in STEPS:
            owner = part(engine, step[0])
            monkeypatch.setattr(owner, step[1], self._breaking(getattr(owner, step[1]), step))
        call = engine._batch.call

        def calls(options):
            fails = self._rested and self._random.random() < NOW_AND_THEN
            self._rested = not fails
            when = self._random.choice(("before", "after"))
            self._armed = (self._random.choice(STEPS), when) if fails else None
            return call(options)

        monkeypatch.setattr(engine._batch, "call", calls)

    def _breaking(self, real, step):
        def breaks(*args, **kwargs):
            self._raise_if((step, "before"))
            result = real(*args, **kwargs)
            self._raise_if((step, "after"))
            return result

        return breaks

    def _raise_if(self, now):
        if self._armed == now:
            self._armed = None
            self.count += 1
            raise self._random.choice((RuntimeError, MemoryError, FloatingPointError))("lost")


@pytest.mark.parametrize("is_one_guilty", [False, True])
@pytest.mark.parametrize("seed", [11, 14, 19, 23])
def test_failures_now_and_then_change_no_answer(seed, is_one_guilty, undisturbed, monkeypatch):
    with running_engine(MODEL, LIMITS) as caller, caller.session("eve") as lease:
        before = caller.scored(caller.score((5, 6), lease=lease, owner="eve")).session
        failures = Failures(caller.engine, seed, monkeypatch)
        if is_one_guilty:
            breaks_at_f(caller.engine, lost)
        bad = caller.score if is_one_guilty else None
        found = run_jobs(caller, bad and (lambda c: bad(BAD, lease=lease, owner="eve")))
        assert failures.count >= 3
        is_as(found, undisturbed)
        if is_one_guilty:
            assert isinstance(found[2], Failed)
            assert isinstance(found[2].error, EngineFailed | OutOfMemory)  # that of its last try
        assert caller.engine.sessions.view(lease).position == before.position
        assert caller.engine.check().result(60) == []


@pytest.mark.parametrize("most", [1, 8])
def test_smaller_calls_where_memory_is_short(most, undisturbed):
    """What does not fit into memory at once is done in parts, down to a row at a time."""
    with running_engine(MODEL, LIMITS) as caller:
        caller.scored(caller.score(TEXT, owner="dan"))
        assert caller.engine.snapshot().prefix_tokens > 0
        calls, sizes = caller.engine._batch._calls, []
        call = calls.call

        def is_large(layout, settled, *, most_calls):
            if len(layout.row_ids) > most:
                full()
            sizes.append(len(layout.row_ids))
            return call(layout, settled, most_calls=most_calls)

        calls.call = is_large
        is_as(run_jobs(caller), undisturbed)
        assert max(sizes) <= most
        assert caller.engine.check().result(60) == []


def test_a_solve_that_is_left_half_done_goes_on(undisturbed, monkeypatch):
    """The solver stops in the midst of writing: what it knew is dropped, where it stood is not."""
    with running_engine(MODEL, LIMITS) as caller:
        solver, calls = caller.engine._batch._solver, itertools.count()
        real = solver.advance

        def stops_midway(rows, f_z, **kwargs):
            if next(calls) % 7 == 3:
                solver._rule.terms[rows] = torch.nan
                solver._rule.count[rows] = 3
                solver._state[rows[::2], 1:] = 7.0
                solver._least[rows] = 0.0
                raise MemoryError
            real(rows, f_z, **kwargs)

        monkeypatch.setattr(solver, "advance", stops_midway)
        is_as(run_jobs(caller), undisturbed)


def test_a_solve_that_begins_anew_has_no_anchor_and_the_budget_that_is_left():
    scheduler = Scheduler(max_batch_tokens=4, max_running=1, window=2)
    sequence, ledger = Sequence(slot=0, start=0, inputs=[1, 2]), Ledger(4)
    scheduler.add(sequence)
    for entry in scheduler.enter():
        ledger.begin(entry.row)
    layout = Layout.of([sequence])
    assert ledger.anchored(layout, [True] * len(layout.row_ids)) == [True] * len(layout.row_ids)
    ledger.note(layout, [0.5] * len(layout.row_ids), [0.2] * len(layout.row_ids))
    for row in layout.row_ids:
        ledger.begin_anew(row)
    assert ledger.anchored(layout, [False] * len(layout.row_ids)) == [False] * len(layout.row_ids)
    assert ledger.most_calls(layout) == 1
    assert ledger.residual(layout.row_ids[0]) == float("inf")


@needs_int8
def test_anchors_of_calls_that_failed_are_not_trusted():
    """Of the 8-bit differences: an anchor that was chosen, and not computed whole, is none."""
    model = small_model(d_model=64, d_head=32, d_inner=128, seed=5).float().eval()
    solve = Solve(tol=1e-3, max_nfe=100)
    with running_engine(model, LIMITS, dtype=torch.float32, early_int8=True) as caller:

        def answers():
            with caller.held():
                jobs = [
                    caller.score(text, solve=solve, owner=str(i)) for i, text in enumerate(TEXTS)
                ]
            return [logprobs(caller.result(job)) for job in jobs]

        expected = answers()
        int8, calls = caller.engine._batch._int8, itertools.count()
        kind, broke = type(int8), []
        feed_forward = kind.__call__
        wrong = torch.randn(64, generator=torch.Generator().manual_seed(0)) / 8

        def stops(self, x):
            out = feed_forward(self, x)
            if bool(self._exact.any()) and next(calls) % 5 == 1:
                at = self._anchors[self._exact]
                broke.append(len(at))
                y = self._tensors[10]  # of the anchors, and near enough to be believed
                y[at] += 0.04 * (y[at] + x[self._exact]).norm(dim=1, keepdim=True) * wrong
                raise MemoryError
            return out

        kind.__call__ = stops
        try:
            caller.engine._runner._sharing.clear()
            found = answers()
        finally:
            kind.__call__ = feed_forward
        assert broke
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, abs=0.02)
