"""Weights of f as lengths and directions."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deq_model.checkpoint import fingerprint, load_checkpoint, load_config, save_checkpoint
from deq_model.config import ModelConfig, Norm
from deq_model.errors import ConfigError
from deq_model.model import DEQLanguageModel
from deq_model.normalised import NormalisedLinear, largest_singular_value
from tests.deq_model.problems import generator

CONFIG = ModelConfig(n_token=50, d_model=8, n_head=2, d_head=4, d_inner=40)
NORMS = ("weight_norm", "spectral_norm")
every_norm = pytest.mark.parametrize("norm", NORMS)


def linear(
    norm: Norm, n_in: int, n_out: int, *, seed: int = 0, clip: float = 0.0, target: float = 0.0
) -> NormalisedLinear:
    made = NormalisedLinear(n_in, n_out, bias=False, norm=norm, clip=clip, target=target).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(generator=generator(seed))
    return made


def sizes(norm: Norm, weight: Tensor) -> Tensor:
    """Lengths of the rows, or the largest singular value."""
    if norm == "weight_norm":
        return weight.square().sum(1).sqrt()
    return torch.linalg.svdvals(weight)[:1]


def test_weight_norm_is_by_rows() -> None:
    made = linear("weight_norm", 3, 2)
    with torch.no_grad():
        made.weight_v.copy_(torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.5, 0.0]]))
        made.weight_g.copy_(torch.tensor([[10.0], [-2.0]]))
    expected = torch.tensor([[6.0, 0.0, 8.0], [0.0, -2.0, 0.0]]).double()
    torch.testing.assert_close(made.folded(), expected)


@every_norm
@given(seed=st.integers(0, 1000), n_in=st.integers(1, 7), n_out=st.integers(1, 7))
def test_g_is_the_size_and_v_the_direction(norm: Norm, seed: int, n_in: int, n_out: int) -> None:
    made = linear(norm, n_in, n_out, seed=seed)
    weight, g = made.folded(), made.weight_g
    assert g.shape == ((n_out, 1) if norm == "weight_norm" else (1, 1))
    torch.testing.assert_close(sizes(norm, weight), g.abs().flatten(), rtol=1e-9, atol=0)
    cosine = torch.cosine_similarity(weight * g.sign(), made.weight_v, dim=1)
    torch.testing.assert_close(cosine, torch.ones(n_out).double())
    clipped, fixed = (linear(norm, n_in, n_out, seed=seed, **b) for b in ({"clip": 0.3}, {}))
    found = sizes(norm, clipped.folded())
    torch.testing.assert_close(found, g.abs().clamp(max=0.3).flatten(), rtol=1e-9, atol=0)
    fixed = linear(norm, n_in, n_out, seed=seed, target=0.7)
    assert fixed.weight_g is None
    found = sizes(norm, fixed.folded())
    torch.testing.assert_close(found, torch.full_like(found, 0.7), rtol=1e-9, atol=0)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (1, 5), (5, 1)])
def test_the_largest_singular_value(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=generator(1), dtype=torch.float64, requires_grad=True)
    found = largest_singular_value(matrix)
    torch.testing.assert_close(found.item(), torch.linalg.svdvals(matrix)[0].item())
    (gradient,) = torch.autograd.grad(found.sum(), matrix)
    left, _, right = torch.linalg.svd(matrix.detach(), full_matrices=False)
    torch.testing.assert_close(gradient, left[:, :1] @ right[:1])  # as textbooks have it
    low = largest_singular_value(matrix.detach().bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.item(), found.item(), rtol=1e-2, atol=0)


@every_norm
@pytest.mark.parametrize("bounds", [{}, {"clip": 0.5}, {"target": 0.7}], ids=str)
def test_gradients_by_finite_differences(norm: Norm, bounds: dict[str, float]) -> None:
    made = linear(norm, 5, 4, seed=3, **bounds)

    def folded(*parameters: Tensor) -> Tensor:
        names = [name for name, _ in made.named_parameters()]
        return torch.func.functional_call(
            Folding(made), {f"inner.{n}": p for n, p in zip(names, parameters, strict=True)}, ()
        )

    assert torch.autograd.gradcheck(folded, tuple(made.parameters()))


class Folding(torch.nn.Module):
    def __init__(self, inner: NormalisedLinear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self) -> Tensor:
        return self.inner.folded()


@every_norm
@pytest.mark.parametrize("kind", ["normal", "uniform"])
@pytest.mark.parametrize("bounds", [{}, {"norm_clip": 0.2}, {"norm_target": 0.7}], ids=str)
def test_initial_weights(norm: Norm, kind: str, bounds: dict[str, float]) -> None:
    config = dataclasses.replace(CONFIG, norm=norm, **bounds)
    model = DEQLanguageModel(config).double()
    model.reset(std=0.05, kind=kind, bound=0.08, generator=generator(1))
    net = model.f.ff1_net
    drawn = net.weight_v.abs().max().item()
    assert drawn < 0.08 if kind == "uniform" else drawn > 0.08
    v_sizes, found = sizes(norm, net.weight_v), sizes(norm, net.folded())
    if "norm_target" in bounds:
        expected = torch.full_like(found, 0.7)
    else:
        expected = v_sizes.clamp(max=bounds.get("norm_clip", torch.inf))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    assert net.bias is not None and (net.bias == 0).all()
    assert model.f.r_w_bias.abs().min() > 0


def test_the_kinds_of_initial_weights() -> None:
    config = dataclasses.replace(CONFIG, d_model=64, d_head=32, d_embed=30)
    model = DEQLanguageModel(config)
    model.reset(kind="uniform", bound=0.3, projection_std=0.07, generator=generator(1))
    for name, parameter in model.named_parameters():
        if "projections" in name:
            assert 0.06 < parameter.std() < 0.08, name
            assert parameter.abs().max() > 0.14, name
        elif "bias" not in name and "weight_g" not in name:
            assert 0.29 < parameter.abs().max() <= 0.3, name
            assert 0.14 < parameter.abs().mean() < 0.16, name
    model.reset(std=0.2, projection_std=0.07, generator=generator(1))
    assert 0.19 < model.f.ff1_net.weight_v.std() < 0.21
    with pytest.raises(ConfigError, match=r"^kind must be normal or uniform, got 'zero'$"):
        model.reset(kind="zero")


@every_norm
def test_a_length_beyond_the_bound_is_brought_back(norm: Norm) -> None:
    """So that it has a gradient again: beyond the bound it has none."""
    model = DEQLanguageModel(dataclasses.replace(CONFIG, norm=norm, norm_clip=0.5)).double()
    model.reset(std=0.05, generator=generator(1))
    g = model.f.ff2_net.weight_g
    with torch.no_grad():
        g.fill_(-3.0)
    before = model.f.ff2_net.folded()
    assert torch.autograd.grad(before.sum(), g)[0].abs().max() == 0
    model.clip_norms()
    assert (g == -0.5).all()
    after = model.f.ff2_net.folded()
    torch.testing.assert_close(after, before)
    assert torch.autograd.grad(after.sum(), g)[0].abs().max() > 0


@pytest.mark.parametrize(
    "norm",
    [
        {"norm": "spectral_norm"},
        {"norm": "spectral_norm", "norm_target": 0.8},
        {"norm_clip": 0.9},
        {"norm_target": 0.8},
    ],
    ids=str,
)
def test_checkpoints_keep_the_norm(norm: dict, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, **norm)
    model = DEQLanguageModel(config)
    model.reset(std=0.1, generator=generator(1))
    save_checkpoint(tmp_path, model)
    loaded = load_checkpoint(tmp_path, device="cpu")
    assert loaded.config == config
    assert torch.equal(loaded.model.f.ff1_net.folded(), model.f.ff1_net.folded())


def test_files_from_before_these_fields_keep_their_meaning_and_fingerprint(tmp_path: Path) -> None:
    model = DEQLanguageModel(CONFIG)
    model.reset(generator=generator(1))
    save_checkpoint(tmp_path, model)
    new = fingerprint(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    for name in ("norm_clip", "norm_target"):
        del values[name]
    path.write_text(json.dumps(values))
    assert load_config(tmp_path) == CONFIG
    assert fingerprint(tmp_path) == new
    assert set(CONFIG.identity()) == set(values)
    path.write_text(json.dumps({**values, "norm_clip": 1.5}))
    assert fingerprint(tmp_path) != new
