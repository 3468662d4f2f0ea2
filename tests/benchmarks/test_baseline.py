"""The engine benchmark's baseline computes what ``deq_model`` does; its random model is as told."""

import math
from dataclasses import replace

import pytest
import torch

from benchmarks import shapes
from benchmarks.baseline import Baseline, Stand
from deq_model.checkpoint import load_checkpoint
from deq_model.config import PRESETS, ModelConfig
from deq_model.solvers.options import SolverOptions
from tests.benchmarks.small import SMALL
from tests.deq_model.problems import CONFIG, draw_tokens, random_model

TOKENS = draw_tokens(1, 3, 13)
INPUTS, TARGETS = TOKENS[:, :-1], TOKENS[:, 1:]


def whole(tol: float, max_nfe: int = 35) -> SolverOptions:
    return SolverOptions(tol=tol, max_nfe=max_nfe, depth=max_nfe, restart=math.inf)


def test_scoring_is_that_of_whole_blocks() -> None:
    model = random_model(CONFIG, 3)
    found = Baseline(model, tol=1e-9, max_nfe=200).score(INPUTS, TARGETS)
    memory = model.empty_memory(3)
    for begin in range(0, 12, CONFIG.tgt_len):
        part = slice(begin, begin + CONFIG.tgt_len)
        block = model.solve_block(INPUTS[:, part], memory, whole(1e-9, 200), whole_block=True)
        expected = -model.nll(block.hidden, TARGETS[:, part])
        torch.testing.assert_close(found.logprob[:, part], expected, rtol=0, atol=1e-6)
        memory = block.memory
    torch.testing.assert_close(found.stand.memory.z_hist, memory.z_hist, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.stand.memory.u_hist, memory.u_hist)
    torch.testing.assert_close(found.stand.hidden, block.hidden[:, -1], rtol=0, atol=1e-6)
    assert len(found.nfe) == 3


def test_calls_of_f_are_those_of_whole_blocks() -> None:
    model = random_model(CONFIG, 3).float()
    found = Baseline(model).score(INPUTS, TARGETS)
    memory, calls = model.empty_memory(3), []
    for begin in range(0, 12, CONFIG.tgt_len):
        part = slice(begin, begin + CONFIG.tgt_len)
        block = model.solve_block(INPUTS[:, part], memory, whole(1e-3), whole_block=True)
        calls.append(block.solution.nfe)
        memory = block.memory
    assert list(found.nfe) == calls
    assert found.token_evaluations == sum(calls) * 3 * CONFIG.tgt_len
    assert 0 < found.residual_max < 1e-3


def test_a_batch_goes_on_until_its_worst_stream_has_converged() -> None:
    model = random_model(CONFIG, 3).float()
    alone = [
        Baseline(model).score(INPUTS[i : i + 1, :4], TARGETS[i : i + 1, :4]).nfe[0]
        for i in range(3)
    ]
    together = Baseline(model).score(INPUTS[:, :4], TARGETS[:, :4]).nfe[0]
    assert len(set(alone)) > 1
    assert together == max(alone)


def test_generation_scores_what_it_draws() -> None:
    model = random_model(CONFIG, 3)
    baseline = Baseline(model, tol=1e-9, max_nfe=200)
    stand = baseline.score(INPUTS, TARGETS).stand
    drawn = baseline.generate(stand, 6, seeds=(1, 2, 3))
    assert len(drawn.nfe) == 5
    first = model.softmax.log_prob(stand.hidden).gather(1, drawn.tokens[:, :1])
    torch.testing.assert_close(drawn.logprob[:, :1], first)
    again = baseline.score(drawn.tokens[:, :-1], drawn.tokens[:, 1:], stand=stand, tgt_len=1)
    torch.testing.assert_close(drawn.logprob[:, 1:], again.logprob)
    torch.testing.assert_close(drawn.stand.memory.z_hist, again.stand.memory.z_hist)
    assert drawn.stand.memory.length == CONFIG.mem_len


def test_seeds_reproduce_a_stream_whoever_is_beside_it() -> None:
    model = random_model(CONFIG, 3)
    baseline = Baseline(model, tol=1e-9, max_nfe=200)
    stand = baseline.score(INPUTS, TARGETS).stand
    together = baseline.generate(stand, 8, seeds=(1, 2, 3)).tokens
    memory = replace(stand.memory, z_hist=stand.memory.z_hist[1:2], u_hist=stand.memory.u_hist[1:2])
    alone = baseline.generate(Stand(memory, stand.hidden[1:2]), 8, seeds=(2,)).tokens
    assert torch.equal(together[1:2], alone)
    other = baseline.generate(Stand(memory, stand.hidden[1:2]), 8, seeds=(4,)).tokens
    assert not torch.equal(other, alone)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    """The published configuration in small, in the table of presets."""
    monkeypatch.setitem(PRESETS, "model-ift", SMALL)
    return SMALL


def test_the_random_model_is_written_once(small: ModelConfig, tmp_path, capsys) -> None:
    shapes.main(["--cache", str(tmp_path)])
    folder = shapes.checkpoint_folder(tmp_path)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    shapes.main(["--cache", str(tmp_path), "--memory", "24"])
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    told = capsys.readouterr().out
    assert told.count("single tokens: ") == 2
    loaded = shapes.load(folder, mem_len=24)
    assert loaded.config == replace(load_checkpoint(folder, device="cpu").config, mem_len=24)
    assert loaded.model.f.config.mem_len == 24
    assert loaded.tokenizer is not None and loaded.tokenizer.n_token == 400


def test_words_are_as_frequent_as_drawn(small: ModelConfig) -> None:
    model = shapes.random_weights(small, seed=0, scales=shapes.Scales(logits=0.1))
    hidden = torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
    found = model.softmax.log_prob(hidden).exp().mean(0)[:50]
    expected = shapes.frequencies(400)[:50].float()
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0)
    text = shapes.zipf_text(400, 4, 5000, seed=1)
    share = (text == 0).double().mean()
    assert float(share) == pytest.approx(float(expected[0]), rel=0.05)
