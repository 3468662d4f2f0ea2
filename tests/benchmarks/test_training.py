"""The benchmark's baseline computes what ours computes, and its own measurements run."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import training, training_memory, training_profile, training_table
from benchmarks.training import BaselineFunction, broyden, way_of
from benchmarks.training_runs import Material, Pass, Trainee, compete
from benchmarks.training_settings import SETTINGS, Setting
from deq_model.block import BlockFunction
from deq_model.config import ModelConfig
from deq_model.memory import Memory
from deq_model.model import DEQLanguageModel
from tests.deq_model.problems import generator, random_model
from training.data import Block

CONFIG = ModelConfig(
    n_token=23, d_model=8, n_head=2, d_head=4, d_inner=12, tgt_len=5, mem_len=6, local_size=7
)
TOKENS = torch.randint(23, (3, 6), generator=generator(1))
BLOCK = Block(TOKENS[:, :-1], TOKENS[:, 1:], 0)


def draw_memory(length: int) -> Memory:
    source = generator(2)
    z_hist = torch.randn(3, length, 8, generator=source, dtype=torch.float64)
    return Memory(z_hist, torch.randn(3, length, 24, generator=source, dtype=torch.float64))


def exact(name: str) -> Setting:
    """A setting, solved far further than it asks."""
    setting = SETTINGS[name]
    return replace(
        setting,
        forward=replace(setting.forward, tol=1e-9, max_nfe=200, depth=200),
        backward=replace(setting.backward, tol=1e-9, max_nfe=200, depth=200),
    )


def one_pass(name: str, model: DEQLanguageModel, memory: Memory) -> tuple[Pass, list[Tensor]]:
    """A pass to the end of its solves, and the gradients of its mean loss."""
    done = way_of(exact(name))(model, BLOCK, memory)
    return done, list(torch.autograd.grad(done.nll.mean(), list(model.parameters())))


@pytest.mark.parametrize("mem_len", [0, 1, 6])
def test_f_is_the_same(mem_len: int) -> None:
    model, memory = random_model(CONFIG, 3), draw_memory(mem_len)
    injection, weights = model.inject(BLOCK.tokens), model.f.fold()
    z = torch.randn(3, 5, 8, generator=generator(4), dtype=torch.float64)
    ours = BlockFunction(weights, memory, injection)(z)
    theirs = BaselineFunction(weights, memory, injection)(z)
    # Ours rounds masked scores to float32, as the published code does.
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["published", "tokens"])
def test_loss_gradients_and_memory_are_the_same(name: str) -> None:
    model, memory = random_model(CONFIG, 3), draw_memory(6)
    theirs, expected = one_pass("baseline", model, memory)
    ours, found = one_pass(name, model, memory)
    torch.testing.assert_close(ours.nll, theirs.nll, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.memory.z_hist, theirs.memory.z_hist, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.memory.u_hist, theirs.memory.u_hist)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert ours.nfe_forward > 1 and theirs.nfe_forward > 1
    assert ours.nfe_backward() > 1 and theirs.nfe_backward() > 1


def test_the_baseline_solver_is_whole_block_broyden() -> None:
    """Calls and states of ours where a row is a whole block, none of its terms forgotten."""
    model, memory = random_model(CONFIG, 3), draw_memory(6)
    with torch.no_grad():
        f = BlockFunction(model.f.fold(), memory, model.inject(BLOCK.tokens))
        found = broyden(f, torch.zeros(3, 5, 8, dtype=torch.float64), tol=1e-3, max_nfe=35)
    ours = model.solve_block(BLOCK.tokens, memory, SETTINGS["published"].forward, whole_block=True)
    assert found.nfe == ours.solution.nfe
    assert float(found.residual.max()) < 1e-3
    torch.testing.assert_close(found.z_star, ours.hidden, rtol=0, atol=5e-3)


def test_the_budget_ends_the_baseline_solver_at_its_best_state() -> None:
    seen: list[Tensor] = []

    def f(z: Tensor) -> Tensor:
        seen.append(z)
        return torch.where(z.abs() < 2, 2 * z + 1, 1000 * z)

    found = broyden(f, torch.zeros(1, 2, 2), tol=1e-6, max_nfe=1)
    assert len(seen) == found.nfe == 1
    assert torch.equal(found.z_star, seen[0])
    assert math.isclose(float(found.residual), 1.0)


def test_competitors_start_alike_and_take_turns() -> None:
    model = random_model(CONFIG, 3).float()
    ways = {name: way_of(SETTINGS[name]) for name in ("baseline", "published")}
    streams = torch.randint(23, (16, 31), generator=generator(5))
    blocks = [Block(streams[:, i : i + 5], streams[:, i + 1 : i + 6], i) for i in range(0, 30, 5)]
    told: list[str] = []
    trainees = compete(model, ways, blocks, lr=1e-2, progress=told.append)
    theirs, ours = trainees["baseline"].record, trainees["published"].record
    assert len(told) == 2
    assert len(theirs.loss) == len(ours.wall_s) == len(ours.cpu_s) == 6
    assert theirs.loss[-1] < theirs.loss[0]
    assert ours.loss[0] == pytest.approx(theirs.loss[0], abs=1e-3)  # solved to 1e-3
    assert ours.loss == pytest.approx(theirs.loss, abs=1e-2)
    untouched = random_model(CONFIG, 3).float()
    for now, before in zip(model.parameters(), untouched.parameters(), strict=True):
        assert torch.equal(now, before)


def test_gaps_of_smoothed_curves_and_rates_of_turns() -> None:
    assert training_table.smoothed([1.0] * 10 + [3.0] * 5) == [1.0, 3.0]
    assert training_table.largest_gap([1.0] * 20, [1.5] * 10 + [0.9] * 10) == -0.5
    assert training_table.rates([0.5] * 5 + [0.1, 0.3]) == pytest.approx([2.0, 5.0])


def test_saved_tensors_are_counted_once_and_parameters_not() -> None:
    layer = torch.nn.Linear(4, 4)
    x = torch.zeros(8, 4, requires_grad=True)
    counted = training_memory.SavedTensors(layer)
    with counted:
        layer(x) * x
    assert counted.bytes == 2 * 8 * 4 * 4  # x, by both operations, and the layer's result


def test_what_autograd_keeps_does_not_grow_with_the_budget() -> None:
    model = random_model(CONFIG, 3).float()
    streams = torch.randint(23, (16, 6), generator=generator(5))
    kept = []
    for max_nfe in (5, 20):
        solver = replace(SETTINGS["loose"].forward, tol=1e-30, max_nfe=max_nfe)
        trainee = Trainee(
            model, way_of(replace(SETTINGS["loose"], forward=solver, backward=solver)), lr=1e-3
        )
        counted = training_memory.SavedTensors(trainee.model)
        with counted:
            trainee.step(Block(streams[:, :-1], streams[:, 1:], 0))
        assert trainee.record.nfe_forward == [max_nfe]
        kept.append(counted.bytes)
    assert kept[0] == kept[1] > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_benchmark_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results.json"
    training.main(["--quick", "--settings", "loose", "--regimes", "trained", "--out", str(out)])
    results = json.loads(out.read_text(encoding="utf-8"))
    assert set(results["regimes"]["trained"]["competitors"]) == {"baseline", "loose"}
    assert results["memory"]["loose"]["by_budget"]["5"]["nfe_forward"] == 5
    printed = capsys.readouterr().out
    assert "| baseline |" in printed and "### Memory" in printed


def test_every_part_of_a_step_gets_its_time() -> None:
    config = replace(CONFIG, tgt_len=4)
    ids = torch.randint(23, (16 * 60,), generator=generator(5))
    material = Material(trained=random_model(config, 3).float(), ids=ids, valid=ids)
    for name in ("baseline", "loose"):
        way = way_of(SETTINGS[name])
        parts, operations = training_profile.measure(way, material, steps=2)
        assert tuple(parts) == training_profile.PARTS
        assert all(seconds > 0 for seconds in parts.values()), parts
        assert operations[0].key.startswith("aten::")
