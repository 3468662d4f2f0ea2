"""The sequences that run: how one begins, what its states predict, how it ends."""

from collections import Counter
from collections.abc import Iterator
from collections.abc import Sequence as Seq

from torch import Tensor

from server.engine.predictions import Prediction
from server.engine.requests import GenerateJob
from server.engine.scheduler import Scheduler, Sequence
from server.engine.sharing import Sharing
from server.engine.slab import Slab
from server.engine.slots import SlotPool
from server.engine.solve import Solved
from server.engine.work import Run, Work


class Runs:
    """Every sequence of every running job, each in a row of the work area."""

    def __init__(
        self, *, slab: Slab, rows: SlotPool, scheduler: Scheduler, sharing: Sharing, eos_id: int
    ) -> None:
        """Takes the engine's parts; ``rows`` are those of the slab's work area."""
        self._slab, self._rows = slab, rows
        self._scheduler, self._sharing = scheduler, sharing
        self._eos_id = eos_id
        self._by_sequence: dict[Sequence, Run] = {}
        self._predictions: list[Prediction] = []

    def __iter__(self) -> Iterator[Run]:
        return iter(self._by_sequence.values())

    def __getitem__(self, sequence: Sequence) -> Run:
        """The run of a sequence, which must not be over."""
        return self._by_sequence[sequence]

    def get(self, sequence: Sequence) -> Run | None:
        """The run of a sequence; None when it is over."""
        return self._by_sequence.get(sequence)

    def start(self, work: Work, tokens: Seq[int], *, candidate: int | None = None) -> Run:
        """A run over ``tokens`` in a row of its own, continuing the job's base."""
        row, base = self._rows.acquire(), work.base_slot
        assert row is not None, "there is a row for every sequence that may run"
        again = work.again if base is None else ()
        inputs = list(tokens) if base is not None else [self._eos_id, *again, *tokens]
        ahead = tokens[1:] if base is not None else tokens
        targets: list[int | None] = [*(None for _ in again), *ahead, None]
        if not work.needs_last_state(candidate):
            inputs, targets = inputs[:-1], targets[:-1]
        sequence = Sequence(
            slot=row,
            start=0,
            inputs=inputs,
            owner=work.job.owner,
            request=work.job.job_id,
            priority=work.job.priority,
            draws=isinstance(work.job, GenerateJob),
        )
        run = Run(work, sequence, targets[: len(inputs)], candidate=candidate, again=len(again))
        # Known before anything can break: ending the job then gives the row back.
        work.runs.append(run)
        self._by_sequence[sequence] = run
        self._scheduler.add(sequence)
        if base is None:
            self._slab.reset(row)
        else:
            self._continue(run, base, tokens[0] if tokens else None)
        self._sharing.start(run)
        return run

    def _continue(self, run: Run, base: int, first: int | None) -> None:
        """Loads what the run continues, and has its last state predict the run's first token."""
        sequence = run.sequence
        self._slab.load(base, sequence.slot)
        sequence.start = self._slab.length(sequence.slot)
        hidden, solved = self._slab.last(sequence.slot)
        self._predictions.append(Prediction(run, hidden, solved, first))

    def predict(self, run: Run, index: int, z_star: Tensor, solved: Solved) -> None:
        """Has the state of a token predict the next one, if that is known or to be drawn."""
        target, work = run.targets[index], run.work
        last = index == len(run.sequence.inputs) - 1 - run.sequence.guessed
        drawing = last and work.ending is None and isinstance(work.job, GenerateJob)
        if target is not None or drawing:
            self._predictions.append(Prediction(run, z_star, solved, target))

    def take_predictions(self) -> list[Prediction]:
        """Predictions that have come up since last asked for, of jobs that go on."""
        predictions, self._predictions = self._predictions, []
        return [p for p in predictions if not p.run.work.finished]

    def problems(self) -> list[str]:
        """Where runs, their rows and the scheduler do not agree."""
        found = self._rows.problems(Counter(run.sequence.slot for run in self), "row")
        if set(self._scheduler.running) != set(self._by_sequence):
            found.append("the scheduler runs other sequences than there are")
        if any(run.work.finished for run in self):
            found.append("a job that is finished still runs")
        if any(run not in run.work.runs for run in self):
            found.append("a run is unknown to its job")
        return [*found, *self._scheduler.problems(), *self._sharing.problems(set(self))]

    def drop(self, run: Run) -> None:
        """Ends a run and gives its row back."""
        del self._by_sequence[run.sequence]
        run.work.runs.remove(run)
        self._scheduler.remove(run.sequence)
        self._rows.release(run.sequence.slot)
        self._sharing.end(run)  # last: it may want memory, and what is held is given back
