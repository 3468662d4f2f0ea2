"""Steps per second of training, against a plain baseline that computes what is published.

``python -m benchmarks.training`` prints tables and writes all numbers as JSON. Run it as a module
from the root of the repository: as a file it would hide the package ``training``. SIGINT ends the
steps of a regime; what was measured until then is evaluated and written.

The baseline, in this file, has the same parameters, embedding, softmax, optimiser, data and seed.
It solves as the published code does: every call of f projects memory and block together and the
table of relative positions again, a sample's block is one vector, Broyden's method from zeros
keeps all its rank-one terms, and a batch goes on until its worst sample has converged, both ways.
Weight norm is folded once a step on both sides.

Letters: B samples, L tokens of a block, M of memory, K = M + L keys, D ``d_model``, H heads.
"""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import training_memory, training_table
from benchmarks.training_runs import (
    LEARNING_RATES,
    UNROLLED_STEPS,
    Material,
    Pass,
    Way,
    compete,
    machine,
    perplexity,
)
from benchmarks.training_settings import BASELINE, SETTINGS, Setting
from deq_model.attention import sinusoid_table
from deq_model.function import LAYER_NORM_EPS, EquilibriumWeights
from deq_model.memory import Memory
from deq_model.model import DEQLanguageModel
from training.data import Block


@dataclass(frozen=True, slots=True)
class Solved:
    """What the baseline's solver found.

    Attributes:
        z_star: ``(B, L, D)``, each sample's state of least residual.
        nfe: calls of f.
        residual: ``(B,)`` relative, at z_star.
    """

    z_star: Tensor
    nfe: int
    residual: Tensor


def broyden(f: Callable[[Tensor], Tensor], z_init: Tensor, *, tol: float, max_nfe: int) -> Solved:
    """Broyden's good method, each sample's ``(L, D)`` block of z = f(z) as one vector.

    The inverse Jacobian of ``g = f(z) − z`` is ``−1 + Σ u_j v_jᵀ``, one term a call, none dropped.
    Ends when the relative residuals of all samples are below ``tol``, or after ``max_nfe`` calls.
    """
    batch = z_init.shape[0]
    z = z_init.flatten(1)
    u = z.new_zeros(batch, max_nfe, z.shape[1])
    v = torch.zeros_like(u)
    best, least = z, z.new_full((batch,), math.inf)
    step = g = torch.zeros_like(z)
    for k in range(max_nfe):
        z = z + step
        f_z = f(z.view_as(z_init)).flatten(1)
        g, dg = f_z - z, f_z - z - g
        residual = g.norm(dim=1) / f_z.norm(dim=1).clamp(min=1e-9)
        better = residual < least
        best = torch.where(better[:, None], z, best)
        least = torch.where(better, residual, least)
        if float(residual.max()) < tol:
            break
        if k > 0:
            v_new = _apply(v[:, : k - 1], u[:, : k - 1], step)
            u_new = step - _apply(u[:, : k - 1], v[:, : k - 1], dg)
            u_new = u_new / (v_new * dg).sum(1, keepdim=True)
            v[:, k - 1], u[:, k - 1] = v_new.nan_to_num(0.0), u_new.nan_to_num(0.0)
        step = -_apply(u[:, :k], v[:, :k], g)
    return Solved(best.view_as(z_init), k + 1, least)


def _apply(left: Tensor, right: Tensor, x: Tensor) -> Tensor:
    """``−x + Σ left_j (right_j · x)`` of ``(B, j, n)`` terms and x ``(B, n)``."""
    weight = torch.bmm(right, x[:, :, None])
    return torch.bmm(weight.transpose(1, 2), left)[:, 0] - x


class BaselineFunction:
    """f of one block as published: nothing is kept from one call to the next."""

    def __init__(self, weights: EquilibriumWeights, memory: Memory, injection: Tensor) -> None:
        """Joins the injections; ``injection`` is ``(B, L, 3·D)``."""
        self._weights, self._z_hist = weights, memory.z_hist
        self._u_cat = torch.cat([memory.u_hist, injection], dim=1)
        table = sinusoid_table(
            self._u_cat.shape[1],
            weights.config.d_model,
            device=injection.device,
            dtype=injection.dtype,
        )
        self._sinusoids = table.flip(0)  # farthest first, as the shift below wants them

    def __call__(self, z: Tensor) -> Tensor:
        """f(z), ``(B, L, D)``."""
        w = self._weights
        hidden = functional.linear(self._attention(z), w.o, w.o_bias)
        hidden = _layer_norm(hidden + z)
        inner = functional.linear(hidden, w.ff1, w.ff1_bias).relu()
        return _layer_norm(functional.linear(inner, w.ff2, w.ff2_bias) + hidden)

    def _attention(self, z: Tensor) -> Tensor:
        w, length = self._weights, z.shape[1]
        states = torch.cat([self._z_hist, z], dim=1)
        channels = functional.linear(states, w.qkv) + self._u_cat
        query, key, value = (w.heads(part) for part in channels.chunk(3, dim=-1))
        query = query[:, -length:]
        positions = w.heads(functional.linear(self._sinusoids, w.r))
        content = torch.einsum("blhd,bkhd->bhlk", query + w.r_w_bias, key)
        by_distance = torch.einsum("blhd,khd->bhlk", query + w.r_r_bias, positions)
        score = (content + _shift(by_distance)) * w.config.d_head**-0.5
        weight = score.masked_fill(self._hidden(length), float("-inf")).softmax(-1)
        return torch.einsum("bhlk,bkhd->blhd", weight, value).flatten(2)

    def _hidden(self, length: int) -> Tensor:
        """Which of K keys each query does not see: ``(L, K)`` bool."""
        klen = self._u_cat.shape[1]
        ones = torch.ones(length, klen, dtype=torch.bool, device=self._u_cat.device)
        first = klen - length
        return ones.triu(first + 1) | ones.tril(first - self._weights.config.attention_span)


def _shift(by_distance: Tensor) -> Tensor:
    """Scores by distance, farthest first, to scores by key: ``(B, H, L, K)`` both.

    Row i moves left by L − 1 − i, by way of one column too many.
    """
    batch, heads, length, klen = by_distance.shape
    padded = functional.pad(by_distance, (1, 0)).view(batch, heads, klen + 1, length)
    return padded[:, :, 1:].reshape(batch, heads, length, klen)


def _layer_norm(x: Tensor) -> Tensor:
    return functional.layer_norm(x, (x.shape[-1],), eps=LAYER_NORM_EPS)


def baseline_pass(setting: Setting, model: DEQLanguageModel, block: Block, memory: Memory) -> Pass:
    """A block as published."""
    injection, weights = model.inject(block.tokens), model.f.fold()
    with torch.no_grad():
        f = BaselineFunction(weights.detach(), memory, injection.detach())
        z_init = injection.new_zeros(*block.tokens.shape, model.config.d_model)
        solved = broyden(f, z_init, tol=setting.forward.tol, max_nfe=setting.forward.max_nfe)
    z = solved.z_star.detach().requires_grad_()
    f_z = BaselineFunction(weights, memory, injection)(z)
    hidden = f_z.view_as(f_z)
    calls = 0

    def solve_gradient(grad: Tensor) -> Tensor:
        def transposed(y: Tensor) -> Tensor:
            return torch.autograd.grad(f_z, z, y, retain_graph=True)[0] + grad

        nonlocal calls
        tol, max_nfe = setting.backward.tol, setting.backward.max_nfe
        back = broyden(transposed, torch.zeros_like(grad), tol=tol, max_nfe=max_nfe)
        calls = back.nfe
        return back.z_star

    hidden.register_hook(solve_gradient)
    remembered = memory.extend(f_z, injection, mem_len=model.config.mem_len)
    return Pass(model.nll(hidden, block.targets), remembered, solved.nfe, lambda: calls)


def our_pass(setting: Setting, model: DEQLanguageModel, block: Block, memory: Memory) -> Pass:
    """A block as ``deq_model`` computes it."""
    result = model.train_block(
        block.tokens,
        block.targets,
        memory,
        forward=setting.forward,
        backward=setting.backward,
        whole_block=setting.whole_block,
        matmul_dtype=setting.matmul_dtype,
    )

    def backward_calls() -> int:
        return 0 if result.gradient.solution is None else result.gradient.solution.nfe

    return Pass(result.nll, result.memory, result.solution.nfe, backward_calls)


def way_of(setting: Setting) -> Way:
    """How a setting computes a block."""
    return partial(baseline_pass if setting.name == BASELINE else our_pass, setting)


def compare(options: argparse.Namespace, material: Material) -> dict[str, Any]:
    """Loss curves, times and perplexities, by regime and competitor."""
    ways = {name: way_of(SETTINGS[name]) for name in (BASELINE, *options.settings)}
    blocks = [material.block(step) for step in range(options.steps)]
    found: dict[str, Any] = {}
    for regime in options.regimes:
        lr = LEARNING_RATES[regime]
        start = material.trained
        if regime == "early":
            start = material.early(seed=options.seed, steps=options.unrolled)
        trainees = compete(start, ways, blocks, lr=lr, progress=partial(_tell, regime))
        found[regime] = {
            "lr": lr,
            "perplexity_before": perplexity(start, material.valid, blocks=options.valid_blocks),
            "competitors": {
                name: dataclasses.asdict(trainee.record)
                | {"perplexity": _perplexity(trainee.model, material, options)}
                for name, trainee in trainees.items()
            },
        }
    return found


def _perplexity(model: DEQLanguageModel, material: Material, options: argparse.Namespace) -> float:
    return perplexity(model, material.valid, blocks=options.valid_blocks)


def _tell(regime: str, line: str) -> None:
    print(f"{regime} {line}", file=sys.stderr, flush=True)


def memory_use(options: argparse.Namespace) -> dict[str, Any]:
    """Memory of each competitor as it is, and with budgets that are spent to the end."""
    kept = ("device", "threads", "model", "data")
    common = [f"--{name}={getattr(options, name)}" for name in kept]
    common += ["--steps=0", "--unrolled=0"]  # of the text, only what the child needs
    found: dict[str, Any] = {}
    for name in (BASELINE, *options.settings):
        child = [*common, f"--child={name}"]
        found[name] = {
            "as_is": training_memory.in_child(child),
            "by_budget": {
                max_nfe: training_memory.in_child([*child, f"--max-nfe={max_nfe}"])
                for max_nfe in options.budgets
            },
        }
        _tell("memory", name)
    return found


def child(options: argparse.Namespace) -> None:
    """Measures the memory of one competitor and prints it as a line of JSON."""
    setting = SETTINGS[options.child]
    if options.max_nfe:  # a tolerance that is never met spends the budget
        spent = {"tol": 1e-30, "max_nfe": options.max_nfe}
        setting = dataclasses.replace(
            setting,
            forward=dataclasses.replace(setting.forward, **spent),
            backward=dataclasses.replace(setting.backward, **spent),
        )
    print(json.dumps(training_memory.measure(way_of(setting), _material(options))))


def _material(options: argparse.Namespace) -> Material:
    steps = max(options.steps, options.unrolled, training_memory.STEPS + 1)
    device = torch.device(options.device)
    return Material.load(options.model, options.data, steps=steps, device=device)


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints tables, writes JSON."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.quick:
        options.steps, options.unrolled, options.valid_blocks, options.budgets = 4, 4, 2, [5]
    if options.child:
        child(options)
        return
    results = {
        "machine": machine(torch.device(options.device)),
        "settings": {name: SETTINGS[name].what for name in (BASELINE, *options.settings)},
        "regimes": compare(options, _material(options)),
        "memory": {} if options.no_memory else memory_use(options),
    }
    kind = torch.device(options.device).type
    out = options.out or Path(f"benchmarks/results/training-{kind}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(training_table.tables(results, baseline=BASELINE))


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(description="Training, against a plain baseline.")
    add = flags.add_argument
    ours = [name for name in SETTINGS if name != BASELINE]
    add("--settings", nargs="*", choices=ours, default=ours, help="which of ours")
    add("--regimes", nargs="*", choices=list(LEARNING_RATES), default=list(LEARNING_RATES))
    add("--steps", type=int, default=120, help="steps of each competitor in each regime")
    add("--unrolled", type=int, default=UNROLLED_STEPS, help="pretraining steps of regime early")
    add("--valid-blocks", type=int, default=20, help="blocks of validation text to score")
    add("--budgets", type=int, nargs="*", default=[5, 10, 20, 40], help="to measure memory with")
    add("--no-memory", action="store_true", help="leave memory out")
    add("--quick", action="store_true", help="a few steps only, to see that it runs")
    add("--device", default="cpu", help="cpu, cuda or cuda:N")
    add("--threads", type=int, default=1, help="CPU threads of an operation")
    add("--seed", type=int, default=0, help="of the initial weights of regime early")
    add("--model", type=Path, default=Path("models/shakespeare-ift-jr"), help="where to start")
    add("--data", type=Path, default=Path("data/corpus"), help="folder of the texts")
    add("--out", type=Path, help="default: benchmarks/results/training-DEVICE.json")
    add("--child", choices=list(SETTINGS), help=argparse.SUPPRESS)
    add("--max-nfe", type=int, default=0, help=argparse.SUPPRESS)
    return flags


if __name__ == "__main__":
    main()
