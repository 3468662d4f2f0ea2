"""The commands ``deqlm train`` and ``deqlm eval``."""

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from training.flags import parse, read_train
from training.options.evaluation import EvalRun
from training.options.train import TrainOptions

if TYPE_CHECKING:
    from training.trainer import Summary

_LOG = logging.getLogger(__name__)
EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_STOPPED = 130
_STOPPING = b"\nstopping after this step, or the measurement it is in; again ends at once\n"


def parse_train(argv: list[str], prog: str) -> TrainOptions:
    """Options of a run from recipe, files and flags; bad ones end the process with 2."""
    return read_train(argv, prog)


def parse_eval(argv: list[str], prog: str) -> EvalRun:
    """Options of an evaluation, likewise."""
    description = "Perplexity of a checkpoint on a text file."
    run: EvalRun = parse(argv, prog=prog, description=description, groups={"": EvalRun})[""]
    return run


def train_main(argv: list[str], prog: str) -> int:
    """Trains; returns the exit code."""
    options = parse_train(argv, prog)
    return reported(prog, lambda: _train(options))


def eval_main(argv: list[str], prog: str) -> int:
    """Prints a checkpoint's perplexity; returns the exit code."""
    run = parse_eval(argv, prog)
    return reported(prog, lambda: _eval(run))


def _eval(run: EvalRun) -> int:
    from training.evaluating.table import print_report
    from training.scoring import score_file

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    figures = score_file(run)
    if run.json:
        sys.stdout.write(json.dumps(figures, allow_nan=False) + "\n")
    else:
        print_report(figures, sys.stdout)
    return EXIT_OK


def _train(options: TrainOptions) -> int:
    # Where every parameter had its part in a step, torch would complain that it need not look.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

    import torch

    from training.distributed import open_ranks
    from training.trainer import Trainer

    if options.run.threads:
        torch.set_num_threads(options.run.threads)
    with open_ranks(options.run) as ranks, _alone_in(options, first=ranks.is_first):
        level = logging.INFO if ranks.is_first else logging.ERROR
        logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
        trainer = Trainer(options, ranks)
        with _stopping(trainer.stop):
            summary = trainer.run()
    _tell_end(options, summary)
    return EXIT_OK if summary.finished else EXIT_STOPPED


def _tell_end(options: TrainOptions, summary: "Summary") -> None:
    last, seconds = options.optimiser.max_steps, summary.seconds
    if summary.finished:
        _LOG.info("finished: %d steps in %.0f s", summary.step, seconds)
    else:
        _LOG.info(
            "stopped after step %d of %d, %.0f s; its state is saved: go on with --run.resume",
            summary.step,
            last,
            seconds,
        )
    if summary.model is None:
        _LOG.info("no model yet: the first is saved after %d steps (valid.every)", _first(options))
    else:
        _LOG.info("best validation loss %.4f, model in %s", summary.best_nll, summary.model)


def _first(options: TrainOptions) -> int:
    """Steps before the first measurement."""
    return min(options.valid.every, options.optimiser.max_steps)


@contextmanager
def _alone_in(options: TrainOptions, *, first: bool) -> Iterator[None]:
    """Keeps other runs out of ``run.out``, which rank 0 holds for all.

    Raises:
        OptionsError: it cannot be a folder that is written to.
        ResumeError: another run is writing there.
    """
    from training.errors import OptionsError, ResumeError
    from training.lock import locked

    out = options.run.out
    with ExitStack() as held:
        try:
            if first:
                held.enter_context(locked(out, wait=False))
        except BlockingIOError:
            raise ResumeError(
                f"run.out {out} is being written by another run; wait for its end, or name another "
                "folder"
            ) from None
        except OSError as error:
            raise OptionsError(
                f"run.out must be a folder that can be written, got {out}: {error.strerror}"
            ) from None
        yield


@contextmanager
def _stopping(stop: Callable[[], None]) -> Iterator[None]:
    """SIGINT and SIGTERM end the run after its step; a second one ends it at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        stop()
        if os.environ.get("RANK", "0") == "0":
            os.write(2, _STOPPING)  # a stream may be in the middle of a line when a signal comes
        signal.signal(number, before[number])

    before: dict[int, Any] = {
        number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def reported(prog: str, command: Callable[[], int]) -> int:
    """Runs a command; what it raises on purpose becomes one line on standard error."""
    from deq_model.errors import DeqModelError
    from deq_model.tokenizers.errors import TokenizerError
    from training.errors import TrainingError

    try:
        return command()
    except (DeqModelError, TokenizerError, TrainingError) as error:
        _report(prog, error)
        return EXIT_FAILURE


def _report(prog: str, error: Exception) -> None:
    """One line; where there are many ranks it names this one, and what all say is said once."""
    from training.errors import DivergedError

    rank, message = int(os.environ.get("RANK", "0")), str(error)
    if not message or (rank and isinstance(error, DivergedError)):
        return
    who = f"{prog}: rank {rank}" if rank else prog
    sys.stderr.write(f"{who}: {message}\n")
