"""Random numbers of a step: however its streams are cut, the step is the same."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deq_model.draws import Draws
from deq_model.errors import ConfigError
from deq_model.gradient import GradientOptions
from deq_model.jacobian import frobenius_estimate, spectral_radius
from deq_model.memory import Memory
from deq_model.model import DEQLanguageModel
from deq_model.solvers.options import SolverOptions
from tests.deq_model.problems import CONFIG, draw_memory, draw_tokens, generator, random_model

DROPPING = dataclasses.replace(CONFIG, dropout=0.3, dropatt=0.2)
STREAMS, SOLVER = 4, SolverOptions(tol=1e-6, max_nfe=60)
WEIGHT = 0.3


def draw(model: DEQLanguageModel, seed: int, *, streams: int = STREAMS) -> Draws:
    return model.draw(
        streams=streams,
        tgt_len=3,
        mem_len=2,
        generator=generator(seed),
        jacobian=True,
        spectral=True,
    )


@dataclasses.dataclass
class Step:
    """What a part of a step computes."""

    nll: Tensor
    jac_loss: Tensor
    radius: Tensor
    gradient: Tensor
    memory: Tensor


def step(
    model: DEQLanguageModel, draws: Draws, begin: int, end: int, gradient: GradientOptions
) -> Step:
    """Streams ``begin`` to ``end − 1`` of a fixed block, their loss summed, not averaged."""
    whole = draw_memory(2, STREAMS, 2)
    tokens, targets = draw_tokens(3, STREAMS, 3)[begin:end], draw_tokens(4, STREAMS, 3)[begin:end]
    result = model.train_block(
        tokens,
        targets,
        Memory(whole.z_hist[begin:end], whole.u_hist[begin:end]),
        forward=SOLVER,
        backward=SOLVER,
        gradient=gradient,
        draws=draws,
    )
    jac_loss = frobenius_estimate(result.f_z, result.z, v=draws.jacobian)
    radius = spectral_radius(result.f_z, result.z, steps=6, v=draws.spectral)
    loss = (result.objective.mean() + WEIGHT * jac_loss) * (end - begin) / STREAMS
    parts = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    return Step(
        result.nll.detach(),
        jac_loss.detach(),
        radius,
        torch.cat([part.flatten() for part in parts]),
        result.memory.z_hist,
    )


@settings(max_examples=6)
@given(
    seed=st.integers(0, 1000),
    cuts=st.sets(st.integers(1, STREAMS - 1)),
    gradient=st.sampled_from(
        [GradientOptions(), GradientOptions(kind="phantom", steps=2, tau=0.8, n_states=2)]
    ),
)
def test_parts_make_the_whole(seed: int, cuts: set[int], gradient: GradientOptions) -> None:
    model = random_model(DROPPING, seed, std=0.2).train()
    whole = step(model, draw(model, seed), 0, STREAMS, gradient)
    edges = [0, *sorted(cuts), STREAMS]
    parts, shares = [], []
    for begin, end in itertools.pairwise(edges):
        # As a rank does: all is drawn again from the generator's same state.
        parts.append(step(model, draw(model, seed).part(begin, end), begin, end, gradient))
        shares.append((end - begin) / STREAMS)
    close = {"rtol": 1e-5, "atol": 1e-5}
    for name in ("nll", "radius", "memory"):
        joined = torch.cat([getattr(part, name) for part in parts])
        torch.testing.assert_close(joined, getattr(whole, name), **close)
    jac_loss = sum(share * part.jac_loss for share, part in zip(shares, parts, strict=True))
    torch.testing.assert_close(jac_loss, whole.jac_loss, **close)
    total = torch.stack([part.gradient for part in parts]).sum(0)
    assert (total - whole.gradient).norm() < 1e-4 * whole.gradient.norm()


def test_the_generator_ends_alike_for_everybody() -> None:
    model = random_model(DROPPING, 1).train()
    states = []
    for begin, end in ((0, 4), (0, 2), (2, 4)):
        source = generator(5)
        model.draw(streams=4, tgt_len=3, mem_len=2, generator=source).part(begin, end)
        states.append(source.get_state())
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


def test_pretraining_takes_them_too() -> None:
    model = random_model(DROPPING, 1).train()
    tokens, memory = draw_tokens(3, STREAMS, 3), draw_memory(2, STREAMS, 2)
    draws = draw(model, 7)
    whole = model.unroll_block(tokens, tokens, memory, depth=3, draws=draws).nll
    for begin, end in ((0, 1), (1, 4)):
        half = Memory(memory.z_hist[begin:end], memory.u_hist[begin:end])
        part = model.unroll_block(
            tokens[begin:end], tokens[begin:end], half, depth=3, draws=draws.part(begin, end)
        )
        torch.testing.assert_close(part.nll, whole[begin:end])
    again = model.unroll_block(tokens, tokens, memory, depth=3, generator=generator(7)).nll
    assert torch.equal(again, whole), "masks are drawn first: the other numbers do not move them"


def test_what_is_not_asked_for_is_not_drawn() -> None:
    model = random_model(DROPPING, 1)
    draws = model.draw(streams=4, tgt_len=3, mem_len=2)
    assert (draws.masks, draws.jacobian, draws.spectral) == (None, None, None)
    assert draws.part(1, 3) == Draws(streams=2)
    assert model.train().draw(streams=4, tgt_len=3, mem_len=2).masks is not None


def test_draws_of_other_streams_are_refused() -> None:
    model = random_model(DROPPING, 1).train()
    draws, tokens = draw(model, 1, streams=1), draw_tokens(1, 2, 3)
    with pytest.raises(ConfigError, match=r"^draws must be for the block's 2 streams, got those"):
        model.unroll_block(tokens, tokens, draw_memory(1, 2, 2), depth=1, draws=draws)
    with pytest.raises(ConfigError, match=r"within \[0, 1 streams\], got 0 and 2$"):
        draws.part(0, 2)
