"""What a comparison of models does."""

from dataclasses import dataclass
from pathlib import Path

from training.errors import OptionsError
from training.options.checks import MOST_THREADS, at_least, device, positive, within
from training.options.evaluation import PUBLISHED_STREAMS, check_curve


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareRun:
    """What ``deqlm compare`` does.

    Attributes:
        model: checkpoint folders, repeatable.
        data: text to compare them on, UTF-8, plain, .xz or .gz, or a split that deqlm prepare
            made.
        out: folder to write comparison.md, comparison.json, comparison.svg and comparison.png to.
        name: what to call the models, in their order; unset for the folders' names, or the
            runs' where folders are called model.
        tokens: how many of the text's first tokens to use, 0 for all.
        batch_size: streams that they are cut into, side by side.
        tol: tolerance of the exact solution that the perplexity is told at.
        max_nfe: calls of f on a block on the way to it; one that needs more is tried again with
            twice as many, and then four times.
        budgets: numbers of calls of f to measure the perplexity after.
        budget_tol: tolerance above which a token counts as unconverged there.
        trace_blocks: blocks, spread over the text, whose residuals are followed call by call and
            whose spectral radius is estimated.
        device: cpu, cuda, or cuda:N.
        threads: CPU threads of one tensor operation, 0 for as many as there are cores.
    """

    model: tuple[Path, ...]
    data: Path
    out: Path
    name: tuple[str, ...] = ()
    tokens: int = 20_000
    batch_size: int = PUBLISHED_STREAMS
    tol: float = 1e-5
    max_nfe: int = 100
    budgets: tuple[int, ...] = (2, 3, 4, 6, 8, 12, 16, 24, 32)
    budget_tol: float = 1e-3
    trace_blocks: int = 8
    device: str = "cpu"
    threads: int = 0

    def __post_init__(self) -> None:
        if not self.model:
            raise OptionsError("model must name at least one checkpoint folder, got none")
        if self.name and len(self.name) != len(self.model):
            raise OptionsError(
                f"name must be given once for each of the {len(self.model)} models, "
                f"got {len(self.name)}"
            )
        at_least(self, 0, "tokens")
        within(self, 0, MOST_THREADS, "threads")
        device(self, "device")
        at_least(self, 1, "batch_size", "max_nfe", "trace_blocks")
        positive(self, "tol", "budget_tol")
        if not self.budgets:
            raise OptionsError("budgets must be at least one number of calls, got none")
        check_curve("budgets", self.budgets, bound=1)
        twice = [name for name in self.names if self.names.count(name) > 1]
        if twice:
            raise OptionsError(f"name must tell the models apart, got {twice[0]!r} twice")

    @property
    def names(self) -> tuple[str, ...]:
        """What the models are called: their folders' last names that differ.

        A folder called model, as a run has one, goes by the name of the run's.
        """
        if self.name:
            return self.name
        parts = [_told(path.resolve().parts) for path in self.model]
        while len({part[-1] for part in parts}) == 1 < min(len(set(parts)), *map(len, parts)):
            parts = [part[:-1] for part in parts]
        for depth in range(1, max(map(len, parts)) + 1):
            names = ["/".join(part[-depth:]) for part in parts]
            if len(set(names)) == len(names):
                return tuple(names)
        short = [part[-1] for part in parts]
        return tuple(
            [
                name if short.count(name) == 1 else f"{name} ({short[: i + 1].count(name)})"
                for i, name in enumerate(short)
            ]
        )


def _told(parts: tuple[str, ...]) -> tuple[str, ...]:
    return parts[:-1] if parts[-1] == "model" and len(parts) > 2 else parts
