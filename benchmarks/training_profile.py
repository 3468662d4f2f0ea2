"""Where the time of a training step goes: shares of its parts, and the dearest operations.

``python -m benchmarks.training_profile [--settings baseline loose …]`` prints Markdown tables.
"""

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

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
    """Time of each part, from the times of the regions."""
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


class Parts:
    """CPU seconds of the named regions of a step, which contain one another."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._softmax_began = math.nan
        self._backward = False

    @contextmanager
    def region(self, name: str) -> Iterator[None]:
        """Adds the CPU time of the block to a name."""
        began = time.process_time()
        yield
        self.seconds[name] += time.process_time() - began

    def measured(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, its time added to a name."""

        def named(*args: Any, **kwargs: Any) -> Any:
            with self.region(name):
                return call(*args, **kwargs)

        return named

    @contextmanager
    def watch(self) -> Iterator[None]:
        """While it lasts, solves, embedding and loss are regions."""
        solver, embed = self._solver(solve_block), AdaptiveEmbedding.forward
        with (
            mock.patch.object(competitors, "broyden", self._solver(competitors.broyden)),
            mock.patch("deq_model.model.solve_block", solver),
            mock.patch("deq_model.implicit.solve_block", solver),
            mock.patch.object(DEQLanguageModel, "nll", self._loss(DEQLanguageModel.nll)),
            mock.patch.object(AdaptiveEmbedding, "forward", self.measured("embedding", embed)),
        ):
            yield

    def _solver(self, solve: Callable[..., Any]) -> Callable[..., Any]:
        def solved(f: Callable[[Tensor], Tensor], *rest: Any, **named: Any) -> Any:
            way = "backward" if self._backward else "forward"
            with self.region(f"{way} solve"):
                return solve(self.measured(f"{way} f", f), *rest, **named)

        return solved

    def _loss(self, nll: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def named(model: DEQLanguageModel, hidden: Tensor, targets: Tensor) -> Tensor:
            seen = hidden.view_as(hidden)
            seen.register_hook(self._softmax_done)
            with self.region("softmax"):
                return nll(model, seen, targets)

        return named

    def _softmax_done(self, grad: Tensor) -> None:
        self.seconds["softmax gradient"] += time.process_time() - self._softmax_began

    def step(self, way: Way, trainee: Trainee, block: Block) -> None:
        """A step of training, in regions."""
        self._backward = False
        trainee.optimiser.zero_grad(set_to_none=True)
        with self.region("pass"):
            done = way(trainee.model, block, trainee.memory)
            loss = done.nll.mean()
        with self.region("gradient"):
            self._backward, self._softmax_began = True, time.process_time()
            loss.backward()
        with self.region("optimiser"):
            torch.nn.utils.clip_grad_norm_(trainee.model.parameters(), CLIP)
            trainee.optimiser.step()
        trainee.memory = done.memory


def measure(way: Way, material: Material, *, steps: int) -> tuple[dict[str, float], list[Any]]:
    """CPU seconds of each part of a step, and the profiler's operations in one, dearest first."""
    trainee = Trainee(material.trained, way, lr=LEARNING_RATES["trained"])
    parts = Parts()
    with parts.watch():
        for step in range(WARMUP + steps):
            if step == WARMUP:
                parts.seconds.clear()
            parts.step(way, trainee, material.block(step))
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        trainee.step(material.block(WARMUP + steps))
    operations = [event for event in profiled.key_averages() if event.key.startswith("aten::")]
    operations.sort(key=lambda event: event.self_cpu_time_total, reverse=True)
    return step_parts({name: spent / steps for name, spent in parts.seconds.items()}), operations


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
    steps, device = options.steps + WARMUP + 1, torch.device("cpu")
    material = Material.load(options.model, options.data, steps=steps, device=device)
    for name in options.settings:
        parts, operations = measure(way_of(SETTINGS[name]), material, steps=options.steps)
        whole = sum(parts.values())
        print(f"\n{name}, {1000 * whole:.0f} ms a step\n\n| part | CPU ms | share |\n|---|---|---|")
        for part, seconds in parts.items():
            print(f"| {part} | {1000 * seconds:.0f} | {seconds / whole:.1%} |")
        print("\n| operation | ms | calls |\n|---|---|---|")
        for event in operations[: options.operations]:
            spent = event.self_cpu_time_total / 1000
            print(f"| {event.key} | {spent:.0f} | {event.count} |", flush=True)


if __name__ == "__main__":
    main()
