"""A run: steps, measurements, saved states, and going on where one ended."""

import logging
import math
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deq_model.checkpoint import save_checkpoint
from deq_model.config import ModelConfig
from deq_model.memory import Memory
from deq_model.model import DEQLanguageModel
from deq_model.tokenizers.base import Tokenizer
from training.card import run_card
from training.data import PreparedData, Streams, open_data
from training.errors import DivergedError, ResumeError
from training.evaluation import EvalOptions, Evaluation, evaluate
from training.options.train import TrainOptions
from training.progress import Averages, JsonLog, ProgressBar
from training.state import RunState, load_state, newest_state, save_state
from training.step import Stepper, StepReport

_LOG = logging.getLogger(__name__)
_STATES = "checkpoints"
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
    """A run in its folder: ``log.jsonl``, ``checkpoints/step-N.pt``, ``model/`` (the best)."""

    def __init__(self, options: TrainOptions) -> None:
        """Reads the data and makes the model, or restores both where the options say so.

        Raises:
            TrainingError: data or saved state are unusable.
            DeqModelError, TokenizerError: the architecture or the tokenizer are.
        """
        self.options = options
        self._out = options.run.out
        self._stop = threading.Event()
        newest = newest_state(self._out / _STATES)
        if newest is not None and not options.run.resume:
            # Its log, tokenizer and model would be replaced one by one, and mixed until then.
            raise ResumeError(
                f"run.out {self._out} holds a run already ({newest.name}); go on with it by "
                "run.resume true, or name another folder"
            )
        resumed = newest
        data = open_data(
            options.data,
            out=self._out,
            seed=options.run.seed,
            remake="changed" if resumed is None else "never",
        )
        self.tokenizer: Tokenizer = data.tokenizer
        self._streams, self._valid = self._read_data(data)
        device = torch.device(options.run.device)
        generator = torch.Generator(device).manual_seed(options.run.seed)
        self.model = self._make_model(device, generator)
        self._stepper = Stepper(self.model, options, generator=generator)
        self._step, self._position, self._epoch, self._skipped = 0, 0, 0, 0
        self._best_nll, self._seconds = math.inf, 0.0
        self._memory = self.model.empty_memory(options.data.batch_size)
        if resumed is not None:
            self._restore(load_state(resumed, device=device))

    def _read_data(self, data: PreparedData) -> tuple[Streams, Tensor]:
        for split, info in data.manifest.splits.items():
            _LOG.info("%s: %d tokens, %d unknown", split, info.tokens, info.unknown)
        batch_size = self.options.data.batch_size
        kept = data.valid[: self.options.valid.tokens or None].astype(np.int64)
        Streams(kept, batch_size=batch_size)  # too short: better said now
        return Streams(data.train, batch_size=batch_size), torch.from_numpy(kept)

    def _make_model(self, device: torch.device, generator: torch.Generator) -> DEQLanguageModel:
        config: ModelConfig = self.options.model.config(
            n_token=self.tokenizer.n_token, recipe="deqlm train"
        )
        with torch.device(device):
            model = DEQLanguageModel(config)
        model.reset(std=self.options.model.init_std, generator=generator)
        return model.train()

    def stop(self) -> None:
        """Asks the run to save its state and end after the step it is in."""
        self._stop.set()

    def run(self, *, max_steps: int | None = None) -> Summary:
        """Trains to the end, or to ``max_steps`` steps from now, or until ``stop``.

        Raises:
            DivergedError: too many steps in a row gave no finite loss.
        """
        total = self.options.optimiser.max_steps
        last = total if max_steps is None else min(total, self._step + max_steps)
        log = JsonLog(self._out / "log.jsonl")
        began, before = time.monotonic(), self._seconds
        log.write("start", step=self._step, options=self.options.to_dict())
        try:
            with ProgressBar(total=total, done=self._step) as bar:
                averages = Averages()
                while self._step < last and not self._stop.is_set():
                    averages.add(self._one_step())
                    self._seconds = before + time.monotonic() - began
                    self._after_step(averages, log, bar)
            self._save()
        finally:
            log.close()
        return self._summary()

    def _summary(self) -> Summary:
        model = self._out / MODEL_FOLDER
        return Summary(
            finished=self._step >= self.options.optimiser.max_steps,
            step=self._step,
            best_nll=self._best_nll,
            seconds=self._seconds,
            model=model if model.is_dir() else None,
        )

    def _one_step(self) -> StepReport:
        if self._position >= self._streams.length:
            self._position, self._epoch = 0, self._epoch + 1
            self._memory = self.model.empty_memory(self.options.data.batch_size)
        block = self._streams.block(self._position, tgt_len=self.options.model.tgt_len)
        report, self._memory = self._stepper.step(self._step, block, self._memory)
        self._position += block.tokens.shape[1]
        self._step += 1
        self._skipped = self._skipped + 1 if report.skipped else 0
        if self._skipped >= self.options.guard.max_skipped:
            raise DivergedError(
                f"step {self._step}: {self._skipped} steps in a row without a finite loss and "
                "gradient; try a lower optimiser.lr or more optimiser.warmup_steps"
            )
        return report

    def _after_step(self, averages: Averages, log: JsonLog, bar: ProgressBar) -> None:
        run, finished = self.options.run, self._step == self.options.optimiser.max_steps
        bar.advance(self._step)
        if self._step % run.log_every == 0 or finished:
            values = averages.take()
            log.write("step", step=self._step, epoch=self._epoch, seconds=self._seconds, **values)
            bar.describe(values)
        if self._step % self.options.valid.every == 0 or finished:
            self._validate(log)
        if self._step % run.save_every == 0:
            self._save()

    def _validate(self, log: JsonLog) -> None:
        result = self._evaluate()
        log.write(
            "valid",
            step=self._step,
            mean_nll=result.mean_nll,
            perplexity=result.perplexity,
            nfe=result.nfe,
            unconverged=result.unconverged,
            scored_tokens=result.scored_tokens,
        )
        _LOG.info("step %d: validation perplexity %.2f", self._step, result.perplexity)
        if result.mean_nll < self._best_nll:
            self._best_nll = result.mean_nll
            card = run_card(self.options, step=self._step, seconds=self._seconds, validation=result)
            save_checkpoint(self._out / MODEL_FOLDER, self.model, self.tokenizer, card)

    def _evaluate(self) -> Evaluation:
        options = self.options
        protocol = EvalOptions(
            batch_size=options.data.batch_size,
            tgt_len=options.model.tgt_len,
            mem_len=options.model.mem_len,
            solver=options.forward,
        )
        self.model.eval()
        try:
            return evaluate(self.model, self._valid, protocol)
        finally:
            self.model.train()

    def _save(self) -> None:
        state = RunState(
            step=self._step,
            position=self._position,
            epoch=self._epoch,
            skipped=self._skipped,
            best_nll=self._best_nll,
            seconds=self._seconds,
            memory=Memory(self._memory.z_hist.clone(), self._memory.u_hist.clone()),
            model=self.model.state_dict(),
            optimiser=self._stepper.optimiser.state_dict(),
            generator=self._stepper.generator.get_state(),
            options=self.options.to_dict(),
        )
        save_state(self._out / _STATES, state, keep=self.options.run.keep)

    def _restore(self, state: RunState) -> None:
        _check_same(state.options, self.options.to_dict())
        self.model.load_state_dict(state.model)
        self._stepper.optimiser.load_state_dict(state.optimiser)
        self._stepper.generator.set_state(state.generator)
        self._step, self._position, self._epoch = state.step, state.position, state.epoch
        self._skipped, self._best_nll = state.skipped, state.best_nll
        self._seconds, self._memory = state.seconds, state.memory


def _check_same(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Only how the run goes (``run``) and how long (``max_steps``) may change on the way."""
    for name, group in now.items():
        for key, value in group.items():
            if name == "run" or key == "max_steps":
                continue
            was = before.get(name, {}).get(key)
            if was != value:
                raise ResumeError(
                    f"{name}.{key} was {was} in the run to resume, got {value}; "
                    "only run.* and optimiser.max_steps may change"
                )
