"""Rows that are solved beside one another, driven by ``propose`` and ``observe``."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deq_model.solvers.options import Method
from deq_model.solvers.rows import RowSolver
from tests.deq_model.problems import (
    RowMap,
    contractions,
    generator,
    linear_answer,
    linear_map,
    make_solver,
    tanh_map,
)

METHODS: tuple[Method, ...] = ("broyden", "anderson", "picard")
every_method = pytest.mark.parametrize("method", METHODS)
QUASI_NEWTON = METHODS[:2]


def drive(solver: RowSolver, f: RowMap, rows: Tensor, calls: int) -> Tensor:
    """Makes ``calls`` calls of f for ``rows``; the relative residuals, ``(calls, n)``."""
    seen = []
    for _ in range(calls):
        z = solver.propose(rows)
        assert z.isfinite().all()
        seen.append(solver.observe(rows, f(rows, z)).residual_rel)
    return torch.stack(seen)


@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 5),
    dim=st.integers(1, 9),
    kind=st.sampled_from([linear_map, tanh_map]),
    depth=st.integers(2, 12),
)
def test_methods_agree(seed: int, count: int, dim: int, kind: type, depth: int) -> None:
    matrices, vectors = contractions(seed, count, dim, norm=0.7)
    f, rows = kind(matrices, vectors), torch.arange(count)
    answers = []
    for method in METHODS:
        solver = make_solver(method, capacity=count, dim=dim, depth=depth)
        solver.start(rows, torch.zeros(count, dim, dtype=torch.float64))
        drive(solver, f, rows, 90)
        answers.append(solver.best(rows).z)
    exact = linear_answer(matrices, vectors) if kind is linear_map else answers[2]
    for answer in answers:
        torch.testing.assert_close(answer, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", QUASI_NEWTON)
def test_a_linear_map_takes_few_calls(method: Method) -> None:
    matrices, vectors = contractions(3, 4, 5, norm=0.95)
    solver = make_solver(method, capacity=4, dim=5)
    rows = torch.arange(4)
    solver.start(rows, torch.zeros(4, 5, dtype=torch.float64))
    # Broyden's method ends within 2·dim steps on a linear map, Anderson's within dim + 1.
    residuals = drive(solver, linear_map(matrices, vectors), rows, 13)
    assert residuals.amin(0).max() < 1e-6


@every_method
@given(
    seed=st.integers(0, 10_000),
    begins=st.lists(st.integers(0, 12), min_size=2, max_size=6),
    depth=st.integers(1, 5),
)
def test_a_row_does_not_notice_its_batch_mates(
    method: Method, seed: int, begins: list[int], depth: int
) -> None:
    """Rows that start at different calls, in any order, go exactly the way each goes alone."""
    count, dim, calls = len(begins), 6, 10
    matrices, vectors = contractions(seed, count, dim, norm=1.6)  # restarts happen too
    f = tanh_map(matrices, vectors)
    z_init = torch.randn(count, dim, generator=generator(seed), dtype=torch.float64)
    together = make_solver(method, capacity=count, dim=dim, depth=depth, restart=2.0)
    places = torch.randperm(count, generator=generator(seed))
    path: list[list[Tensor]] = [[] for _ in begins]
    for time in range(max(begins) + calls):
        for i in range(count):
            if time == begins[i]:
                together.start(places[[i]], z_init[[i]])
        active = torch.tensor([i for i in range(count) if 0 <= time - begins[i] < calls])
        if len(active) == 0:
            continue
        z = together.propose(places[active])
        together.observe(places[active], f(active, z))
        for i, state in zip(active.tolist(), z, strict=True):
            path[i].append(state)
    for i in range(count):
        alone = make_solver(method, capacity=1, dim=dim, depth=depth, restart=2.0)
        alone.start(torch.tensor([0]), z_init[[i]])
        for state in path[i]:
            z = alone.propose(torch.tensor([0]))
            torch.testing.assert_close(z[0], state, rtol=1e-8, atol=1e-8)
            alone.observe(torch.tensor([0]), f(torch.tensor([i]), state[None]))


@every_method
def test_a_slice_is_an_index_tensor(method: Method) -> None:
    matrices, vectors = contractions(5, 6, 4, norm=1.4)
    f, rows = tanh_map(matrices, vectors), torch.arange(2, 6)
    one, other = (make_solver(method, capacity=6, dim=4, depth=3, restart=2.0) for _ in range(2))
    z_init = torch.ones(4, 4, dtype=torch.float64)
    one.start(rows, z_init)
    other.start(slice(2, 6), z_init)
    moving = torch.tensor([1.0, 9.0, 1.0, 30.0], dtype=torch.float64)
    for call in range(12):
        z, same = one.propose(rows), other.propose(slice(2, 6))
        torch.testing.assert_close(z, same, rtol=1e-10, atol=1e-10)
        # Two rows' maps change all the time, so much that their residuals grow: they restart.
        f_z = f(rows, z) * moving[:, None] ** call
        one.observe(rows, f_z, settled=moving == 1)
        other.observe(slice(2, 6), f_z, settled=moving == 1)
        torch.testing.assert_close(same, z, rtol=1e-10, atol=1e-10, msg="a proposal changed")
    torch.testing.assert_close(one.best(rows).z, other.best(slice(2, 6)).z)


@every_method
def test_a_place_that_is_used_again_forgets(method: Method) -> None:
    matrices, vectors = contractions(8, 2, 4, norm=0.9)
    f, rows = tanh_map(matrices, vectors), torch.tensor([1])
    used, new = (make_solver(method, capacity=2, dim=4) for _ in range(2))
    used.start(rows, torch.full((1, 4), 5.0, dtype=torch.float64))
    drive(used, f, rows, 9)
    for solver in (used, new):
        solver.start(rows, torch.zeros(1, 4, dtype=torch.float64))
    assert torch.isinf(used.best(rows).residual_rel).all()
    torch.testing.assert_close(drive(used, f, rows, 9), drive(new, f, rows, 9), rtol=0, atol=0)


@every_method
def test_zero_rows(method: Method) -> None:
    solver = make_solver(method, capacity=0, dim=3)
    for rows in (torch.empty(0, dtype=torch.long), slice(0, 0)):
        solver.start(rows, torch.zeros(0, 3, dtype=torch.float64))
        seen = solver.observe(rows, solver.propose(rows))
        assert seen.residual_abs.shape == (0,)


@every_method
def test_nothing_is_learnt_from_calls_that_were_not_finite(method: Method) -> None:
    """f is NaN at first, as where an earlier row's is, and then a usual map: nothing is lost."""
    matrices, vectors = contractions(2, 1, 4, norm=0.5)
    f, rows = tanh_map(matrices, vectors), torch.tensor([0])
    late, usual = (make_solver(method, capacity=1, dim=4) for _ in range(2))
    for solver in (late, usual):
        solver.start(rows, torch.ones(1, 4, dtype=torch.float64))
    bad = drive(late, lambda _, z: z * math.nan, rows, 3)
    assert bad.isinf().all()
    assert (late.best(rows).z == 1).all()
    assert late.best(rows).residual_abs.isinf().all()
    torch.testing.assert_close(drive(late, f, rows, 20), drive(usual, f, rows, 20), rtol=0, atol=0)


@every_method
def test_a_restart_goes_on_from_the_best_state(method: Method) -> None:
    """Only a ball around the answer is finite: a step out of it is taken back and shortened."""
    rows = torch.tensor([0])
    solver = make_solver(method, capacity=1, dim=2)
    centre = torch.tensor([[1.0, 2.0]], dtype=torch.float64)

    def f(_: Tensor, z: Tensor) -> Tensor:
        away = z - centre
        return torch.where(away.norm() > 1.5, math.nan, centre - 3 * away)

    solver.start(rows, centre + 1)
    begin = solver.best(rows).z
    first = solver.propose(rows)
    assert solver.observe(rows, f(rows, first)).residual_rel.isfinite().all()
    assert solver.observe(rows, f(rows, solver.propose(rows))).residual_rel.isinf().all()
    torch.testing.assert_close(solver.best(rows).z, begin)
    torch.testing.assert_close(solver.propose(rows), first + 0.5 * (f(rows, first) - first))
    drive(solver, f, rows, 25)
    torch.testing.assert_close(solver.best(rows).z, centre, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", QUASI_NEWTON)
def test_numbers_near_the_largest_do_no_harm(method: Method) -> None:
    rows, huge = torch.tensor([0]), 1e150
    solver = make_solver(method, capacity=1, dim=2)
    solver.start(rows, torch.zeros(1, 2, dtype=torch.float64))
    drive(solver, lambda _, z: torch.full_like(z, -huge) + 2 * z, rows, 6)
    states = [solver.propose(rows)]
    for _ in range(40):
        states.append(solver.propose(rows))
        solver.observe(rows, 0.5 * states[-1] + 1)
    assert solver.best(rows).residual_rel.max() < 1e-9


def test_unsettled_rows_report_their_present_state() -> None:
    """What a row measured of another f is not its best, however small the residual was."""
    solver, rows = make_solver("broyden", capacity=2, dim=1), torch.tensor([0, 1])
    solver.start(rows, torch.ones(2, 1, dtype=torch.float64))
    settled = torch.tensor([True, False])
    solver.observe(rows, solver.propose(rows) + 1e-9, settled=settled)
    second = solver.propose(rows)
    solver.observe(rows, second + 7.0, settled=settled)
    best = solver.best(rows)
    torch.testing.assert_close(best.residual_abs, torch.tensor([1e-9, 7.0]).double())
    torch.testing.assert_close(best.z[0], torch.ones(1).double())
    torch.testing.assert_close(best.z[1], second[1])


@every_method
@pytest.mark.parametrize("dim", [1, 7])
def test_starting_states_that_are_not_finite(method: Method, dim: int) -> None:
    matrices, vectors = contractions(4, 1, dim, norm=0.5)
    solver, rows = make_solver(method, capacity=1, dim=dim), torch.tensor([0])
    z_init = torch.full((1, dim), math.nan, dtype=torch.float64)
    solver.start(rows, z_init)
    assert (solver.propose(rows) == 0).all()
    assert z_init.isnan().all(), "the caller's tensor was changed"
    assert drive(solver, tanh_map(matrices, vectors), rows, 60).amin() < 1e-9


@every_method
def test_other_dtypes_are_taken(method: Method) -> None:
    solver, rows = make_solver(method, capacity=3, dim=2), torch.tensor([2, 0])
    solver.start(rows, torch.ones(2, 2, dtype=torch.bfloat16))
    seen = solver.observe(rows, torch.ones(2, 2, dtype=torch.float32))
    assert seen.residual_rel.dtype == torch.float64
    assert (seen.residual_rel == 0).all()


@pytest.mark.parametrize("stop_mode", ["rel", "abs"])
def test_best_is_by_the_residual_that_is_asked_for(stop_mode: str) -> None:
    """``3 z + 1`` diverges: relative to f(z), far away looks better than near the answer."""
    rows = torch.tensor([0])
    solver = make_solver("picard", capacity=1, dim=1, stop_mode=stop_mode)
    solver.start(rows, torch.zeros(1, 1, dtype=torch.float64))
    drive(solver, lambda _, z: 3 * z + 1, rows, 8)
    best = solver.best(rows)
    assert (best.residual_abs == 1.0) if stop_mode == "abs" else (best.residual_rel < 0.7)
    torch.testing.assert_close(best.residual_abs, (2 * best.z + 1).norm(dim=1))
