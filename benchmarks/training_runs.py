"""What the benchmark of training measures: loss curves, steps per second, memory at the peak.

It compares ways of computing a block's loss and gradient, and knows none of them itself.
"""

import copy
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deq_model.checkpoint import load_checkpoint
from deq_model.memory import Memory
from deq_model.model import DEQLanguageModel
from deq_model.solvers.options import SolverOptions
from training.data import Block, Streams, read_text
from training.evaluation import EvalOptions, evaluate

BATCH = 16
CHARS_PER_TOKEN = 8
"""More than a token has, on average: so much of the text is enough."""
CHUNK = 5
"""Steps of one competitor before the next one has its turn."""
CLIP = 0.25
WARMUP_STEPS = 20
UNROLLED_STEPS = 150
UNROLLED_DEPTH = 3
EXACT = SolverOptions(tol=1e-4, max_nfe=60, depth=60)


@dataclass(frozen=True, slots=True)
class Pass:
    """A block's loss, with its graph, and what comes with it.

    Attributes:
        nll: ``(B, L)``, differentiable.
        memory: for the next block.
        nfe_forward: calls of f.
        nfe_backward: tells the products with Jᵀ, once the backward pass has run.
    """

    nll: Tensor
    memory: Memory
    nfe_forward: int
    nfe_backward: Callable[[], int]


Way = Callable[[DEQLanguageModel, Block, Memory], Pass]
"""How a competitor computes a block."""


@dataclass(slots=True)
class Record:
    """What a competitor did, step by step; times in seconds, losses in nats per token."""

    loss: list[float] = field(default_factory=list)
    nfe_forward: list[int] = field(default_factory=list)
    nfe_backward: list[int] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)


class Trainee:
    """A copy of a model in training, by one way of computing it."""

    def __init__(self, model: DEQLanguageModel, way: Way, *, lr: float) -> None:
        self.model = copy.deepcopy(model).train()
        self.record = Record()
        self._way, self._lr = way, lr
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=lr)
        self.memory = self.model.empty_memory(BATCH)

    def step(self, block: Block) -> None:
        """Trains on a block and notes what it took."""
        record, wall, cpu = self.record, self._now(), time.process_time()
        step = len(record.loss)
        for group in self.optimiser.param_groups:
            group["lr"] = self._lr * min(1.0, (step + 1) / WARMUP_STEPS)
        self.optimiser.zero_grad(set_to_none=True)
        done = self._way(self.model, block, self.memory)
        loss = done.nll.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimiser.step()
        self.memory = done.memory
        record.loss.append(float(loss.detach()))
        record.wall_s.append(self._now() - wall)
        record.cpu_s.append(time.process_time() - cpu)
        record.nfe_forward.append(done.nfe_forward)
        record.nfe_backward.append(done.nfe_backward())

    def _now(self) -> float:
        """Seconds of a clock, once the device has done all it was given."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return time.perf_counter()


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What the competitors start from.

    Attributes:
        trained: the checkpoint.
        ids: ``(n,)`` int64, tokens to train on.
        valid: ``(n,)`` int64, tokens to evaluate on.
    """

    trained: DEQLanguageModel
    ids: Tensor
    valid: Tensor

    @classmethod
    def load(cls, folder: Path, data: Path, *, steps: int, device: torch.device) -> "Material":
        """Reads the checkpoint, and as much of the texts as ``steps`` steps need."""
        loaded = load_checkpoint(folder, device="cpu")
        assert loaded.tokenizer is not None, "the checkpoint has no tokenizer"
        model, encode = loaded.model.float().to(device), loaded.tokenizer.encode
        wanted = BATCH * (model.config.tgt_len * steps + 1)
        text = read_text(data / "train.txt.xz")[: CHARS_PER_TOKEN * wanted]
        ids = torch.tensor(encode(text).ids, device=device)
        valid = torch.tensor(encode(read_text(data / "valid.txt.xz")).ids, device=device)
        if len(ids) < wanted:
            raise SystemExit(f"--steps must be at most {steps * len(ids) // wanted}, got {steps}")
        return cls(trained=model, ids=ids[:wanted], valid=valid)

    def block(self, step: int) -> Block:
        """The block of a step."""
        length = self.trained.config.tgt_len
        return Streams(self.ids, batch_size=BATCH).block(step * length, tgt_len=length)

    def early(self, *, seed: int, steps: int = UNROLLED_STEPS) -> DEQLanguageModel:
        """A new model after ``steps`` steps of f applied three times, at the learning rate."""
        model = copy.deepcopy(self.trained).train()
        generator = torch.Generator(model.device).manual_seed(seed)
        model.reset(std=0.02, generator=generator)
        trainee = Trainee(model, _unrolled, lr=LEARNING_RATES["early"])
        for step in range(steps):
            trainee.step(self.block(step))
        return trainee.model


LEARNING_RATES = {"early": 1e-3, "trained": 3e-4}
"""By regime: after a short pretraining, and from the bundled checkpoint."""


def _unrolled(model: DEQLanguageModel, block: Block, memory: Memory) -> Pass:
    done = model.unroll_block(block.tokens, block.targets, memory, depth=UNROLLED_DEPTH)
    return Pass(done.nll, done.memory, UNROLLED_DEPTH, lambda: 0)


def compete(
    start: DEQLanguageModel,
    ways: dict[str, Way],
    blocks: Sequence[Block],
    *,
    lr: float,
    progress: Callable[[str], None],
) -> dict[str, Trainee]:
    """Trains a copy of ``start`` by each way, in turns of a few steps, in another order each.

    SIGINT ends it after the turn that it comes in, so that all have done the same steps.
    """
    trainees = {name: Trainee(start, way, lr=lr) for name, way in ways.items()}
    names = list(trainees)
    ended = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: ended.set())
    for turn, begin in enumerate(range(0, len(blocks), CHUNK)):
        for name in names if turn % 2 == 0 else reversed(names):
            for block in blocks[begin : begin + CHUNK]:
                trainees[name].step(block)
        done = min(begin + CHUNK, len(blocks))
        progress(f"{done}/{len(blocks)}: " + _last_losses(trainees))
        if ended.is_set():
            break
    signal.signal(signal.SIGINT, before)
    return trainees


def _last_losses(trainees: dict[str, Trainee]) -> str:
    return ", ".join(f"{name} {t.record.loss[-1]:.3f}" for name, t in trainees.items())


def perplexity(model: DEQLanguageModel, valid: Tensor, *, blocks: int) -> float:
    """Of the validation text by the published protocol, each block solved to 1e-4."""
    protocol = EvalOptions(
        batch_size=BATCH,
        tgt_len=model.config.tgt_len,
        mem_len=model.config.mem_len,
        solver=EXACT,
        whole_block=True,
        retries=1,
        max_blocks=blocks,
    )
    return evaluate(model.eval(), valid, protocol).perplexity


def machine(device: torch.device) -> dict[str, Any]:
    """What it was measured on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "bfloat16_instructions": "avx512_bf16" in _cpu_info() or "amx_bf16" in _cpu_info(),
    }


def _cpu_info() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _cpu_name() -> str:
    lines = [line for line in _cpu_info().splitlines() if line.startswith("model name")]
    return lines[0].partition(":")[2].strip() if lines else platform.processor()
