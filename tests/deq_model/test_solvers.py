"""The plain loop: whole blocks whose rows depend on the rows before them."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deq_model.errors import ConfigError
from deq_model.solvers.loop import Solution, solve
from deq_model.solvers.options import Method, SolverOptions, SolverStatus, StopMode
from tests.deq_model.problems import (
    block_triangular,
    contractions,
    generator,
    linear_answer,
    linear_map,
    tanh_map,
)

BlockMap = Callable[[Tensor], Tensor]

METHODS: tuple[Method, ...] = ("broyden", "anderson", "picard")
every_method = pytest.mark.parametrize("method", METHODS)
CONVERGED, MAX_NFE, NONFINITE = (int(status) for status in SolverStatus)


class Counted:
    """A map that counts its calls and keeps what it was called with."""

    def __init__(self, f: BlockMap) -> None:
        self.f = f
        self.asked: list[Tensor] = []

    def __call__(self, z: Tensor) -> Tensor:
        self.asked.append(z.clone())
        return self.f(z)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


def true_residual(f: BlockMap, z: Tensor, stop_mode: StopMode) -> Tensor:
    f_z = f(z)
    size = (f_z - z).norm(dim=-1)
    return size / f_z.norm(dim=-1) if stop_mode == "rel" else size


def status_of(solution: Solution) -> list[list[int]]:
    return solution.status.tolist()


@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 3),
    length=st.integers(1, 6),
    dim=st.integers(1, 6),
    method=st.sampled_from(METHODS),
    stop_mode=st.sampled_from(["rel", "abs"]),
    depth=st.integers(1, 8),
)
def test_accepted_rows_solve_the_equation_where_they_are_returned(
    seed: int,
    batch: int,
    length: int,
    dim: int,
    method: Method,
    stop_mode: StopMode,
    depth: int,
) -> None:
    f = Counted(block_triangular(seed, length, dim))
    tol = 1e-2  # so loose that a residual measured at other states would not pass
    z_init = torch.randn(batch, length, dim, generator=generator(seed), dtype=torch.float64)
    options = SolverOptions(method=method, tol=tol, max_nfe=300, depth=depth, stop_mode=stop_mode)
    solution = solve(f, z_init, options)
    assert solution.converged
    assert solution.nfe == len(f.asked)
    residual = true_residual(f.f, solution.z_star, stop_mode)
    assert residual.max() <= tol
    torch.testing.assert_close(residual, solution.residual, rtol=1e-6, atol=1e-12)


@given(seed=st.integers(0, 10_000), max_nfe=st.integers(1, 25), method=st.sampled_from(METHODS))
def test_a_budget_ends_with_a_solved_prefix(seed: int, max_nfe: int, method: Method) -> None:
    f = Counted(block_triangular(seed, 6, 4))
    options = SolverOptions(method=method, tol=1e-4, max_nfe=max_nfe, depth=6)
    solution = solve(f, zeros(2, 6, 4), options)
    assert solution.nfe == len(f.asked) <= max_nfe
    accepted = solution.status == CONVERGED
    assert torch.equal(accepted, accepted.cumprod(1).bool()), "a row was accepted out of turn"
    assert (solution.status[~accepted] == MAX_NFE).all()
    assert (solution.residual[accepted] <= options.tol).all()
    residual = true_residual(f.f, solution.z_star, "rel")
    torch.testing.assert_close(
        residual[accepted], solution.residual[accepted], rtol=1e-6, atol=1e-12
    )
    if not solution.converged:
        assert solution.nfe == max_nfe
    # The row behind the prefix reports what it measured since the prefix stands, and not before.
    for sample, first in enumerate(accepted.sum(1).tolist()):
        if first < 6:
            told = solution.residual[sample, first]
            torch.testing.assert_close(told, residual[sample, first], rtol=1e-6, atol=1e-12)


@every_method
def test_an_accepted_prefix_never_changes(method: Method) -> None:
    f = Counted(block_triangular(11, 8, 4))
    solution = solve(f, zeros(1, 8, 4), SolverOptions(method=method, tol=1e-5, max_nfe=300))
    last_move = [
        max((call for call, z in enumerate(f.asked) if not torch.equal(z[0, i], at)), default=-1)
        for i, at in enumerate(solution.z_star[0])
    ]
    assert solution.converged
    assert last_move == sorted(last_move)
    assert last_move[-1] == solution.nfe - 2, "f is called once where the last row ends"


@every_method
def test_a_frozen_row_does_not_disturb_the_rows_behind(method: Method) -> None:
    """Solving the rest given the prefix is what is left of solving all."""
    f = block_triangular(21, 5, 3)
    options = SolverOptions(method=method, tol=1e-11, max_nfe=600)
    whole = solve(f, zeros(1, 5, 3), options)
    prefix = whole.z_star[:, :2]
    rest = solve(lambda z: f(torch.cat([prefix, z], dim=1))[:, 2:], zeros(1, 3, 3), options)
    torch.testing.assert_close(whole.z_star[:, 2:], rest.z_star, rtol=1e-9, atol=1e-9)


@given(seed=st.integers(0, 10_000), kind=st.sampled_from([linear_map, tanh_map]))
def test_samples_do_not_notice_each_other(seed: int, kind: Callable[..., Callable]) -> None:
    matrices, vectors = contractions(seed, 3, 5, norm=0.9)
    row_map = kind(matrices, vectors)
    options = SolverOptions(tol=1e-9, max_nfe=200)

    def f(samples: Tensor) -> BlockMap:
        return lambda z: row_map(samples, z[:, 0])[:, None]

    together = solve(f(torch.arange(3)), zeros(3, 1, 5), options)
    assert together.converged
    for i in range(3):
        alone = solve(f(torch.tensor([i])), zeros(1, 1, 5), options)
        torch.testing.assert_close(together.z_star[[i]], alone.z_star, rtol=1e-9, atol=1e-9)
    if kind is linear_map:
        answer = linear_answer(matrices, vectors)[:, None]
        torch.testing.assert_close(together.z_star, answer, rtol=1e-6, atol=1e-6)


def textbook_broyden(f: BlockMap, z: Tensor, calls: int) -> list[Tensor]:
    """The good method on ``g(z) = f(z) − z`` with a dense inverse Jacobian, from −1."""
    inverse = -torch.eye(z.numel(), dtype=z.dtype)
    states, g = [z], f(z) - z
    for _ in range(calls - 1):
        dz = -inverse @ g
        z = z + dz
        states.append(z)
        dg = f(z) - z - g
        g = g + dg
        inverse = inverse + torch.outer(dz - inverse @ dg, dz @ inverse) / (dz @ inverse @ dg)
    return states


@given(seed=st.integers(0, 10_000), length=st.integers(1, 4), dim=st.integers(1, 4))
def test_a_whole_block_is_textbook_broyden(seed: int, length: int, dim: int) -> None:
    f, calls = block_triangular(seed, length, dim), 7
    flat = Counted(lambda z: f(z.view(2, length, dim)).reshape(2, 1, -1))
    options = SolverOptions(tol=1e-9, max_nfe=calls, depth=calls, restart=math.inf)
    solution = solve(flat, zeros(2, 1, length * dim), options)
    one = f(zeros(2, length, dim))  # both samples have the same f and start
    assert torch.equal(one[0], one[1])
    states = textbook_broyden(
        lambda z: f(z.view(1, length, dim)).flatten(), zeros(length * dim), solution.nfe
    )
    for asked, state in zip(flat.asked, states, strict=True):
        torch.testing.assert_close(asked[0, 0], state, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(asked[1, 0], state, rtol=1e-5, atol=1e-7)


@every_method
def test_identity_is_solved_anywhere(method: Method) -> None:
    z_init = torch.randn(2, 3, 4, dtype=torch.float64, generator=generator(0))
    solution = solve(lambda z: z, z_init, SolverOptions(method=method))
    assert (solution.nfe, solution.converged) == (1, True)
    assert torch.equal(solution.z_star, z_init)
    assert (solution.residual == 0).all()


@every_method
@pytest.mark.parametrize("stop_mode", ["rel", "abs"])
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_constant_takes_two_calls(method: Method, stop_mode: StopMode, value: float) -> None:
    options = SolverOptions(method=method, stop_mode=stop_mode, depth=1)
    z_init = torch.ones(2, 3, 4, dtype=torch.float64)
    solution = solve(lambda z: torch.full_like(z, value), z_init, options)
    assert (solution.nfe, solution.converged) == (2, True)
    assert (solution.z_star == value).all()


@every_method
@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (0, 0, 1)])
def test_empty_blocks(method: Method, shape: tuple[int, int, int]) -> None:
    solution = solve(lambda z: z + 1, zeros(*shape), SolverOptions(method=method))
    assert solution.z_star.shape == shape
    assert solution.status.shape == shape[:2]
    assert solution.converged


@every_method
def test_a_budget_of_one_call_measures_the_start(method: Method) -> None:
    z_init = torch.ones(1, 2, 3, dtype=torch.float64)
    solution = solve(lambda z: 2 * z, z_init, SolverOptions(method=method, max_nfe=1))
    assert solution.nfe == 1
    assert status_of(solution) == [[MAX_NFE, MAX_NFE]]
    assert torch.equal(solution.z_star, z_init)
    torch.testing.assert_close(solution.residual, torch.full((1, 2), 0.5).double())


@every_method
def test_a_map_that_is_never_finite(method: Method) -> None:
    z_init = torch.ones(1, 2, 3, dtype=torch.float64)
    for bad in (math.nan, math.inf, -math.inf):
        options = SolverOptions(method=method, max_nfe=5)
        solution = solve(lambda z, bad=bad: torch.full_like(z, bad), z_init, options)
        assert status_of(solution) == [[NONFINITE, NONFINITE]]
        assert solution.nfe == 5
        assert torch.equal(solution.z_star, z_init)
        assert solution.residual.isinf().all()


@every_method
def test_a_nan_in_one_sample_or_late_row_spoils_no_other(method: Method) -> None:
    usual = block_triangular(5, 4, 3)
    poison = zeros(2, 4, 3)
    poison[1, 2:] = math.nan
    options = SolverOptions(method=method, tol=1e-8, max_nfe=200)
    solution = solve(lambda z: usual(z) + poison, zeros(2, 4, 3), options)
    clean = solve(usual, zeros(2, 4, 3), options)
    assert status_of(solution) == [[CONVERGED] * 4, [CONVERGED] * 2 + [NONFINITE] * 2]
    good = solution.status == CONVERGED
    torch.testing.assert_close(solution.z_star[good], clean.z_star[good], rtol=1e-6, atol=1e-7)
    assert solution.z_star.isfinite().all()


@every_method
@pytest.mark.parametrize("call", [1, 2, 3, 6])
def test_a_nan_at_one_call_is_overcome(method: Method, call: int) -> None:
    usual = block_triangular(6, 3, 4)
    calls = iter(range(1, 1000))

    def f(z: Tensor) -> Tensor:
        return usual(z) * (math.nan if next(calls) == call else 1.0)

    solution = solve(f, zeros(2, 3, 4), SolverOptions(method=method, tol=1e-8, max_nfe=300))
    assert solution.converged
    assert true_residual(usual, solution.z_star, "rel").max() <= 1e-8


@every_method
@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("stop_mode", ["rel", "abs"])
@given(seed=st.integers(0, 10_000))
def test_an_expansive_map_ends_honestly(
    method: Method, depth: int, stop_mode: StopMode, seed: int
) -> None:
    """Whatever happens, the state is finite and the residual is the one at that state."""
    matrices, vectors = contractions(seed, 1, 5, norm=50.0)
    row_map = linear_map(matrices, vectors)

    def f(z: Tensor) -> Tensor:
        return row_map(torch.tensor([0]), z[0])[None]

    options = SolverOptions(
        method=method, tol=1e-6, max_nfe=15, depth=depth, stop_mode=stop_mode, restart=5.0
    )
    z_init = zeros(1, 1, 5)
    solution = solve(f, z_init, options)
    residual = true_residual(f, solution.z_star, stop_mode)
    assert solution.z_star.isfinite().all()
    torch.testing.assert_close(residual, solution.residual, rtol=1e-5, atol=1e-9)
    assert residual.item() <= true_residual(f, z_init, stop_mode).item()
    assert status_of(solution) == [[CONVERGED if residual.item() <= 1e-6 else MAX_NFE]]


@pytest.mark.parametrize("method", METHODS[:2])
def test_depth_one_is_enough_for_a_scalar(method: Method) -> None:
    options = SolverOptions(method=method, depth=1, tol=1e-9, stop_mode="abs")
    solution = solve(lambda z: -4 * z + 5, zeros(3, 1, 1), options)
    assert solution.converged
    torch.testing.assert_close(solution.z_star, torch.ones(3, 1, 1).double(), rtol=0, atol=1e-8)


def test_the_callers_tensors_stay_as_they_are() -> None:
    z_init = torch.ones(1, 2, 3, dtype=torch.float64)
    kept = torch.ones(1, 2, 3, dtype=torch.float64)
    f = block_triangular(1, 2, 3)
    solve(f, z_init, SolverOptions())
    assert torch.equal(z_init, kept)


def test_absolute_and_relative_tolerances_differ() -> None:
    matrices, vectors = contractions(1, 1, 4, norm=0.5)
    row_map = linear_map(matrices, 1000 * vectors)

    def f(z: Tensor) -> Tensor:
        return row_map(torch.tensor([0]), z[0])[None]

    calls = {}
    for stop_mode in ("rel", "abs"):
        options = SolverOptions(method="picard", tol=1e-3, stop_mode=stop_mode, max_nfe=100)
        solution = solve(f, zeros(1, 1, 4), options)
        assert solution.converged
        assert true_residual(f, solution.z_star, stop_mode).item() <= 1e-3
        calls[stop_mode] = solution.nfe
    assert calls["rel"] < calls["abs"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "newton"}, "method must be broyden, anderson or picard, got 'newton'"),
        ({"tol": 0.0}, "tol must be a finite number above 0, got 0.0"),
        ({"tol": -1.0}, "tol must be a finite number above 0, got -1.0"),
        ({"tol": math.nan}, "tol must be a finite number above 0, got nan"),
        ({"tol": math.inf}, "tol must be a finite number above 0, got inf"),
        ({"max_nfe": 0}, "max_nfe must be at least 1, got 0"),
        ({"stop_mode": "both"}, "stop_mode must be rel or abs, got 'both'"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"restart": 1.0}, "restart must be above 1, got 1.0"),
        ({"restart": math.nan}, "restart must be above 1, got nan"),
    ],
)
def test_impossible_options(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        SolverOptions(**values)
