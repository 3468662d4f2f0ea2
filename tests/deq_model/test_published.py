"""The published layout: every configuration translates there and back."""

import dataclasses

import pytest
import torch

from deq_model.config import PRESETS, ModelConfig
from deq_model.errors import CheckpointError
from deq_model.model import DEQLanguageModel
from deq_model.published import from_published, layout, to_published

CONFIG = ModelConfig(
    n_token=12, d_model=8, n_head=2, d_head=4, d_inner=16, cutoffs=(4, 8), div_val=2, tgt_len=4
)
VARIANTS = {
    "adaptive": CONFIG,
    "untied-projections": dataclasses.replace(CONFIG, tie_projs=(False, False, False)),
    "one-table": dataclasses.replace(CONFIG, div_val=1),
    "one-table-projected": dataclasses.replace(CONFIG, div_val=1, d_embed=6),
    "flat": dataclasses.replace(CONFIG, cutoffs=(), div_val=1, tie_projs=()),
    "untied-tables": dataclasses.replace(CONFIG, tie_weights=False),
    "plain-weights": dataclasses.replace(CONFIG, norm="none"),
}


def state_of(config: ModelConfig) -> dict[str, torch.Tensor]:
    model = DEQLanguageModel(config)
    model.reset(std=0.1, generator=torch.Generator().manual_seed(0))
    return dict(model.state_dict())


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_there_and_back(config: ModelConfig) -> None:
    native = state_of(config)
    back = from_published(to_published(native, config), config)
    assert back.keys() == native.keys()
    for name, tensor in native.items():
        assert torch.equal(back[name], tensor), name


@pytest.mark.parametrize(
    "norm", [{"norm": "spectral_norm"}, {"norm_clip": 2.0}, {"norm_target": 1.0}], ids=str
)
def test_norms_that_the_layout_cannot_hold(norm: dict) -> None:
    config = dataclasses.replace(CONFIG, **norm)
    with pytest.raises(CheckpointError, match=r"keep the model as a checkpoint folder$"):
        to_published(state_of(config), config)


def test_a_prefix_is_dropped() -> None:
    native = state_of(CONFIG)
    published = {f"module.{k}": v for k, v in to_published(native, CONFIG).items()}
    assert from_published(published, CONFIG).keys() == native.keys()


def test_tied_names_share_their_numbers() -> None:
    published = to_published(state_of(CONFIG), CONFIG)
    tied = ("crit.out_layers.1.weight", "word_emb.emb_layers.1.weight")
    assert published[tied[0]].data_ptr() == published[tied[1]].data_ptr()
    alone = ("crit.out_projs.0.weight", "word_emb.emb_projs.0.weight")
    assert not torch.equal(published[alone[0]], published[alone[1]])


@pytest.mark.parametrize("name", ["model-ift", "model-ift-jr"])
def test_a_preset_has_the_published_names_and_shapes(name: str) -> None:
    config = PRESETS[name]
    with torch.device("meta"):
        state = DEQLanguageModel(config).state_dict()
    published = to_published(state, config)
    shapes = {key: tuple(tensor.shape) for key, tensor in published.items()}
    assert len(layout(config)) == len(published) - 1 == 39
    assert shapes["word_emb.emb_layers.2.weight"] == (160000, 43)
    assert shapes["word_emb.emb_projs.3.weight"] == (700, 10)
    assert shapes["inject_conv.weight"] == (2100, 700, 1)
    assert shapes["pos_emb.inv_freq"] == (350,)
    assert shapes["func.dec_attn.r_w_bias"] == (10, 70)
    assert shapes["func.dec_attn.qkv_net.weight_g"] == (2100, 1, 1)
    assert shapes["func.dec_attn.o_net.weight_v"] == (700, 700, 1)
    assert shapes["func.pos_ff.ff1_net.weight_g"] == (48000, 1)
    assert shapes["func.pos_ff.ff2_net.weight_v"] == (700, 48000)
    assert shapes["crit.cluster_weight"] == (3, 700)
    assert shapes["crit.out_layers.3.bias"] == (67735,)
    assert shapes["crit.out_projs.1.weight"] == (700, 175)
    # Of a tied pair of projections both are counted, of a tied pair of tables one.
    trained = [
        key
        for key in shapes
        if key != "pos_emb.inv_freq"
        and not (key.startswith("crit.out_layers") and key.endswith("weight"))
    ]
    assert sum(published[key].numel() for key in trained) == 97_851_488


def test_what_does_not_fit_is_named() -> None:
    published = to_published(state_of(CONFIG), CONFIG)
    wrong = dict(published)
    del wrong["inject_conv.bias"]
    with pytest.raises(CheckpointError, match=r"missing inject_conv.bias; extra none"):
        from_published(wrong, CONFIG)
    with pytest.raises(CheckpointError, match=r"missing .* and \d+ more; extra none"):
        from_published({}, CONFIG)
    wrong = published | {"crit.out_projs.1.weight": published["crit.out_projs.1.weight"] + 1}
    with pytest.raises(CheckpointError, match=r"crit.out_projs.1.weight differs from word_emb"):
        from_published(wrong, CONFIG)
    wrong = published | {"inject_conv.weight": torch.zeros(24, 8)}
    with pytest.raises(CheckpointError, match=r"size 1, got shape \(24, 8\)"):
        from_published(wrong, CONFIG)


def test_a_buffer_of_the_published_code_is_not_needed() -> None:
    published = to_published(state_of(CONFIG), CONFIG)
    del published["pos_emb.inv_freq"]
    assert from_published(published, CONFIG)
