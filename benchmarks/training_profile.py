"""Where the time of a training step goes: shares of its parts, and the dearest operations.

``python -m benchmarks.training_profile [--settings baseline loose …]`` prints Markdown tables.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

import benchmarks.training as competitors
from benchmarks.training import way_of
from benchmarks.training_runs import CLIP, LEARNING_RATES, Material, Trainee, Way
from benchmarks.training_settings import BASELINE, SETTINGS
from deq_model.embedding import AdaptiveEmbedding
from deq_model.model import DEQLanguageModel
from deq_model.solvers.loop import solve_block
from training.data import Block

PARTS = (
    "forward solve: f",
    "forward solve: solver",
    "backward solve: products with Jᵀ",
    "backward solve: solver",
    "softmax and loss",
    "gradient of the softmax",
    "embedding",
    "folding, injection, f with its graph",
    "gradient of the parameters",
    "clipping and optimiser",
)
WARMUP = 3
"""Steps before those that are looked at: the memory has its length then."""


def step_parts(total: dict[str, float]) -> dict[str, float]:
    """Time of each part, from the times of the regions, which contain one another."""
    forward, backward = total["forward solve"], total["backward solve"]
    known = {
        "forward solve: f": total["forward f"],
        "forward solve: solver": forward - total["forward f"],
        "backward solve: products with Jᵀ": total["backward f"],
        "backward solve: solver": backward - total["backward f"],
        "softmax and loss": total["softmax"],
        "gradient of the softmax": total["softmax gradient"],
        "embedding": total["embedding"],
        "folding, injection, f with its graph": (
            total["pass"] - forward - total["softmax"] - total["embedding"]
        ),
        "gradient of the parameters": total["gradient"] - backward - total["softmax gradient"],
        "clipping and optimiser": total["optimiser"],
    }
    return {name: known[name] for name in PARTS}


class _Regions:
    """Patches that name the parts of a step to the profiler."""

    def __init__(self) -> None:
        self.softmax_gradient: record_function | None = None

    @contextmanager
    def named(self) -> Iterator[None]:
        """While it lasts, solves, embedding and loss have names."""
        solver, embed = self._solver(solve_block), _region("embedding", AdaptiveEmbedding.forward)
        with (
            mock.patch.object(competitors, "broyden", self._solver(competitors.broyden)),
            mock.patch("deq_model.model.solve_block", solver),
            mock.patch("deq_model.implicit.solve_block", solver),
            mock.patch.object(DEQLanguageModel, "nll", self._loss(DEQLanguageModel.nll)),
            mock.patch.object(AdaptiveEmbedding, "forward", embed),
        ):
            yield

    def _solver(self, solve: Callable[..., Any]) -> Callable[..., Any]:
        def solved(f: Callable[[Tensor], Tensor], *rest: Any, **named: Any) -> Any:
            way = "forward" if self.softmax_gradient is None else "backward"
            with record_function(f"{way} solve"):
                return solve(_region(f"{way} f", f), *rest, **named)

        return solved

    def _loss(self, nll: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def named(model: DEQLanguageModel, hidden: Tensor, targets: Tensor) -> Tensor:
            seen = hidden.view_as(hidden)
            seen.register_hook(self._softmax_done)
            with record_function("softmax"):
                return nll(model, seen, targets)

        return named

    def _softmax_done(self, grad: Tensor) -> None:
        assert self.softmax_gradient is not None
        self.softmax_gradient.__exit__(None, None, None)

    def step(self, way: Way, trainee: Trainee, block: Block) -> None:
        """A step of training, its parts named."""
        self.softmax_gradient = None
        trainee.optimiser.zero_grad(set_to_none=True)
        with record_function("pass"):
            done = way(trainee.model, block, trainee.memory)
            loss = done.nll.mean()
        with record_function("gradient"):
            self.softmax_gradient = record_function("softmax gradient")
            self.softmax_gradient.__enter__()
            loss.backward()
        with record_function("optimiser"):
            torch.nn.utils.clip_grad_norm_(trainee.model.parameters(), CLIP)
            trainee.optimiser.step()
        trainee.memory = done.memory


def _region(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def named(*args: Any, **kwargs: Any) -> Any:
        with record_function(name):
            return call(*args, **kwargs)

    return named


def measure(way: Way, material: Material, *, steps: int) -> tuple[dict[str, float], list[Any]]:
    """Seconds of each part of a step, and the profiler's operations, dearest first."""
    trainee = Trainee(material.trained, way, lr=LEARNING_RATES["trained"])
    regions = _Regions()
    with regions.named():
        for step in range(WARMUP):
            regions.step(way, trainee, material.block(step))
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            for step in range(WARMUP, WARMUP + steps):
                regions.step(way, trainee, material.block(step))
    events = list(profiled.key_averages())
    total = {event.key: event.cpu_time_total / 1e6 / steps for event in events}
    operations = [event for event in events if event.key.startswith("aten::")]
    operations.sort(key=lambda event: event.self_cpu_time_total, reverse=True)
    return step_parts(total), operations


def main() -> None:
    """Prints the tables."""
    flags = argparse.ArgumentParser(description=__doc__)
    names = list(SETTINGS)
    flags.add_argument("--settings", nargs="*", choices=names, default=[BASELINE, "loose"])
    flags.add_argument("--steps", type=int, default=5, help="to look at")
    flags.add_argument("--operations", type=int, default=8, help="dearest ones to show")
    flags.add_argument("--model", type=Path, default=Path("models/shakespeare-ift-jr"))
    flags.add_argument("--data", type=Path, default=Path("data/corpus"))
    options = flags.parse_args()
    torch.set_num_threads(1)
    steps, device = options.steps + WARMUP, torch.device("cpu")
    material = Material.load(options.model, options.data, steps=steps, device=device)
    for name in options.settings:
        parts, operations = measure(way_of(SETTINGS[name]), material, steps=options.steps)
        whole = sum(parts.values())
        print(f"\n{name}, {1000 * whole:.0f} ms a step\n\n| part | ms | share |\n|---|---|---|")
        for part, seconds in parts.items():
            print(f"| {part} | {1000 * seconds:.0f} | {seconds / whole:.1%} |")
        print("\n| operation | ms | calls |\n|---|---|---|")
        for event in operations[: options.operations]:
            spent = event.self_cpu_time_total / 1000 / options.steps
            print(f"| {event.key} | {spent:.0f} | {event.count / options.steps:.0f} |", flush=True)


if __name__ == "__main__":
    main()
