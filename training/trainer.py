"""A run: steps, measurements, saved states, and going on where one ended."""

import dataclasses
import math
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from deq_model.checkpoint import save_checkpoint
from deq_model.errors import CheckpointError
from deq_model.memory import Memory
from training.card import run_card
from training.distributed import Ranks
from training.errors import DivergedError, ResumeError, SaveError
from training.journal import Journal
from training.log import Averages
from training.opening import STATES_FOLDER, open_run
from training.options.train import TrainOptions
from training.state import Point, Progress, RunState, save_state
from training.step import Stepper, StepReport, Taken
from training.validation import Measurement, measure

MODEL_FOLDER = "model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """How a run ended.

    Attributes:
        finished: whether all steps were done.
        step: steps done.
        best_nll: lowest validation loss, in nats per token; inf if it was never measured.
        seconds: the run took, all its parts together.
        model: folder of the best model, None if there is none yet.
    """

    finished: bool
    step: int
    best_nll: float
    seconds: float
    model: Path | None


class Trainer:
    """A run in its folder: ``log.jsonl``, ``checkpoints/step-N.pt``, ``model/`` (the best).

    Every rank has one; what is written is written by rank 0.
    """

    def __init__(self, options: TrainOptions, ranks: Ranks | None = None) -> None:
        """Reads the data and makes the model, or restores both where the options say so.

        Raises:
            TrainingError: data or saved state are unusable.
            DeqModelError, TokenizerError: the architecture or the tokenizer are.
        """
        self.options = options
        self._ranks = Ranks() if ranks is None else ranks
        self._opening = self._ranks.first_then_rest(lambda: open_run(options, self._ranks))
        self.model, self.tokenizer = self._opening.model, self._opening.tokenizer
        self._streams = self._opening.streams
        self._stepper = Stepper(
            self.model, options, generator=self._opening.generator, ranks=self._ranks
        )
        self._progress = Progress()
        self._memory = self.model.empty_memory(self._streams.batch_size)
        self._reports: list[StepReport] = []  # of the steps since the last line of the log
        self._best_nll = math.inf
        self._stop = threading.Event()
        self._save_error: OSError | None = None
        self._tried = -1  # step of the last attempt to save
        if self._opening.state is not None:
            self._restore(self._opening.state)
        self._sound = self._point()

    def stop(self) -> None:
        """Asks the run to save its state and end after the step it is in."""
        self._stop.set()

    def run(self, *, max_steps: int | None = None) -> Summary:
        """Trains to the end, or to ``max_steps`` steps from now, or until ``stop``.

        Raises:
            DivergedError: the guard ended the run.
            RankError: another rank has failed or is lost.
            SaveError: the last state could not be written.
        """
        total = self.options.optimiser.max_steps
        first = self._progress.step
        last = total if max_steps is None else min(total, first + max_steps)
        journal = Journal(self.options, step=first, silent=not self._ranks.is_first)
        with self._ranks.watched(), journal:
            self._run(last, journal)
            if self._tried != self._progress.step:
                self._save(journal)
        if self._save_error is not None:
            raise SaveError(
                f"the state of step {self._progress.step} cannot be written: {self._save_error}; "
                "make room and go on from the one before it with run.resume true"
            )
        return self._summary()

    def _run(self, last: int, journal: Journal) -> None:
        began = time.monotonic() - self._progress.seconds
        averages = Averages()
        for report in self._reports:
            averages.add(replace(report, tokens=0))  # none of this process's time
        stopping = False
        while self._progress.step < last and not stopping:
            taken = self._one_step()
            self._progress = replace(self._progress, seconds=time.monotonic() - began)
            self._judge(taken, journal)
            averages.add(taken.report)
            self._after_step(averages, journal)
            if taken.verdict.applies:
                self._sound = self._point()
            stopping = taken.stop

    def _one_step(self) -> Taken:
        progress = self._progress
        if progress.position >= self._streams.length:
            progress = replace(progress, position=0, epoch=progress.epoch + 1)
            self._memory = self.model.empty_memory(self._streams.batch_size)
        length = self._opening.lengths.at(progress.step)
        block = self._streams.block(progress.position, tgt_len=length)
        taken = self._stepper.step(progress.step, block, self._memory, stop=self._stop.is_set())
        self._memory = taken.memory
        self._progress = replace(
            progress,
            step=progress.step + 1,
            position=progress.position + block.tokens.shape[1],
        )
        self._reports.append(taken.report)
        return taken

    def _judge(self, taken: Taken, journal: Journal) -> None:
        """Reports a bad step; ends the run where the guard says so, at the last sound one."""
        verdict, report, step = taken.verdict, taken.report, self._progress.step
        if verdict.reason is None:
            return
        journal.bad_step(
            step=step,
            reason=verdict.reason,
            loss=report.loss,
            residual=report.residual,
            grad_norm=report.grad_norm,
            action=verdict.action,
        )
        guard = self._stepper.guard
        if verdict.action == "stop":
            why, what = verdict.reason, "guard.action = stop ends the run"
        elif guard.exhausted:
            why = f"{guard.skipped} steps in a row were skipped, the last because {verdict.reason}"
            what = f"guard.max_skipped = {self.options.guard.max_skipped} ends the run"
        else:
            return
        self._go_back(self._sound)
        self._save(journal)
        raise DivergedError(
            f"step {step}: {why}; {what}, saved as it was after step {self._progress.step}. Go on "
            "with another guard.* and run.resume true, or begin again with a lower optimiser.lr, "
            "more optimiser.warmup_steps or a larger equilibrium.jac_loss_weight"
        )

    def _after_step(self, averages: Averages, journal: Journal) -> None:
        step, run = self._progress.step, self.options.run
        finished = step == self.options.optimiser.max_steps
        journal.advance(step)
        if step % run.log_every == 0 or finished:
            self._reports.clear()
            progress = self._progress
            journal.steps(
                step=step, epoch=progress.epoch, seconds=progress.seconds, **averages.take()
            )
        if step % self.options.valid.every == 0 or finished:
            self._validate(journal)
        if step % run.save_every == 0:
            self._save(journal)

    def _validate(self, journal: Journal) -> None:
        journal.measuring()
        found = measure(self.model, self._opening.valid, self.options, self._ranks)
        self._stepper.schedule.observe(found.mean_nll)
        journal.valid(step=self._progress.step, **dataclasses.asdict(found))
        if found.mean_nll < self._best_nll:
            self._save_model(found, journal)

    def _save_model(self, found: Measurement, journal: Journal) -> None:
        """Writes the best model; where that fails the former best stays the one to beat."""
        step = self._progress.step
        if self._ranks.is_first:
            card = run_card(
                self.options, step=step, seconds=self._progress.seconds, validation=found
            )
            try:
                save_checkpoint(
                    self.options.run.out / MODEL_FOLDER, self.model, self.tokenizer, card
                )
            except CheckpointError as error:
                journal.unsaved(step=step, what="best model", error=error)
                return
        self._best_nll = found.mean_nll

    def _save(self, journal: Journal) -> None:
        """Writes the state; a failure is remembered until a later one is written."""
        self._tried = self._progress.step
        memory = Memory(
            self._ranks.gather(self._memory.z_hist), self._ranks.gather(self._memory.u_hist)
        )
        if not self._ranks.is_first:
            return
        state = RunState(
            point=replace(self._point(), memory=memory),
            model=self.model.state_dict(),
            optimiser=self._stepper.optimiser.state_dict(),
            options=self.options.to_dict(),
            vocabulary=self._opening.vocabulary,
        )
        try:
            journal.flush()  # what a state has behind it is in the log
            save_state(self.options.run.out / STATES_FOLDER, state, keep=self.options.run.keep)
        except OSError as error:
            self._save_error = error
            journal.unsaved(step=self._progress.step, what="state", error=error)
        else:
            self._save_error = None

    def _restore(self, state: RunState) -> None:
        self.model.load_state_dict(state.model)
        self._stepper.optimiser.load_state_dict(state.optimiser)
        share, all_of = self._ranks.share(self.options.data.batch_size), state.point.memory
        self._go_back(
            replace(state.point, memory=Memory(all_of.z_hist[share], all_of.u_hist[share]))
        )

    def _point(self) -> Point:
        stepper = self._stepper
        return Point(
            progress=self._progress,
            memory=self._memory,
            schedule=stepper.schedule.state_dict(),
            guard=stepper.guard.state_dict(),
            generator=stepper.generator.get_state(),
            reports=tuple(dataclasses.asdict(report) for report in self._reports),
            best_nll=self._best_nll,
        )

    def _go_back(self, point: Point) -> None:
        stepper = self._stepper
        self._progress, self._memory = point.progress, point.memory
        self._reports = [StepReport(**report) for report in point.reports]
        self._best_nll = point.best_nll
        stepper.guard.load_state_dict(point.guard)
        stepper.schedule.load_state_dict(point.schedule)
        try:
            stepper.generator.set_state(point.generator)
        except RuntimeError as error:
            raise ResumeError(
                "run.device must be of the kind that the run to resume was on: its random numbers "
                f"cannot go on elsewhere: {error}"
            ) from None

    def _summary(self) -> Summary:
        model = self.options.run.out / MODEL_FOLDER
        return Summary(
            finished=self._progress.step >= self.options.optimiser.max_steps,
            step=self._progress.step,
            best_nll=self._best_nll,
            seconds=self._progress.seconds,
            model=model if model.is_dir() else None,
        )
