"""Broyden's steps, halved where they do not help."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deq_model.errors import ConfigError
from deq_model.solvers.line_search import MOST_HALVINGS, SUFFICIENT
from deq_model.solvers.loop import solve
from deq_model.solvers.options import SolverOptions
from tests.deq_model.problems import (
    block_triangular,
    contractions,
    generator,
    linear_map,
    make_solver,
    tanh_map,
)

ONE = torch.tensor([0])


def steep(z: Tensor) -> Tensor:
    """A map whose only fixed point is 0: its residual is a cubic, flat at 0 and steep off it."""
    return z - 100 * z**3 - 0.1 * z


def test_it_converges_where_plain_steps_do_not() -> None:
    z_init = torch.tensor([[[1.0, -2.0, 0.5]]], dtype=torch.float64)
    found = {}
    for line_search in (False, True):
        options = SolverOptions(
            tol=1e-8, stop_mode="abs", max_nfe=300, depth=12, line_search=line_search
        )
        found[line_search] = solve(steep, z_init, options)
    assert not found[False].converged
    assert found[False].residual.item() > 1
    assert found[True].converged
    assert found[True].nfe < 150
    assert found[True].z_star.norm() < 1e-6


def test_a_bad_step_is_halved_and_then_the_best_try_is_gone_on_from() -> None:
    """From 1 the first full step goes to 11, and f is wanted at 6 and 3.5 next."""
    solver = make_solver("broyden", capacity=1, dim=1, line_search=True)
    solver.start(ONE, torch.ones(1, 1, dtype=torch.float64))
    asked, sizes = [], iter([10.0, 30.0, 12.0, 20.0, 1.0])
    for _ in range(5):
        z = solver.propose(ONE)
        asked.append(z.item())
        solver.observe(ONE, z + next(sizes))
    assert MOST_HALVINGS == 2
    assert asked[:4] == [1.0, 11.0, 6.0, 3.5]
    # The best of 11, 6 and 3.5 is 6, whose residual is 12: the secant from (1, 10) to (6, 12).
    assert asked[4] == pytest.approx(6.0 - 12.0 * (6.0 - 1.0) / (12.0 - 10.0))


def test_a_search_ends_with_the_first_try_that_helps_enough() -> None:
    for share, helps in ((SUFFICIENT / 2, False), (2 * SUFFICIENT, True)):
        solver = make_solver("broyden", capacity=1, dim=1, line_search=True)
        solver.start(ONE, torch.ones(1, 1, dtype=torch.float64))
        asked = []
        for size in (10.0, 30.0, 10.0 * (1 - share)):
            asked.append(solver.propose(ONE).item())
            solver.observe(ONE, solver.propose(ONE) + size)
        halved_again = solver.propose(ONE).item() == pytest.approx(3.5)
        assert halved_again is not helps


@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 4),
    dim=st.integers(1, 6),
    kind=st.sampled_from([linear_map, tanh_map]),
    depth=st.integers(1, 8),
)
def test_good_steps_are_left_alone(seed: int, count: int, dim: int, kind: type, depth: int) -> None:
    """Until a step fails to help, a row goes exactly the way it goes without searching."""
    matrices, vectors = contractions(seed, count, dim, norm=0.9)
    f, rows = kind(matrices, vectors), torch.arange(count)
    plain, searching = (
        make_solver("broyden", capacity=count, dim=dim, depth=depth, line_search=search)
        for search in (False, True)
    )
    for solver in (plain, searching):
        solver.start(rows, torch.zeros(count, dim, dtype=torch.float64))
    good = torch.ones(count, dtype=torch.bool)
    before = torch.full((count,), torch.inf, dtype=torch.float64)
    for _ in range(15):
        z, same = plain.propose(rows), searching.propose(rows)
        assert torch.equal(z[good], same[good])
        size = plain.observe(rows, f(rows, z)).residual_abs
        searching.observe(rows, f(rows, same))
        good = good & ((before.isinf()) | (size <= (1 - SUFFICIENT) * before))
        before = size


@given(seed=st.integers(0, 10_000))
def test_searching_rows_do_not_notice_each_other(seed: int) -> None:
    count, dim = 4, 5
    matrices, vectors = contractions(seed, count, dim, norm=3.0)
    f = tanh_map(matrices, vectors)
    together = make_solver("broyden", capacity=count, dim=dim, depth=4, line_search=True)
    rows = torch.arange(count)
    z_init = torch.randn(count, dim, generator=generator(seed), dtype=torch.float64)
    together.start(rows, z_init)
    states = []
    for _ in range(12):
        states.append(together.propose(rows))
        together.observe(rows, f(rows, states[-1]))
    for i in range(count):
        alone = make_solver("broyden", capacity=1, dim=dim, depth=4, line_search=True)
        alone.start(slice(0, 1), z_init[[i]])
        for state in states:
            torch.testing.assert_close(alone.propose(ONE)[0], state[i], rtol=1e-6, atol=1e-6)
            alone.observe(slice(0, 1), f(torch.tensor([i]), state[[i]]))


def test_unsettled_rows_are_not_searched() -> None:
    """Their residuals before and after the step are of different f."""
    asked = {}
    for settled in (False, True):
        solver = make_solver("broyden", capacity=1, dim=1, line_search=True)
        solver.start(ONE, torch.ones(1, 1, dtype=torch.float64))
        for size in (10.0, 30.0):
            solver.observe(ONE, solver.propose(ONE) + size, settled=torch.tensor([settled]))
        asked[settled] = solver.propose(ONE).item()
    assert asked[True] == 6.0
    assert asked[False] == pytest.approx(11.0 - 30.0 * 10.0 / 20.0)


def test_a_step_to_where_f_is_not_finite_is_halved() -> None:
    solver = make_solver("broyden", capacity=1, dim=1, line_search=True)
    solver.start(ONE, torch.ones(1, 1, dtype=torch.float64))
    for f_z in (11.0, torch.nan, 7.0):
        solver.observe(ONE, torch.full((1, 1), f_z, dtype=torch.float64))
    assert solver.best(ONE).z.item() == 6.0
    # Learnt from (1, 10) and (6, 1), and nothing from the step to 11.
    assert solver.propose(ONE).item() == pytest.approx(6.0 + 1.0 * 5.0 / 9.0)


@pytest.mark.parametrize("whole", [False, True])
def test_blocks_are_solved_with_it(whole: bool) -> None:
    f = block_triangular(3, 5, 4)
    options = SolverOptions(tol=1e-9, max_nfe=400, depth=20, line_search=True)
    if whole:
        z_init = torch.zeros(2, 1, 20, dtype=torch.float64)
        solution = solve(lambda z: f(z.view(2, 5, 4)).reshape(2, 1, 20), z_init, options)
    else:
        solution = solve(f, torch.zeros(2, 5, 4, dtype=torch.float64), options)
    assert solution.converged
    z_star = solution.z_star.view(2, 5, 4)
    torch.testing.assert_close(f(z_star), z_star, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", ["anderson", "picard"])
def test_only_broyden_searches(method: str) -> None:
    message = f"^line_search must be false unless method is broyden, got method '{method}'$"
    with pytest.raises(ConfigError, match=message):
        SolverOptions(method=method, line_search=True)
