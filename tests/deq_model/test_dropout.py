"""Dropout masks: one per sample and channel, shared by positions and by solver steps."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deq_model.config import ModelConfig
from deq_model.function import FunctionDropout
from deq_model.memory import Memory
from deq_model.model import BlockFunction, DEQLanguageModel, TrainingResult
from tests.deq_model.problems import (
    CONFIG,
    MASKED,
    draw_memory,
    draw_tokens,
    generator,
    random_model,
)

DROPPING = dataclasses.replace(CONFIG, dropout=0.4)


def dropped(
    model: DEQLanguageModel, tokens: Tensor, seed: int, memory: Memory | None = None
) -> TrainingResult:
    return model.train_block(
        tokens,
        torch.zeros_like(tokens),
        model.empty_memory(len(tokens)) if memory is None else memory,
        forward=MASKED,
        backward=MASKED,
        generator=generator(seed),
    )


def blind_to_distance(config: ModelConfig) -> DEQLanguageModel:
    """A training model without positions: a block of one repeated token has one state."""
    model = random_model(config, 2, std=0.3).train()
    with torch.no_grad():
        model.f.r_net.weight_v.zero_()
        model.f.r_net.weight_v.fill_diagonal_(1.0)
        assert model.f.r_net.weight_g is not None
        model.f.r_net.weight_g.zero_()
    return model


def test_masks_are_shared_by_solver_steps_and_positions_and_by_no_samples() -> None:
    result = dropped(blind_to_distance(DROPPING), torch.full((3, 4), 2), seed=1)
    assert result.solution.converged, "a mask that changed between calls has no fixed point"
    error = (result.f_z - result.z).norm(dim=-1) / result.f_z.norm(dim=-1)
    assert error.max() < 1e-6, "the call that carries the graph has other masks"
    torch.testing.assert_close(result.nll, result.nll[:, :1].expand(3, 4), rtol=0, atol=1e-5)
    assert (result.nll[0] - result.nll[1]).abs().min() > 1e-3
    assert (result.nll[1] - result.nll[2]).abs().min() > 1e-3


def test_masks_are_redrawn_by_every_forward() -> None:
    model, tokens = blind_to_distance(DROPPING), torch.full((2, 4), 2)
    one, same, other = (dropped(model, tokens, seed).nll for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert (one - other).abs().min() > 1e-3
    unseeded = [
        model.unroll_block(tokens, tokens, model.empty_memory(2), depth=3).nll for _ in range(2)
    ]
    assert (unseeded[0] - unseeded[1]).abs().max() > 1e-3


def test_attention_masks_are_drawn_for_every_element() -> None:
    config = dataclasses.replace(CONFIG, dropatt=0.4)
    result = dropped(blind_to_distance(config), torch.full((2, 4), 2), 1, draw_memory(1, 2, 3))
    assert result.solution.converged
    assert (result.nll[:, 1:] - result.nll[:, :-1]).abs().min() > 1e-6


@pytest.mark.parametrize("change", [{"dropout": 0.4}, {"dropatt": 0.4}])
def test_nothing_is_dropped_in_evaluation(change: dict[str, float]) -> None:
    tokens = draw_tokens(1, 2, 4)
    without = dropped(random_model(CONFIG, 2).train(), tokens, 1).nll
    model = random_model(dataclasses.replace(CONFIG, **change), 2)
    torch.testing.assert_close(dropped(model, tokens, 1).nll, without)
    assert not torch.allclose(dropped(model.train(), tokens, 1).nll, without, atol=1e-3)


@settings(max_examples=5)
@given(share=st.sampled_from([0.1, 0.5, 0.8]))
def test_what_is_kept_makes_up_for_what_is_dropped(share: float) -> None:
    """A dropped inner layer's contribution keeps its mean: kept channels weigh ``1 / (1 − p)``."""
    config = dataclasses.replace(CONFIG, d_inner=5000, dropout=share)
    model = DEQLanguageModel(config).double().train()
    model.reset(generator=generator(0))
    masks = model.draw(streams=1, tgt_len=2, mem_len=3, generator=generator(1)).masks
    assert masks is not None
    inner = masks.function.inner
    assert inner.shape == (1, 1, 5000)
    kept = inner != 0
    torch.testing.assert_close(inner[kept], torch.full_like(inner[kept], 1 / (1 - share)))
    assert abs(kept.double().mean() - (1 - share)) < 0.03


def test_masks_of_ones_change_nothing() -> None:
    model = random_model(CONFIG, 4)
    memory, injection = draw_memory(1, 2, 3), model.inject(draw_tokens(1, 2, 4))
    one = torch.ones(2, 1, 8, dtype=torch.float64)
    masks = FunctionDropout(
        position=one[0],
        attention_output=one,
        inner=torch.ones(2, 1, 12, dtype=torch.float64),
        output=one,
        attention_weight=torch.ones(2, 2, 4, 7, dtype=torch.float64),
    )
    z = torch.randn(2, 4, 8, generator=generator(0), dtype=torch.float64)
    weights = model.f.fold()
    plain = BlockFunction(weights, memory, injection)(z)
    assert torch.equal(BlockFunction(weights, memory, injection, masks)(z), plain)
    # and every one of them is used
    for name in ("position", "attention_output", "inner", "output", "attention_weight"):
        zeroed = dataclasses.replace(masks, **{name: torch.zeros_like(getattr(masks, name))})
        changed = BlockFunction(weights, memory, injection, zeroed)(z)
        assert (changed - plain).abs().max() > 1e-3, name
