"""The engine on a GPU; run with ``pytest -m gpu``."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from server.engine.graphs import Graphs, PaddedCalls
from server.engine.requests import Sampling
from server.engine.scheduler import Sequence
from server.engine.solve import Solve
from tests.server.engine.helpers import drawn_ids, running_engine, small_model
from tests.server.engine.sides import Side

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TEXT = tuple(range(1, 30))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gpu_and_cpu_agree(dtype: torch.dtype) -> None:
    model = small_model(seed=5).eval()
    results = []
    for device in ("cpu", "cuda"):
        with running_engine(model.to(dtype), dtype=dtype, device=device) as caller:
            event = caller.scored(caller.score(TEXT))
            results.append([token.logprob for token in event.tokens])
    assert results[0] == pytest.approx(results[1], abs=1e-3)


def test_seeds_reproduce_on_the_gpu() -> None:
    with running_engine(small_model(seed=5).eval(), device="cuda") as caller:
        jobs = [caller.generate((1, 2), 12, sampling=Sampling(seed=3)) for _ in range(2)]
        first, second = (drawn_ids(caller.events(job)) for job in jobs)
    assert first == second


def test_graphs_answer_as_what_they_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """With mates that come and go, and as on a CPU, where just the rows there are take part."""
    solve, short = Solve(tol=1e-7, max_nfe=200), Solve(tol=1e-7, max_nfe=4)
    jobs = [(TEXT, solve, 0), (TEXT[3:9], solve, 4), (TEXT[5:20], short, 6), (TEXT[:20], solve, 9)]
    with torch.inference_mode():
        on_cpu = Side(small_model(seed=3).eval(), padded=False).solve(jobs)
    model = small_model(seed=3).eval().to("cuda")
    with torch.inference_mode():
        replayed = Side(model, padded=True).solve(jobs)
        monkeypatch.setattr(Graphs, "of", lambda self, act: act)
        eager = Side(model, padded=True).solve(jobs)
    for token, other in on_cpu.items():
        ours = replayed[token]
        assert ours.solved.nfe == eager[token].solved.nfe == other.solved.nfe
        torch.testing.assert_close(ours.z_star, eager[token].z_star, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours.z_star.cpu(), other.z_star, rtol=1e-7, atol=1e-7)


@contextmanager
def waits() -> Iterator[list[str]]:
    """What the host waited for meanwhile."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found += [f"{w.filename}:{w.lineno}" for w in seen if "synchronizing" in str(w.message)]


def test_the_host_waits_once_a_call() -> None:
    model = small_model(seed=3).eval().to("cuda")
    with torch.inference_mode():
        side = Side(model, padded=True)
        for again in (False, True):  # graphs are recorded in the first round
            sequence = Sequence(slot=0, start=0, inputs=list(TEXT[:20]))
            side.slab.reset(0)
            side.scheduler.add(sequence)
            while not sequence.done:
                with waits() as entering:
                    side.batch.enter(side.scheduler.enter())
                with waits() as calling:
                    side.batch.step(side.scheduler, {sequence: Solve(tol=1e-6)})
                if again:
                    assert entering == []
                    assert len(calling) == 1, calling
            side.scheduler.remove(sequence)


def test_graphs_of_streams_are_recorded_at_the_start() -> None:
    with running_engine(small_model(seed=5).eval(), device="cuda", measured=True) as caller:
        calls = caller.engine._batch._calls
        assert isinstance(calls, PaddedCalls)
        before = len(calls._calls), len(calls._keeps)
        caller.result(caller.generate((), 30, sampling=Sampling(seed=1)))
        assert (len(calls._calls), len(calls._keeps)) == before
