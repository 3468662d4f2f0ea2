"""A record while its request is under way."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator

from client.errors import DeqlmError
from client.results import GenerationFinished, SolverReport, Totals
from loadtest.records import CLIENT_ERROR, FOUND_HERE, UNTOLD, Record


class Entry:
    """A record that is being written."""

    def __init__(self, record: Record, now: Callable[[], float], timeout_s: float) -> None:
        """Take the stage's clock; the request is given up so long after it was due."""
        self.record, self._now = record, now
        self._ends_s = record.plan.at_s + timeout_s

    @property
    def remaining_s(self) -> float:
        """Until it is given up."""
        return max(0.001, self._ends_s - self._now())

    @contextlib.contextmanager
    def call(self, method: str) -> Iterator[None]:
        """Note how a call ends."""
        status = CLIENT_ERROR
        try:
            yield
            status = "OK"
        except DeqlmError as error:
            status = error.code.name
            if not error.reason and status not in FOUND_HERE:
                status += f" {UNTOLD}"
            raise
        except asyncio.CancelledError:
            status = "CANCELLED"
            raise
        finally:
            # What follows is cleaning up, or another call: the user has what he waited for.
            self.record.done_s = self._now()
            self.record.calls.append((method, status))

    def token(self) -> None:
        """A token, or an answer of a stream, has come."""
        self.record.times_s.append(self._now())

    def scored(self, totals: Totals, solver: SolverReport, queue_s: float) -> None:
        """A text is scored."""
        self.record.scored += totals.scored_tokens
        self.record.logprob += totals.logprob_sum
        self._solved(solver, queue_s)

    def generated(self, event: GenerationFinished) -> None:
        """A generation is over."""
        self._solved(event.solver, event.timing.queue_s)

    def _solved(self, solver: SolverReport, queue_s: float) -> None:
        self.record.unconverged += solver.unconverged_tokens
        self.record.nfe += solver.nfe_per_token * solver.solved_tokens
        self.record.solved += solver.solved_tokens
        self.record.shared += solver.shared_tokens
        self.record.queue_s += queue_s


def clock(start: float) -> Callable[[], float]:
    """Seconds since an instant of the monotonic clock, which all processes share."""
    return lambda: time.monotonic() - start
