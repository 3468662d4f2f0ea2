"""Where no compiler made the kernels, torch's operations give the same answers."""

import logging
from pathlib import Path

import pytest
import torch

from deq_model.native import library
from deq_model.solvers import native
from server import loading
from server.config import ModelSource, ServerConfig
from server.engine import rings
from server.engine.calls import PackedCalls
from server.engine.observer import Unobserved
from server.engine.requests import Sampling
from server.engine.solve import Solve
from tests.kernels import needs_kernels
from tests.server.engine.helpers import drawn_ids, logprobs, running_engine, small_model
from tests.server.tiny import save_words

TEXT = (3, 1, 30, 12, 39, 5, 5, 20, 33, 2, 8, 17, 4, 4, 9)


def answers() -> tuple[list[float], list[int], bool]:
    """Log-probabilities, drawn tokens, and whether the kernel did the attention."""
    with running_engine(small_model(seed=7).float().eval(), dtype=torch.float32) as caller:
        scored = logprobs(caller.result(caller.score(TEXT, solve=Solve(tol=1e-5, max_nfe=200))))
        job = caller.generate((1, 2), 12, sampling=Sampling(seed=5))
        drawn = drawn_ids(caller.events(job))
        calls = caller.engine._batch._calls
        assert isinstance(calls, PackedCalls)
        return scored, drawn, calls._rings is not None


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (library, native, rings, loading):
        monkeypatch.setattr(module, "find", lambda name: None)


@needs_kernels
def test_answers_are_the_same_with_kernels_and_without(request: pytest.FixtureRequest) -> None:
    scored, drawn, by_kernel = answers()
    assert by_kernel
    request.getfixturevalue("no_kernels")
    plainly, drawn_plainly, by_kernel = answers()
    assert not by_kernel
    assert scored == pytest.approx(plainly, abs=2e-4)
    assert drawn == drawn_plainly


@pytest.mark.usefixtures("no_kernels")
def test_a_server_says_that_they_are_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = ModelSource(name="tiny", path=save_words(tmp_path))
    with caplog.at_level(logging.WARNING):
        engine = loading.load_engine(source, ServerConfig(), Unobserved())
    engine.stop(grace_s=0)
    assert "without the kernels in C calls of f take longer" in caplog.text
