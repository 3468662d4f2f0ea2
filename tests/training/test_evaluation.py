"""The evaluation loop: what it counts, and how it tries again."""

import dataclasses
import math

import pytest
import torch

from deq_model.config import ModelConfig
from deq_model.model import BlockFunction, DEQLanguageModel
from deq_model.solvers.options import SolverOptions
from training.errors import DataError
from training.evaluating.statistics import batch_means
from training.evaluation import EvalOptions, evaluate, mean_curve, spread

CONFIG = ModelConfig(n_token=12, d_model=8, n_head=2, d_head=4, d_inner=16, tgt_len=6, mem_len=6)
IDS = torch.randint(0, 12, (77,), generator=torch.Generator().manual_seed(1))
EXACT = EvalOptions(
    batch_size=3,
    tgt_len=6,
    mem_len=6,
    solver=SolverOptions(tol=1e-8, max_nfe=200, depth=200, restart=math.inf),
)


@pytest.fixture(scope="module")
def model() -> DEQLanguageModel:
    model = DEQLanguageModel(CONFIG).double()
    model.reset(std=0.2, generator=torch.Generator().manual_seed(0))
    return model.eval()


def test_every_target_is_scored_once(model: DEQLanguageModel) -> None:
    seen: list[tuple[int, int]] = []
    result = evaluate(model, IDS, EXACT, progress=lambda done, total: seen.append((done, total)))
    assert result.scored_tokens == 3 * 24
    assert result.unconverged == 0
    assert result.worst_residual <= 1e-8
    assert result.perplexity == pytest.approx(math.exp(result.nll.mean()))
    assert seen == [(6, 24), (12, 24), (18, 24), (24, 24)]


def test_streams_do_not_see_each_other(model: DEQLanguageModel) -> None:
    together = evaluate(model, IDS, EXACT).nll
    for stream in range(3):
        ids = IDS[25 * stream : 25 * (stream + 1)]
        alone = evaluate(model, ids, dataclasses.replace(EXACT, batch_size=1)).nll
        assert torch.allclose(alone[0], together[stream], atol=1e-6)


def test_solving_whole_blocks_or_tokens_agrees(model: DEQLanguageModel) -> None:
    by_token = evaluate(model, IDS, EXACT).nll
    by_block = evaluate(model, IDS, dataclasses.replace(EXACT, whole_block=True)).nll
    assert torch.allclose(by_token, by_block, atol=1e-6)


def test_memory_reaches_back_as_far_as_asked(model: DEQLanguageModel) -> None:
    long = evaluate(model, IDS, dataclasses.replace(EXACT, mem_len=100)).nll
    short = evaluate(model, IDS, EXACT).nll
    none = evaluate(model, IDS, dataclasses.replace(EXACT, mem_len=0)).nll
    assert torch.equal(long[:, :12], short[:, :12])
    assert not torch.allclose(long[:, 12:], short[:, 12:], atol=1e-6)
    assert torch.equal(none[:, :6], short[:, :6])
    assert not torch.allclose(none[:, 6:], short[:, 6:], atol=1e-6)


def test_max_blocks_ends_early(model: DEQLanguageModel) -> None:
    result = evaluate(model, IDS, dataclasses.replace(EXACT, max_blocks=2))
    assert torch.equal(result.nll, evaluate(model, IDS, EXACT).nll[:, :12])


@pytest.mark.parametrize("whole_block", [True, False])
def test_retries_finish_what_a_small_budget_cannot(
    model: DEQLanguageModel, whole_block: bool
) -> None:
    exact = evaluate(model, IDS, dataclasses.replace(EXACT, whole_block=whole_block))
    small = dataclasses.replace(
        EXACT,
        whole_block=whole_block,
        solver=dataclasses.replace(EXACT.solver, max_nfe=4, depth=4),
    )
    once = evaluate(model, IDS, small)
    assert once.unconverged > 0
    assert once.nfe == 4
    again = evaluate(model, IDS, dataclasses.replace(small, retries=5))
    assert again.unconverged == 0
    assert again.nfe > exact.nfe
    assert torch.allclose(again.nll, exact.nll, atol=1e-6)
    assert not torch.allclose(once.nll, exact.nll, atol=1e-6)


def test_retries_leave_streams_that_converged_alone(model: DEQLanguageModel) -> None:
    plain = evaluate(model, IDS, EXACT)
    retried = evaluate(model, IDS, dataclasses.replace(EXACT, retries=3))
    assert torch.equal(plain.nll, retried.nll)
    assert plain.nfe == retried.nfe


def test_a_text_without_a_target(model: DEQLanguageModel) -> None:
    with pytest.raises(DataError, match="at least 6 tokens for batch_size 3, got 5"):
        evaluate(model, IDS[:5], EXACT)


@pytest.mark.parametrize("window", [1, 2, 4, 5, 6, 100])
def test_the_window_changes_nothing(model: DEQLanguageModel, window: int) -> None:
    """Nor does a memory that ends within the blocks before."""
    for mem_len in (0, 4, 9):
        whole = dataclasses.replace(EXACT, mem_len=mem_len)
        cut = dataclasses.replace(whole, window=window)
        found = evaluate(model, IDS, cut)
        assert torch.allclose(found.nll, evaluate(model, IDS, whole).nll, atol=1e-6)
        assert found.nll.shape == found.residual.shape == found.status.shape


def test_figures_of_the_work(model: DEQLanguageModel) -> None:
    once = dataclasses.replace(EXACT, solver=dataclasses.replace(EXACT.solver, max_nfe=4, depth=4))
    result = evaluate(model, IDS, once)
    assert (result.blocks, result.nfe, result.evaluations) == (4, 4.0, 4.0)
    assert result.unconverged_share == result.unconverged / 72 > 0
    assert result.mean_residual < result.worst_residual
    assert len(result.residual_by_call) == 4
    assert result.residual_by_call[-1] < result.residual_by_call[0]
    assert result.seconds > 0


def test_retries_count_the_rows_they_solve(model: DEQLanguageModel) -> None:
    options = dataclasses.replace(
        EXACT, retries=5, solver=dataclasses.replace(EXACT.solver, max_nfe=8, depth=8)
    )
    result = evaluate(model, IDS, options)
    assert 8 <= result.evaluations <= result.nfe
    assert len(result.residual_by_call) == 8


def test_the_radius_is_that_of_the_jacobian(model: DEQLanguageModel) -> None:
    """Against all eigenvalues of the Jacobian of one token, at its fixed point."""
    ids = IDS[:2]
    one = dataclasses.replace(EXACT, batch_size=1, radius_blocks=1)
    (radius,) = evaluate(model, ids, one).radius
    block = model.solve_block(ids[None, :1], model.empty_memory(1), EXACT.solver)
    f = BlockFunction(model.f.fold().detach(), model.empty_memory(1), model.inject(ids[None, :1]))
    jacobian = torch.autograd.functional.jacobian(
        lambda z: f(z[None, None])[0, 0], block.hidden[0, 0]
    )
    largest = float(torch.linalg.eigvals(jacobian).abs().max())
    assert radius == pytest.approx(largest, rel=0.05)


@pytest.mark.parametrize(
    ("count", "wanted", "expected"),
    [(10, 0, set()), (10, 2, {4, 9}), (4, 4, {0, 1, 2, 3}), (2, 5, {0, 1}), (1, 4, {0})],
)
def test_looked_at_blocks_are_spread(count: int, wanted: int, expected: set[int]) -> None:
    assert spread(count, wanted) == expected


def test_curves_of_different_lengths_go_on_at_their_ends() -> None:
    curves = [torch.tensor([4.0, 2.0, 1.0]), torch.tensor([8.0])]
    assert mean_curve(curves) == (6.0, 5.0, 4.5)


class TestStandardError:
    def test_of_independent_tokens_is_the_usual_one(self) -> None:
        values = torch.randn(4, 40_000, generator=torch.Generator().manual_seed(0)).double()
        found = batch_means(values)
        assert found.mean == pytest.approx(float(values.mean()))
        assert found.error == pytest.approx(1 / 400, rel=0.15)
        assert found.batches == 400

    def test_of_tokens_that_go_together_is_larger(self) -> None:
        """Each value twenty times in a row: as if there were a twentieth of them."""
        draws = torch.randn(1, 8_000, generator=torch.Generator().manual_seed(0)).double()
        values = draws.repeat_interleave(20, dim=1)
        assert batch_means(values).error == pytest.approx(1 / 8_000**0.5, rel=0.15)

    def test_covers_the_truth_as_often_as_it_should(self) -> None:
        """An autoregressive loss around 3: within two errors about 19 times in 20."""
        noise = torch.randn(4096, 100, generator=torch.Generator().manual_seed(5)).double()
        state, values = torch.zeros(100).double(), torch.empty(100, 4096).double()
        for i in range(4096):
            state = 0.8 * state + noise[i]
            values[:, i] = 3 + state
        found = [batch_means(row[None]) for row in values]
        assert 87 <= sum(abs(one.mean - 3) <= 2 * one.error for one in found) <= 99

    def test_of_a_short_text_is_not_known(self) -> None:
        found = batch_means(torch.ones(1, 5), at_least=4)
        assert math.isnan(found.error)
        assert found.batches == 1

    @pytest.mark.parametrize("shape", [(1, 2), (3, 7), (16, 100), (5, 1)])
    def test_batches_fit_any_shape(self, shape: tuple[int, int]) -> None:
        values = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        found = batch_means(values, at_least=4)
        assert found.mean == pytest.approx(float(values.mean()))
        assert found.batches >= shape[0]

    def test_of_the_perplexity_is_by_the_delta_method(self, model: DEQLanguageModel) -> None:
        result = evaluate(model, IDS, EXACT)
        assert result.perplexity_error == result.perplexity * result.mean.error > 0
