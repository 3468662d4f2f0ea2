"""The map to first states: what it computes, and what becomes of its file."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from deq_model.errors import CheckpointError
from deq_model.warm_start import WARM_START_FILE, WarmStart, load_warm_start, save_warm_start

D, H = 4, 6
PRINT = "0123456789abcdef"


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


LINEAR = WarmStart(from_injection=drawn(D, 3 * D), from_previous=drawn(D, D), bias=drawn(D))
NETWORK = WarmStart(
    from_injection=drawn(H, 3 * D),
    from_previous=drawn(H, D),
    bias=drawn(H),
    out=drawn(D, H),
    out_bias=drawn(D, seed=1),
    layer_norm=True,
)
BOTH = pytest.mark.parametrize("warm_start", [LINEAR, NETWORK], ids=["linear", "network"])


def test_the_linear_map() -> None:
    u, before = drawn(5, 3 * D), drawn(5, D)
    whole = torch.cat([LINEAR.from_injection, LINEAR.from_previous], dim=1)
    expected = torch.cat([u, before], dim=1) @ whole.T + LINEAR.bias
    torch.testing.assert_close(LINEAR(u, before), expected)
    assert LINEAR.n_parameters == 4 * D * D + D


def test_the_network() -> None:
    u, before = drawn(5, 3 * D), drawn(5, D)
    assert NETWORK.out is not None
    inner = u @ NETWORK.from_injection.T + before @ NETWORK.from_previous.T + NETWORK.bias
    expected = inner.relu() @ NETWORK.out.T + NETWORK.out_bias
    torch.testing.assert_close(NETWORK(u, before), functional.layer_norm(expected, (D,)))


@BOTH
def test_a_chain_is_one_state_after_another(warm_start: WarmStart) -> None:
    u, before = drawn(6, 3 * D), drawn(6, D)
    parents = [-1, -1, 0, 2, 1, -1]
    expected: list[Tensor] = []
    for i, parent in enumerate(parents):
        previous = before[i] if parent < 0 else expected[parent]
        expected.append(warm_start(u[i : i + 1], previous[None])[0])
    torch.testing.assert_close(warm_start.chain(u, before, parents), torch.stack(expected))
    torch.testing.assert_close(warm_start.chain(u, before, [-1] * 6), warm_start(u, before))


def test_states_keep_their_dtype() -> None:
    low = NETWORK.to(torch.device("cpu"), torch.bfloat16)
    state = low(drawn(3, 3 * D), drawn(3, D))
    assert state.dtype == torch.float32
    torch.testing.assert_close(state, NETWORK(drawn(3, 3 * D), drawn(3, D)), rtol=0.1, atol=0.1)


@BOTH
def test_it_is_saved_and_loaded(warm_start: WarmStart, tmp_path: Path) -> None:
    save_warm_start(tmp_path, warm_start, fingerprint=PRINT, figures={"nfe": 3.5})
    loaded = load_warm_start(tmp_path, d_model=D, fingerprint=PRINT)
    assert loaded is not None
    assert (loaded.kind, loaded.layer_norm) == (warm_start.kind, warm_start.layer_norm)
    for name, tensor in warm_start.tensors.items():
        torch.testing.assert_close(loaded.tensors[name], tensor, rtol=0, atol=0)


def test_a_checkpoint_need_not_have_one(tmp_path: Path) -> None:
    assert load_warm_start(tmp_path, d_model=D, fingerprint=PRINT) is None


def test_other_weights_are_refused(tmp_path: Path) -> None:
    save_warm_start(tmp_path, LINEAR, fingerprint="fedcba9876543210", figures={})
    with pytest.raises(CheckpointError, match=f"has {PRINT}: fit it again with `deqlm calibrate"):
        load_warm_start(tmp_path, d_model=D, fingerprint=PRINT)


@pytest.mark.parametrize(
    ("changes", "d_model", "words"),
    [
        ({}, 6, "for d_model 6"),
        ({"bias": drawn(D + 1)}, D, "for d_model 4"),
        ({"bias": torch.full((D,), torch.nan)}, D, "not finite: bias"),
    ],
)
def test_shapes_and_values_are_checked(
    changes: dict[str, Tensor], d_model: int, words: str, tmp_path: Path
) -> None:
    changed = dataclasses.replace(LINEAR, **changes)  # type: ignore[arg-type]
    save_warm_start(tmp_path, changed, fingerprint=PRINT, figures={})
    with pytest.raises(CheckpointError, match=words):
        load_warm_start(tmp_path, d_model=d_model, fingerprint=PRINT)


def test_damage_is_told(tmp_path: Path) -> None:
    path = tmp_path / WARM_START_FILE
    save_warm_start(tmp_path, LINEAR, fingerprint=PRINT, figures={})
    tensors = load_file(path)
    save_file(tensors, path, metadata={"format": "deqlm-warm-start", "version": "9"})
    with pytest.raises(CheckpointError, match="deqlm-warm-start 1, got deqlm-warm-start 9"):
        load_warm_start(tmp_path, d_model=D, fingerprint=PRINT)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_warm_start(tmp_path, d_model=D, fingerprint=PRINT)
