"""Which architectures there are, and what is said about those that there are not."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deq_model.config import PRESETS, ModelConfig
from deq_model.errors import ConfigError
from deq_model.model import DEQLanguageModel
from deq_model.published import layout
from tests.deq_model.problems import configs

TINY: dict[str, Any] = {
    "n_token": 20,
    "d_model": 8,
    "n_head": 2,
    "d_head": 4,
    "d_inner": 16,
}


def test_defaults_follow_from_the_rest() -> None:
    config = ModelConfig(**TINY, cutoffs=(5, 9), mem_len=30, tgt_len=12)
    assert config.d_embed == 8
    assert config.tie_projs == (False, True, True)
    assert config.n_cluster == 3
    assert config.cluster_edges == (0, 5, 9, 20)
    assert config.klen == 42
    assert config.attention_span == 1000
    assert not config.has_projections


def test_widths_fall_by_div_val() -> None:
    config = ModelConfig(**TINY, cutoffs=(5, 9), div_val=2, d_embed=10, local_size=3)
    assert [config.cluster_width(i) for i in range(3)] == [10, 5, 2]
    assert config.has_projections
    assert config.attention_span == 3


def test_another_embedding_width_is_projected() -> None:
    assert ModelConfig(**TINY, d_embed=4).has_projections


def test_lists_are_tuples() -> None:
    listed = ModelConfig(**TINY, cutoffs=[5], tie_projs=[True, False])
    assert listed == ModelConfig(**TINY, cutoffs=(5,), tie_projs=(True, False))
    assert hash(listed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_token": 0}, "n_token must be at least 1, got 0"),
        ({"d_model": 0}, "d_model must be at least 1, got 0"),
        ({"n_head": -2}, "n_head must be at least 1, got -2"),
        ({"d_head": 0}, "d_head must be at least 1, got 0"),
        ({"d_inner": 0}, "d_inner must be at least 1, got 0"),
        ({"d_embed": -1}, "d_embed must be at least 1, got -1"),
        ({"tgt_len": 0}, "tgt_len must be at least 1, got 0"),
        ({"mem_len": -1}, "mem_len must be at least 0, got -1"),
        ({"local_size": -1}, "local_size must be at least 0, got -1"),
        ({"dropout": 1.0}, "dropout must be in [0, 1), got 1.0"),
        ({"dropout": math.nan}, "dropout must be in [0, 1), got nan"),
        ({"dropatt": -0.1}, "dropatt must be in [0, 1), got -0.1"),
        ({"d_head": 3}, "n_head * d_head must equal d_model = 8, got 2 * 3 = 6"),
        (
            {"d_model": 7, "n_head": 1, "d_head": 7},
            "d_model must be even (sines and cosines), got 7",
        ),
        ({"norm": "spectral"}, "norm must be weight_norm, spectral_norm or none, got 'spectral'"),
        ({"norm_clip": -1.0}, "norm_clip must be a finite number from 0, got -1.0"),
        ({"norm_target": math.inf}, "norm_target must be a finite number from 0, got inf"),
        ({"norm": "none", "norm_clip": 2.0}, "norm_clip must be 0 where norm is none, got 2.0"),
        (
            {"norm_clip": 2.0, "norm_target": 1.0},
            "norm_clip must be 0 where norm_target is set (there is nothing to clip), got 2.0",
        ),
        ({"div_val": 0}, "div_val must be at least 1, got 0"),
        (
            {"cutoffs": (5, 5)},
            "cutoffs must ascend within [1, n_token - 1 = 19], got [5, 5]",
        ),
        ({"cutoffs": (0,)}, "cutoffs must ascend within [1, n_token - 1 = 19], got [0]"),
        ({"cutoffs": (20,)}, "cutoffs must ascend within [1, n_token - 1 = 19], got [20]"),
        (
            {"cutoffs": (5, 9), "div_val": 3},
            "d_embed // div_val ** 2 must be at least 1, got 8 // 3 ** 2",
        ),
        (
            {"cutoffs": (5,), "tie_projs": (True,)},
            "tie_projs must have one entry per cluster (2), got 1",
        ),
        ({"n_token": 20.0}, "n_token must be an integer, got 20.0"),
        ({"n_head": True}, "n_head must be an integer, got True"),
        ({"d_embed": None}, "d_embed must be an integer, got None"),
        ({"dropout": "0"}, "dropout must be a number, got '0'"),
        ({"dropatt": False}, "dropatt must be a number, got False"),
        ({"pre_lnorm": 1}, "pre_lnorm must be true or false, got 1"),
        ({"tie_weights": "yes"}, "tie_weights must be true or false, got 'yes'"),
        ({"recipe": 3}, "recipe must be a string, got 3"),
        ({"cutoffs": 5}, "cutoffs must be a list of integers, got 5"),
        ({"cutoffs": ("5",)}, "cutoffs must be a list of integers, got ['5']"),
        ({"cutoffs": (True,)}, "cutoffs must be a list of integers, got [True]"),
        ({"cutoffs": "59"}, "cutoffs must be a list of integers, got '59'"),
        ({"tie_projs": (1,)}, "tie_projs must be a list of true or false, got [1]"),
        ({"tie_projs": None}, "tie_projs must be a list of true or false, got None"),
    ],
)
def test_impossible_values(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        ModelConfig(**TINY | change)
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        ModelConfig.from_dict(TINY | change)


def test_every_numeric_and_logical_field_is_checked_for_its_type() -> None:
    for field in dataclasses.fields(ModelConfig):
        with pytest.raises(ConfigError, match=f"^{field.name} must be "):
            ModelConfig.from_dict(TINY | {field.name: object()})


def test_it_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig(**TINY).d_model = 6  # type: ignore[misc]


@given(config=configs(), recipe=st.text(max_size=20))
def test_json_round_trip(config: ModelConfig, recipe: str) -> None:
    config = dataclasses.replace(config, recipe=recipe)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_file_round_trip(tmp_path: Path) -> None:
    config = ModelConfig(**TINY, cutoffs=(5,), div_val=2, recipe="élan — 文")
    config.save(tmp_path / "config.json")
    assert ModelConfig.load(tmp_path / "config.json") == config


def test_unknown_and_missing_keys() -> None:
    with pytest.raises(
        ConfigError, match=r"^unknown key in model configuration: d_modle, vocab_size$"
    ):
        ModelConfig.from_dict(TINY | {"vocab_size": 3, "d_modle": 8})
    with pytest.raises(ConfigError, match=r"^missing key in model configuration: d_head, n_token$"):
        ModelConfig.from_dict({k: v for k, v in TINY.items() if k not in ("d_head", "n_token")})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "config.json is not JSON: Expecting value"),
        (b'{"n_token": ', "config.json is not JSON: Expecting value"),
        (b"\xff\xfe", "config.json is not JSON: 'utf-8' codec"),
        (b"[1, 2]", "config.json must hold one JSON object"),
        (b"[" * 100_000, "config.json is not JSON: maximum recursion depth"),
        (b"{}", "missing key in model configuration: d_head, d_inner, d_model, n_head, n_token"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(message)):
        ModelConfig.load(path)


@pytest.mark.parametrize("name", ["n_token", "tgt_len", "mem_len", "d_inner"])
def test_sizes_no_tensor_has(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} must be at most 2147483647, got {2**63}$"):
        ModelConfig(**{**TINY, name: 2**63})


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^cannot read .*absent.json: No such file"):
        ModelConfig.load(tmp_path / "absent.json")


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_have_the_published_size(name: str) -> None:
    config = PRESETS[name]
    with torch.device("meta"):
        model = DEQLanguageModel(config)
    # The published count has a tied table once, but a tied projection under both its names.
    again = sum(
        model.get_parameter(entry.native).numel()
        for entry in layout(config)
        if entry.published.startswith("crit.out_projs") and entry.native.startswith("embedding")
    )
    assert model.n_parameters() + again == 97_851_488
    assert again == 700 * (175 + 43 + 10)
    assert config.recipe == name


def test_presets_are_the_two_published_ones() -> None:
    assert set(PRESETS) == {"model-ift", "model-ift-jr"}
