"""The model's parts against their definitions, written out token by token."""

import dataclasses
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from deq_model.attention import sinusoid_table, span
from deq_model.config import ModelConfig
from deq_model.errors import ConfigError
from deq_model.memory import Memory
from deq_model.model import BlockFunction, BlockResult, DEQLanguageModel
from deq_model.solvers.options import SolverOptions
from tests.deq_model.problems import CONFIG as SMALL
from tests.deq_model.problems import configs, generator, random_model

CPU = torch.device("cpu")
EXACT = SolverOptions(tol=1e-6, max_nfe=400, depth=20)
CONFIG = dataclasses.replace(SMALL, tie_weights=True)


def layer_norm(x: Tensor) -> Tensor:
    return (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()


def one_token(
    model: DEQLanguageModel, z: Tensor, injection: Tensor, *, at: int, first: int
) -> Tensor:
    """f at position ``at`` of ``(T, D)`` states, by loops: its context begins at ``first``."""
    config, f = model.config, model.f
    d_head, pre = config.d_head, config.pre_lnorm
    r_net = f.r_net.folded()
    omega = torch.tensor([10000 ** (-2 * j / config.d_model) for j in range(config.d_model // 2)])

    def channels(i: int) -> tuple[Tensor, Tensor, Tensor]:
        state = layer_norm(z[i]) if pre else z[i]
        query, key, value = (f.qkv_net.folded() @ state + injection[i]).chunk(3)
        return query, key, value

    def distance(delta: int) -> Tensor:
        angle = delta * omega.double()
        return r_net @ torch.cat([angle.sin(), angle.cos()])

    keys = [j for j in range(first, at + 1) if at - j < (config.local_size or 1000)]
    mixed = []
    for head in range(config.n_head):
        part = slice(head * d_head, (head + 1) * d_head)
        query = channels(at)[0][part]
        scores = torch.stack(
            [
                (query + f.r_w_bias[head]) @ channels(j)[1][part]
                + (query + f.r_r_bias[head]) @ distance(at - j)[part]
                for j in keys
            ]
        ) / math.sqrt(d_head)
        values = torch.stack([channels(j)[2][part] for j in keys])
        mixed.append(scores.softmax(0) @ values)
    attention = f.o_net.folded() @ torch.cat(mixed) + f.o_net.bias
    hidden = attention + z[at] if pre else layer_norm(attention + z[at])
    inner = f.ff1_net.folded() @ (layer_norm(hidden) if pre else hidden) + f.ff1_net.bias
    out = f.ff2_net.folded() @ inner.relu() + f.ff2_net.bias
    return out + hidden if pre else layer_norm(out + hidden)


def solve_segments(model: DEQLanguageModel, tokens: Tensor) -> list[BlockResult]:
    """Blocks of ``tgt_len`` of ``(B, T)`` tokens, chained through memory."""
    memory, blocks = model.empty_memory(len(tokens)), []
    for segment in tokens.split(model.config.tgt_len, dim=1):
        blocks.append(model.solve_block(segment, memory, EXACT))
        memory = blocks[-1].memory
    return blocks


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10_000),
    tgt_len=st.integers(1, 5),
    mem_len=st.integers(0, 7),
    local_size=st.sampled_from([0, 0, 2, 4]),
    norm=st.sampled_from(["weight_norm", "none"]),
)
def test_segments_chained_through_memory_have_the_defined_contexts(
    seed: int, tgt_len: int, mem_len: int, local_size: int, norm: str
) -> None:
    """Token t sees all from ``mem_len`` before its segment's start: its state solves just that."""
    config = dataclasses.replace(
        CONFIG,
        tgt_len=tgt_len,
        mem_len=mem_len,
        local_size=local_size,
        norm=norm,
    )
    model = random_model(config, seed, std=0.25)
    tokens = torch.randint(config.n_token, (2, 9), generator=generator(seed))
    blocks = solve_segments(model, tokens)
    assume(all(block.solution.converged for block in blocks))  # some random models are stiff
    z = torch.cat([block.hidden for block in blocks], dim=1)
    injection = model.inject(tokens)
    with torch.no_grad():
        for at in range(tokens.shape[1]):
            first = max(0, at // tgt_len * tgt_len - mem_len)
            defined = one_token(model, z[1], injection[1], at=at, first=first)
            error = (defined - z[1, at]).norm() / defined.norm()
            assert error < 1e-5, f"token {at} does not solve its equation: {error:.1e}"


@pytest.mark.parametrize("mem_len", [0, 3, 5])
def test_memory_keeps_the_last_tokens(mem_len: int) -> None:
    model = random_model(dataclasses.replace(CONFIG, mem_len=mem_len), 1)
    tokens = torch.randint(23, (2, 11), generator=generator(0))
    blocks = solve_segments(model, tokens)
    z = torch.cat([block.hidden for block in blocks], dim=1)
    injection = model.inject(tokens)
    for number, block in enumerate(blocks):
        end = min(4 * number + 4, 11)
        kept = slice(max(0, end - mem_len), end)
        assert block.memory.length == min(mem_len, end)
        assert torch.equal(block.memory.z_hist, z[:, kept])
        torch.testing.assert_close(block.memory.u_hist, injection[:, kept])
    override = model.solve_block(tokens, model.empty_memory(2), EXACT, mem_len=2)
    assert override.memory.length == 2


def block_function(model: DEQLanguageModel, tokens: Tensor, mem_len: int = 0) -> BlockFunction:
    """f of ``(B, L)`` tokens after a random memory."""
    source, d_model = generator(9), model.config.d_model
    memory = Memory(
        torch.randn(len(tokens), mem_len, d_model, generator=source).double(),
        torch.randn(len(tokens), mem_len, 3 * d_model, generator=source).double(),
    )
    return BlockFunction(model.f.fold().detach(), memory, model.inject(tokens).detach())


@settings(max_examples=20)
@given(
    seed=st.integers(0, 10_000),
    mem_len=st.integers(0, 3),
    local_size=st.sampled_from([0, 2, 4]),
    pre_lnorm=st.booleans(),
    norm=st.sampled_from(["weight_norm", "none"]),
)
def test_one_call_of_f(
    seed: int, mem_len: int, local_size: int, pre_lnorm: bool, norm: str
) -> None:
    """At any states, not only at fixed points: an untrained pre-LN f = z + … may have none."""
    config = dataclasses.replace(CONFIG, local_size=local_size, pre_lnorm=pre_lnorm, norm=norm)
    model = random_model(config, seed, std=0.5)
    tokens = torch.randint(23, (1, 4), generator=generator(seed))
    z = torch.randn(1, 4, 8, generator=generator(seed), dtype=torch.float64)
    u_hist = torch.randn(1, mem_len, 24, generator=generator(seed + 1), dtype=torch.float64)
    memory = Memory(u_hist[..., :8] + 1, u_hist)
    with torch.no_grad():
        injection = model.inject(tokens)
        f_z = BlockFunction(model.f.fold(), memory, injection)(z)[0]
        states = torch.cat([memory.z_hist, z], dim=1)[0]
        injections = torch.cat([u_hist, injection], dim=1)[0]
        for i in range(4):
            expected = one_token(model, states, injections, at=mem_len + i, first=0)
            torch.testing.assert_close(f_z[i], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("local_size", [0, 1, 3])
@pytest.mark.parametrize("pre_lnorm", [False, True])
def test_who_sees_whom(local_size: int, pre_lnorm: bool) -> None:
    config = dataclasses.replace(CONFIG, local_size=local_size, pre_lnorm=pre_lnorm)
    f = block_function(random_model(config, 2), torch.arange(6)[None], mem_len=2)
    z = torch.randn(1, 6, 8, generator=generator(3), dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(f, z)[0, :, :, 0]  # (6, 8, 6, 8)
    strength = jacobian.abs().amax(dim=(1, 3))
    delta = torch.arange(6)[:, None] - torch.arange(6)
    seen = (delta >= 0) & (delta < (local_size or 1000))
    assert (strength[~seen] == 0).all()
    assert (strength[seen] > 1e-6).all()


def test_a_local_size_of_zero_reaches_a_thousand_keys() -> None:
    position = torch.tensor([[1000]])
    keys = torch.arange(1001)[None]
    reach = CONFIG.attention_span
    seen = span(position, keys, first=torch.zeros_like(position), reach=reach)
    assert seen.masked
    assert seen.visible[0, 0].tolist() == [False] + [True] * 1000


def test_a_span_hides_what_it_should() -> None:
    """Slots without a key, keys before a query's context, and keys that follow it."""
    query = torch.tensor([[3, 4]])
    key = torch.tensor([[-1, 1, 2, 3, 4]])
    seen = span(query, key, first=torch.tensor([[1, 2]]), reach=1000)
    assert seen.visible[0].tolist() == [
        [False, True, True, True, False],
        [False, False, True, True, True],
    ]
    assert seen.delta[0, :, 1:].tolist() == [[2, 1, 0, 0], [3, 2, 1, 0]]
    alone = span(query[:, :1], key[:, 3:4], first=torch.zeros(1, 1), reach=1000)
    assert not alone.masked


@given(seed=st.integers(0, 10_000), config=configs(), position=st.integers(0, 4))
def test_a_later_token_never_changes_an_earlier_one(
    seed: int, config: ModelConfig, position: int
) -> None:
    model = random_model(config, seed)
    tokens = torch.randint(config.n_token, (2, 6), generator=generator(seed))
    other = tokens.clone()
    other[:, position + 1 :] = (tokens[:, position + 1 :] + 1) % config.n_token
    z = torch.randn(2, 6, config.d_model, generator=generator(seed), dtype=torch.float64)
    changed = z.clone()
    changed[:, position + 1 :] += 1
    kept = slice(0, position + 1)
    one = block_function(model, tokens, mem_len=3)(z)
    two = block_function(model, other, mem_len=3)(changed)
    torch.testing.assert_close(one[:, kept], two[:, kept], rtol=1e-9, atol=1e-9)


def test_a_later_token_never_changes_an_earlier_likelihood() -> None:
    model = random_model(CONFIG, 3)
    tokens = torch.randint(23, (2, 6), generator=generator(1))
    other = torch.cat([tokens[:, :4], (tokens[:, 4:] + 1) % 23], dim=1)
    targets = torch.randint(23, (2, 6), generator=generator(2))
    nll = []
    for block in (tokens, other):
        result = model.solve_block(block, model.empty_memory(2), EXACT)
        assert result.solution.converged
        nll.append(model.nll(result.hidden, targets).detach())
    torch.testing.assert_close(nll[0][:, :4], nll[1][:, :4], rtol=0, atol=1e-5)
    assert (nll[0][:, 4:] - nll[1][:, 4:]).abs().max() > 1e-3


@given(seed=st.integers(0, 10_000), pre_lnorm=st.booleans(), norm=st.sampled_from(["none"]))
def test_bfloat16_weights_stay_close(seed: int, pre_lnorm: bool, norm: str) -> None:
    config = dataclasses.replace(CONFIG, pre_lnorm=pre_lnorm, norm=norm)
    model = random_model(config, seed).float()
    tokens = torch.randint(23, (2, 5), generator=generator(seed))
    weights, memory = model.f.fold().detach(), model.empty_memory(2)
    z = torch.randn(2, 5, 8, generator=generator(seed))
    injection = model.inject(tokens).detach()
    full = BlockFunction(weights, memory, injection)(z)
    rounded = weights.to(CPU, torch.bfloat16)
    half = BlockFunction(rounded, memory, injection)(z)
    assert half.dtype == torch.float32
    assert rounded.ff1.dtype == torch.bfloat16
    assert rounded.r_w_bias.dtype == rounded.r_r_bias.dtype == torch.float32
    error = (half - full).norm() / full.norm()
    assert 0 < error < 0.02


def test_weights_are_kept_apart_from_the_graph_only_when_asked() -> None:
    weights = random_model(CONFIG, 0).f.fold()
    assert weights.qkv.requires_grad
    assert not weights.detach().qkv.requires_grad
    assert weights.to(CPU, torch.float32).qkv.requires_grad
    assert weights.to(CPU, torch.float64).r_w_bias.dtype == torch.float64


def test_sinusoids_are_rounded_once() -> None:
    exact = sinusoid_table(400, 8, device=CPU, dtype=torch.float64)
    assert torch.equal(sinusoid_table(400, 8, device=CPU, dtype=torch.float32), exact.float())
    torch.testing.assert_close(exact[7, 1].item(), math.sin(7 * 10000 ** (-2 / 8)))
    torch.testing.assert_close(exact[7, 5].item(), math.cos(7 * 10000 ** (-2 / 8)))


def test_reset_draws_as_published() -> None:
    model = DEQLanguageModel(
        dataclasses.replace(CONFIG, d_model=64, d_head=32, d_inner=128, n_token=500, d_embed=64)
    )
    model.reset(std=0.05, generator=generator(1))
    for name, parameter in model.named_parameters():
        if "r_w_bias" in name or "r_r_bias" in name:
            assert 0.035 < parameter.std() < 0.065
        elif "bias" in name:
            assert (parameter == 0).all(), name
        elif "projections" in name:
            assert 0.009 < parameter.std() < 0.011, name
        elif "weight_g" not in name and parameter.numel() > 1000:
            assert 0.047 < parameter.std() < 0.053, name
    torch.testing.assert_close(model.f.qkv_net.folded(), model.f.qkv_net.weight_v)
    again = DEQLanguageModel(model.config)
    again.reset(std=0.05, generator=generator(1))
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )


def test_training_and_evaluation_agree() -> None:
    model = random_model(CONFIG, 5)
    tokens = torch.randint(23, (2, 9), generator=generator(4))
    memory = model.solve_block(tokens[:, :4], model.empty_memory(2), EXACT).memory
    block, targets = tokens[:, 4:8], tokens[:, 5:9]
    solved = model.solve_block(block, memory, EXACT)
    trained = model.train_block(block, targets, memory, forward=EXACT, backward=EXACT)
    assert solved.solution.converged
    nll = model.nll(solved.hidden, targets)
    torch.testing.assert_close(trained.nll, nll, rtol=0, atol=1e-5)
    torch.testing.assert_close(trained.memory.z_hist, solved.memory.z_hist, rtol=0, atol=1e-5)
    whole = model.train_block(
        block, targets, memory, forward=EXACT, backward=EXACT, whole_block=True
    )
    assert whole.solution.residual.shape == whole.solution.status.shape == (2, 4)
    torch.testing.assert_close(whole.nll, nll, rtol=0, atol=1e-4)
    ready = model.solve_block(block, memory, EXACT, weights=model.f.fold())
    assert torch.equal(ready.hidden, solved.hidden)


def test_unrolling_needs_a_depth() -> None:
    model, tokens = random_model(CONFIG, 5), torch.zeros(1, 2, dtype=torch.long)
    with pytest.raises(ConfigError, match=r"^depth must be at least 1, got 0$"):
        model.unroll_block(tokens, tokens, model.empty_memory(1), depth=0)


def test_samples_of_a_block_do_not_notice_each_other() -> None:
    model = random_model(CONFIG, 6)
    tokens = torch.randint(23, (3, 5), generator=generator(5))
    z = torch.randn(3, 5, 8, generator=generator(6), dtype=torch.float64)
    together = block_function(model, tokens)(z)
    for i in range(3):
        alone = block_function(model, tokens[[i]])(z[[i]])
        torch.testing.assert_close(together[[i]], alone, rtol=1e-9, atol=1e-9)
