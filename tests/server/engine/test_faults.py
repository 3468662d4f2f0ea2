"""What goes wrong inside one job, or inside the engine, and who is told of it."""

import itertools

import pytest
import torch
from torch import Tensor

from server.engine.errors import EngineFailed
from server.engine.requests import Piece, Stop
from server.engine.results import Event, Failed, Generated, Scored
from tests.server.engine.helpers import MODEL, PlainText, running_engine, small_model


class Broken(PlainText):
    """A text sink that breaks at one of its calls."""

    def __init__(self, at: str) -> None:
        self._at = at

    def feed(self, token_id: int) -> Piece:
        if self._at == "feed":
            raise RuntimeError("broken text")
        return super().feed(token_id)

    def finish(self) -> str:
        if self._at == "finish":
            raise RuntimeError("broken text")
        return super().finish()


@pytest.mark.parametrize("at", ["feed", "finish"])
def test_a_broken_text_fails_its_own_job_only(at: str, caplog: pytest.LogCaptureFixture) -> None:
    with running_engine(MODEL) as caller, caller.session() as lease:
        good = caller.generate((1,), 20)
        bad = caller.generate((1,), 2, text=Broken(at), lease=lease)
        event = caller.result(bad)
        assert isinstance(event, Failed)
        assert isinstance(event.error, EngineFailed)
        assert "broken text" in caplog.text
        assert isinstance(caller.result(good), Generated)
        view = caller.engine.sessions.view(lease)
        assert view is not None
        assert view.position == 0


def test_a_raising_sink_hurts_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    def sink(event: Event) -> None:
        raise RuntimeError("broken sink")

    with running_engine(MODEL) as caller:
        good = caller.generate((1,), 20)
        caller.generate((1,), 3, sink=sink)
        caller.score((1,), sink=sink)
        caller.engine.cancel(caller.generate((1,), 100_000, sink=sink))
        assert isinstance(caller.result(good), Generated)
        assert isinstance(caller.result(caller.score((1, 2))), Scored)
        assert "broken sink" in caplog.text
        assert caller.engine.alive


@pytest.mark.parametrize("name", ["load", "reset"])
def test_a_job_that_cannot_begin_leaves_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with running_engine(MODEL) as caller, caller.session() as lease:
        good = caller.generate((1,), 20)
        caller.result(caller.score((1, 2), lease=lease))
        slab = caller.engine._slab
        real, calls = getattr(slab, name), itertools.count()

        def breaks_once(*slots: int) -> None:
            if next(calls) == 0:
                raise RuntimeError("device lost")
            real(*slots)

        monkeypatch.setattr(slab, name, breaks_once)
        event = caller.result(caller.score((3,), lease=lease if name == "load" else None))
        assert isinstance(event, Failed)
        assert "device lost" in caplog.text
        assert isinstance(caller.result(good), Generated)
        assert isinstance(caller.result(caller.score((3,), lease=lease)), Scored)


def test_a_job_without_tokens_fails_alone() -> None:
    with running_engine(MODEL) as caller, caller.session() as lease:
        caller.result(caller.score((1,), lease=lease))
        good = caller.generate((1,), 20)
        assert isinstance(caller.result(caller.score((), lease=lease)), Failed)
        assert isinstance(caller.result(caller.score((), lease=lease, candidates=((),))), Failed)
        assert isinstance(caller.result(good), Generated)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_thread_answers_what_it_had_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_engine(MODEL) as caller:
        job = caller.generate((1,), 100_000)
        caller.open[job].get(timeout=60)

        def dies() -> None:
            raise SystemExit  # ends a thread without a word

        monkeypatch.setattr(caller.engine._runner, "step", dies)
        assert isinstance(caller.result(job), Failed)


def test_a_slot_does_not_pass_on_what_it_held() -> None:
    model = small_model(seed=4, tie_weights=False).eval()
    with torch.no_grad():  # one word whose keys and values are infinite
        model.embedding.tables[0][7].fill_(torch.inf)
    with running_engine(model) as caller:
        clean = caller.result(caller.score((1, 2)))
        # Beside a long history attention looks at all entries of a slot.
        mate = caller.generate((1,) * 12, 100_000, stop=Stop(max_tokens=100_000, eos_id=None))
        caller.open[mate].get(timeout=60)
        caller.result(caller.score((1, 7, 2, 7, 2, 7, 1, 1, 1, 1, 1)))
        event = caller.result(caller.score((1, 2)))
        caller.engine.cancel(mate)
        caller.result(mate)
    assert isinstance(clean, Scored)
    assert isinstance(event, Scored)
    assert event.stats.status == "converged"
    assert [t.logprob for t in event.tokens] == pytest.approx([t.logprob for t in clean.tokens])


def test_no_entry_of_a_ring_is_written_twice_in_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(tgt_len=1, mem_len=1).eval()
    with running_engine(model) as caller:
        slab, seen = caller.engine._slab, []
        write = slab.write_keys

        def watched(rows: Tensor, entries: Tensor, key: Tensor, value: Tensor) -> None:
            places = torch.stack([rows, entries]).T
            seen.append(len(places) == len(places.unique(dim=0)))
            write(rows, entries, key, value)

        monkeypatch.setattr(slab, "write_keys", watched)
        stop = Stop(max_tokens=3)
        jobs = [caller.score(tuple(range(20))), caller.generate((4,) * 20, 3, stop=stop)]
        for job in jobs:
            caller.result(job)
    assert all(seen)
