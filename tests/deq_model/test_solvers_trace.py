"""What a solution tells of the way to it: residuals by call, and states on the way."""

import dataclasses

import torch
from hypothesis import given
from hypothesis import strategies as st

from deq_model.solvers.loop import solve
from deq_model.solvers.options import Method, SolverOptions, StopMode
from tests.deq_model.problems import block_triangular
from tests.deq_model.test_solvers import METHODS, Counted, true_residual, zeros


@given(
    seed=st.integers(0, 10_000),
    max_nfe=st.integers(1, 25),
    method=st.sampled_from(METHODS),
    stop_mode=st.sampled_from(["rel", "abs"]),
)
def test_the_trace_has_the_mean_residual_of_every_call(
    seed: int, max_nfe: int, method: Method, stop_mode: StopMode
) -> None:
    f = Counted(block_triangular(seed, 4, 3))
    options = SolverOptions(method=method, tol=1e-3, max_nfe=max_nfe, depth=6, stop_mode=stop_mode)
    solution = solve(f, zeros(2, 4, 3), options)
    assert solution.residual_by_call.shape == (solution.nfe,)
    measured = torch.stack([true_residual(f.f, z, stop_mode).mean() for z in f.asked])
    torch.testing.assert_close(solution.residual_by_call, measured, rtol=1e-6, atol=1e-12)
    if solution.converged:
        assert solution.residual_by_call[-1] <= options.tol


@given(
    seed=st.integers(0, 10_000),
    marks=st.lists(st.integers(1, 30), max_size=4, unique=True).map(sorted),
    method=st.sampled_from(METHODS),
)
def test_marked_states_are_those_of_smaller_budgets(
    seed: int, marks: list[int], method: Method
) -> None:
    f = block_triangular(seed, 4, 3)
    options = SolverOptions(method=method, tol=1e-4, max_nfe=30, depth=6)
    solution = solve(f, zeros(2, 4, 3), options, marks=marks)
    assert len(solution.marked) == len(marks)
    for mark, state in zip(marks, solution.marked, strict=True):
        ended = solve(f, zeros(2, 4, 3), dataclasses.replace(options, max_nfe=mark))
        assert torch.equal(state, ended.z_star)
    assert torch.equal(solution.z_star, solve(f, zeros(2, 4, 3), options).z_star)
