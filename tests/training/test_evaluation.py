"""The evaluation loop: what it counts, and how it tries again."""

import dataclasses
import math

import pytest
import torch

from deq_model.config import ModelConfig
from deq_model.model import DEQLanguageModel
from deq_model.solvers.options import SolverOptions
from training.errors import DataError
from training.evaluation import EvalOptions, evaluate

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
