"""How a run goes: where it writes, when it measures, what it does about bad steps."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deq_model.solvers.options import SolverOptions
from training.errors import OptionsError
from training.options.checks import (
    MOST_SEED,
    MOST_THREADS,
    at_least,
    device,
    not_negative,
    seconds,
    within,
)

BadStep = Literal["skip", "warn", "stop"]
Switch = Literal["auto", "on", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How the run goes.

    Attributes:
        out: folder of everything the run writes.
        resume: go on from the newest state in out, if there is one.
        seed: of initial weights, dropout, block lengths and the Jacobian's estimate.
        threads: CPU threads of one tensor operation, 0 for as many as there are cores.
        device: cpu, cuda, or cuda:N; under torchrun cuda means the rank's own.
        save_every: steps between saved states.
        keep: how many saved states to keep; the best model is kept beside them.
        log_every: steps between lines of the log.
        tensorboard: write TensorBoard's event files as well: auto does so where the package is
            installed.
        rank_timeout_s: seconds that a rank waits for the others before the run ends.
    """

    out: Path
    resume: bool = False
    seed: int = 0
    threads: int = 0
    device: str = "cpu"
    save_every: int = 500
    keep: int = 2
    log_every: int = 20
    tensorboard: Switch = "auto"
    rank_timeout_s: float = 600.0

    def __post_init__(self) -> None:
        at_least(self, 1, "save_every", "keep", "log_every")
        within(self, 0, MOST_THREADS, "threads")
        within(self, 0, MOST_SEED, "seed")
        seconds(self, "rank_timeout_s")
        device(self, "device")


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationOptions:
    """How the perplexity on the validation text is measured while training.

    Attributes:
        every: steps between measurements.
        tokens: most tokens of the validation text to use, 0 for all.
        batch_size: streams that it is cut into, 0 for data.batch_size.
        tgt_len: tokens of a block; unset for model.tgt_len.
        mem_len: tokens of memory before a block; unset for model.mem_len.
        tol: tolerance of the solver, 0 for forward.tol.
        max_nfe: its budget of calls of f, 0 for forward.max_nfe.
    """

    every: int = 500
    tokens: int = 20_000
    batch_size: int = 0
    tgt_len: int | None = None
    mem_len: int | None = None
    tol: float = 0.0
    max_nfe: int = 0

    def __post_init__(self) -> None:
        at_least(self, 1, "every")
        at_least(self, 0, "tokens", "batch_size", "max_nfe")
        not_negative(self, "tol")
        for name, bound in (("tgt_len", 1), ("mem_len", 0)):
            if getattr(self, name) is not None:
                at_least(self, bound, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardOptions:
    """What is done about a step that would do harm.

    A step whose loss or gradient is not finite never changes the parameters. One whose loss is a
    spike, or whose solver diverged, is treated as ``action`` says. Each is reported with step,
    loss, residual and norm of the gradient.

    Attributes:
        action: skip (the parameters stay, the memory is emptied), warn (report it and go on), or
            stop (save the state before it and end the run).
        spike: how far above its running mean a loss is a spike, in nats per token, 0 for no check.
        residual: mean residual of the forward solve above which it has diverged, 0 for no check.
        max_skipped: end the run after so many skipped steps in a row.
    """

    action: BadStep = "skip"
    spike: float = 2.0
    residual: float = 1.0
    max_skipped: int = 20

    def __post_init__(self) -> None:
        not_negative(self, "spike", "residual")
        at_least(self, 1, "max_skipped")


def check_budget(states: int, forward: SolverOptions) -> None:
    """Raises OptionsError where a solve has fewer calls than states to supervise."""
    if states > forward.max_nfe:
        raise OptionsError(
            f"equilibrium.n_states must be at most forward.max_nfe = {forward.max_nfe}, "
            f"got {states}"
        )
