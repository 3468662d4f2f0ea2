"""Calls of f for all jobs that run, made so that a job which cannot be solved harms no other."""

from collections.abc import Collection, Iterable, Sequence

from server.engine.batch import Accepted, Batch
from server.engine.blame import Blame
from server.engine.ledger import Options, Verdict
from server.engine.runs import Runs
from server.engine.scheduler import Entry, Scheduler
from server.engine.scheduler import Sequence as Tokens
from server.engine.work import Work


class SharedCalls:
    """What the solver does for many jobs at once."""

    def __init__(self, batch: Batch, scheduler: Scheduler, runs: Runs, blame: Blame) -> None:
        """Takes the engine's parts."""
        self._batch, self._scheduler, self._runs, self._blame = batch, scheduler, runs, blame

    def enter(self, entries: Sequence[Entry]) -> None:
        """Starts the solves of tokens that enter their windows."""
        of = self._works(entry.sequence for entry in entries)

        def enter(works: Collection[Work]) -> None:
            self._batch.enter([entry for entry in entries if of[entry.sequence] in works])

        self._blame.share(of.values(), enter)

    def solve(self, options: Options) -> list[Accepted]:
        """One call of f for the sequences in ``options``, or more where that fails.

        Returns:
            The accepted tokens, each sequence's in order.
        """
        accepted: list[Accepted] = []
        of = self._works(options)

        def call(works: Collection[Work]) -> None:
            called = self._batch.call({s: how for s, how in options.items() if of[s] in works})
            accepted.extend(self._keep(called.verdicts))
            try:
                self._batch.leave(self._scheduler, called)
            except Exception as error:
                self._blame.end(works, error)

        self._blame.share(of.values(), call, self._begin_anew)
        return accepted

    def _keep(self, verdicts: Sequence[Verdict]) -> list[Accepted]:
        kept: list[Accepted] = []
        of = self._works(verdict.sequence for verdict in verdicts)

        def keep(works: Collection[Work]) -> None:
            kept.extend(self._batch.keep([v for v in verdicts if of[v.sequence] in works]))

        self._blame.share(of.values(), keep)
        return kept

    def _begin_anew(self, works: Collection[Work], little: bool) -> None:
        sequences = [s for s in self._scheduler.active if self._runs[s].work in works]
        if little:
            for sequence in sequences:
                sequence.granted = 1
        self._batch.begin_anew(sequences)

    def _works(self, sequences: Iterable[Tokens]) -> dict[Tokens, Work]:
        """Whose sequences they are: jobs may end before all is done."""
        return {sequence: self._runs[sequence].work for sequence in sequences}
