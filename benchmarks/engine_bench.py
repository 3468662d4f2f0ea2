"""What every section of the engine's benchmark is told, and what it measures with."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.engine_drive import Driver
from benchmarks.engine_settings import Setting
from benchmarks.models import TrainedModel
from benchmarks.shapes import load, zipf_text
from deq_model.checkpoint import LoadedCheckpoint, load_checkpoint, load_config
from deq_model.config import ModelConfig
from deq_model.warm_start import WarmStart, load_warm_start

OFF = 0.05
"""A log-probability that differs by more than this from the exact one counts as off."""

Result = dict[str, Any]
"""What a section found, ready for JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured.

    Attributes:
        reps: repetitions of everything that is compared in turns.
        slow_reps: of what takes minutes: the baseline with many streams.
        streams: of the work that is shared.
        drawn: tokens that the engine draws for each stream in a repetition.
        baseline_drawn: that the baseline draws, one stream.
        baseline_drawn_many: that it draws, of each of many streams.
        memories: lengths of memory that scoring is measured with.
        long_request: tokens of the long scoring request.
        scored: tokens of each trained model's text.
        generated: tokens drawn from each trained model, by each stream.
        idle: idle sessions held.
        waits: requests whose wait is measured.
        rows: of the calls of f that are measured.
        buffer_mib: of the buffer that bandwidth is measured with.
    """

    reps: int = 5
    slow_reps: int = 1
    streams: int = 16
    drawn: int = 40
    baseline_drawn: int = 10
    baseline_drawn_many: int = 4
    memories: tuple[int, ...] = (150, 480)
    long_request: int = 5000
    scored: int = 1000
    generated: int = 48
    idle: tuple[int, ...] = (1, 100, 1000)
    waits: int = 12
    rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    buffer_mib: int = 2048


QUICK = Sizes(
    reps=2,
    streams=3,
    drawn=6,
    baseline_drawn=4,
    baseline_drawn_many=3,
    long_request=200,
    scored=60,
    generated=6,
    idle=(1, 5, 10),
    waits=2,
    rows=(1, 4),
    buffer_mib=64,
)
"""Only to see that everything runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What to measure, and how.

    Attributes:
        folder: checkpoint of the published shapes.
        trained: trained models.
        settings: ways of running the engine, by name.
        sizes: how much.
        device: where.
        cache: folder for what is made once.
        seed: of texts and draws.
        tell: told about progress.
    """

    folder: Path
    trained: Sequence[TrainedModel]
    settings: Sequence[Setting]
    sizes: Sizes
    device: torch.device
    cache: Path
    seed: int
    tell: Callable[[str], None]

    @property
    def config(self) -> ModelConfig:
        """Of the big model."""
        return load_config(self.folder)

    def load(self, *, mem_len: int | None = None) -> LoadedCheckpoint:
        """The big model; each engine takes one over."""
        return load(self.folder, mem_len=mem_len)

    def driver(self, setting: Setting, *, mem_len: int | None = None, **limits: Any) -> Driver:
        """An engine on the big model."""
        loaded = self.load(mem_len=mem_len)
        warm = load_map(self.folder, loaded)
        return Driver(loaded, setting, device=self.device, warm_start=warm, **limits)

    def texts(self, streams: int, count: int) -> list[list[int]]:
        """Made-up text for the big model."""
        drawn = zipf_text(self.config.n_token, streams, count, seed=self.seed)
        found: list[list[int]] = drawn.tolist()
        return found


def load_map(folder: Path, loaded: LoadedCheckpoint) -> WarmStart | None:
    """The map beside a checkpoint, if there is one."""
    return load_warm_start(folder, d_model=loaded.config.d_model, fingerprint=loaded.fingerprint)


def load_trained(model: TrainedModel) -> LoadedCheckpoint:
    """A trained model, fresh."""
    return load_checkpoint(model.folder, device="cpu")


def places(jobs: int) -> int:
    """``max_running`` with which so many jobs of one owner run at once: a quarter is for others."""
    return jobs + jobs // 3 + 2


def spread(values: Sequence[float]) -> Result:
    """Median, least and largest, and all of them."""
    return {
        "median": median(values),
        "min": min(values),
        "max": max(values),
        "all": list(values),
    }


def changes(found: Tensor, exact: Tensor) -> Result:
    """Of log-probabilities ``(n,)``; the perplexity's is relative."""
    change = (found.double() - exact.double()).abs()
    return {
        "change_mean": float(change.mean()),
        "change_median": float(change.median()),
        "off": float((change > OFF).double().mean()),
        "perplexity": math.exp(-float(found.double().mean())),
        "perplexity_change": math.expm1(float((exact.double() - found.double()).mean())),
    }


def in_turns(
    competitors: Mapping[str, Callable[[int], Result]], reps: int, tell: Callable[[str], None]
) -> dict[str, list[Result]]:
    """Has each competitor do every repetition, one after the other, in changing order."""
    found: dict[str, list[Result]] = {name: [] for name in competitors}
    for rep in range(reps):
        names = list(competitors)
        for name in names if rep % 2 == 0 else reversed(names):
            found[name].append(competitors[name](rep))
        tell(f"{rep + 1}/{reps}")
    return found
