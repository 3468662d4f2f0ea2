"""Streams solved by a sliding window: the engine's answers, for the engine's calls of f."""

import pytest
import torch

from deq_model.solvers.options import SolverOptions, SolverStatus
from deq_model.warm_start import WarmStart
from server.engine.costs import CostCurve
from server.engine.limits import EngineLimits
from server.engine.solve import Solve
from tests.server.engine.helpers import NEAR, reference, running_engine, small_model
from training.calibration.window import SolvedStreams, solve_streams

MODEL = small_model().eval().requires_grad_(False)
TEXTS = torch.randint(0, 40, (2, 24), generator=torch.Generator().manual_seed(1))
NO_ROOM = CostCurve(rows=(1,), times=(1.0,))
"""Every row costs as much as the first: calls are filled with what is worth it, and no more."""
STREAMS = torch.cat([torch.zeros(2, 1, dtype=torch.int64), TEXTS], dim=1)


def some_map() -> WarmStart:
    dim = MODEL.config.d_model
    generator = torch.Generator().manual_seed(3)
    weight = 0.1 * torch.randn(dim, 4 * dim, generator=generator, dtype=torch.float64)
    return WarmStart(
        from_injection=weight[:, : 3 * dim],
        from_previous=weight[:, 3 * dim :],
        bias=torch.zeros(dim, dtype=torch.float64),
        layer_norm=True,
    )


@pytest.mark.parametrize("warm_start", [None, some_map()], ids=["zeros", "warm"])
@pytest.mark.parametrize("window", [1, 5])
def test_calls_are_the_engines(window: int, warm_start: WarmStart | None) -> None:
    def solve(max_nfe: int) -> SolvedStreams:
        options = SolverOptions(tol=1e-3, max_nfe=max_nfe)
        return solve_streams(
            MODEL, MODEL.f.fold(), STREAMS, options, window=window, warm_start=warm_start
        )

    max_nfe = int(solve(100).nfe.max()) - 1  # some tokens spend that budget
    solved = solve(max_nfe)
    limits = EngineLimits(max_batch_tokens=2 * window, max_running=2, window=window)
    with running_engine(MODEL, limits, warm_start=warm_start, costs=NO_ROOM) as caller:
        for text, nfe, status in zip(TEXTS, solved.nfe, solved.status, strict=True):
            limit = Solve(tol=1e-3, max_nfe=max_nfe)
            event = caller.scored(caller.score(tuple(text.tolist()), solve=limit))
            assert [token.solved.nfe for token in event.tokens] == nfe[:-1].tolist()
            found = [token.solved.status == "converged" for token in event.tokens]
            assert found == (status[:-1] == SolverStatus.CONVERGED).tolist()
    assert 0 < solved.unconverged < STREAMS.numel()


@pytest.mark.parametrize("window", [1, 4, 100])
def test_states_are_the_fixed_points(window: int) -> None:
    options = SolverOptions(tol=1e-7, max_nfe=200)
    solved = solve_streams(MODEL, MODEL.f.fold(), STREAMS, options, window=window)
    assert solved.unconverged == 0
    found = -MODEL.nll(solved.z_star[:, :-1], TEXTS)
    for text, row in zip(TEXTS, found, strict=True):
        expected = reference(MODEL, tuple(text.tolist()))
        assert row.tolist() == pytest.approx(expected, abs=NEAR)


def test_tokens_wait_for_those_before_them() -> None:
    """Behind the gate a window takes hardly more calls of f on a token than generation does."""
    options = SolverOptions(tol=1e-3, max_nfe=100)
    one, six = (
        solve_streams(MODEL, MODEL.f.fold(), STREAMS, options, window=window) for window in (1, 6)
    )
    assert six.calls < one.calls
    assert six.mean_nfe < 1.5 * one.mean_nfe


def test_tokens_are_accepted_one_step_on() -> None:
    """Not where f was asked, which is zero here, but where it says to go."""
    options = SolverOptions(tol=1.5, max_nfe=9)
    solved = solve_streams(MODEL, MODEL.f.fold(), STREAMS, options)
    assert (solved.nfe == 1).all()
    assert (solved.z_star.norm(dim=-1) > 0.5).all()
