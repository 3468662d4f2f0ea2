"""Tokens that are guessed before the states they follow are final.

A text is generated one token after another, and a call of f on one token takes as long as one on a
few. So once the solve of the last token has come near its fixed point, the next token is drawn from
where it stands, and enters the window: it is solved while the one before it is finished. When that
one is accepted the true draw is made, from its accepted state and with the same random numbers. If
it is the guess, which it nearly always is (``sampling.py``), the next solve is well under way; if
not, all that was guessed is withdrawn. What is drawn is so the same as without guesses, up to the
tolerance that states are solved to.
"""

import copy
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from torch import Tensor

from server.engine.batch import Batch
from server.engine.next_token import NextToken
from server.engine.requests import GenerateJob
from server.engine.sampling import draw
from server.engine.scheduler import Scheduler
from server.engine.work import Run

NEAR = 0.2
"""Relative residual within which all of a window must be for a token behind it to be guessed."""

SHARE = 0.9
"""Of the time of the rows that are known, what as many guesses may add: as many rows take as many
calls less, and one in ten guesses is withdrawn. With 16 streams of the 98M model, where a guess
each adds 0.8, guesses took generation from 128 to 164 tokens per second."""
LONGEST = 3.0
"""How much longer a call may take for guesses: others wait for its end."""


@dataclass(frozen=True, slots=True)
class Guess:
    """A token to be guessed.

    Attributes:
        run: whose next token it is.
        hidden: ``(D,)``, where the solve of its last token stands.
    """

    run: Run
    hidden: Tensor


class Guesses:
    """What is guessed of the texts that are generated."""

    def __init__(self, batch: Batch, scheduler: Scheduler, *, most: int) -> None:
        """Takes the engine's parts, and how many tokens of a text are guessed at most."""
        self._batch, self._scheduler, self._most = batch, scheduler, most
        self._right = self._withdrawn = 0

    def wanted(self, runs: Iterable[Run], drawing: Collection[Run]) -> list[Guess]:
        """Guesses to be made now, some of them in vain if what they follow is withdrawn first.

        Args:
            runs: all that there are.
            drawing: those whose next token is drawn now: a guess of theirs is about to be settled.
        """
        texts = [run for run in runs if isinstance(run.work.job, GenerateJob)]
        most = self._worth(len(texts))
        return [
            Guess(run, self._batch.standing(run.sequence.rows[-1]))
            for run in texts
            if self._may_go_on(run, most + (run in drawing))
        ]

    def _worth(self, texts: int) -> int:
        """How many tokens to guess of each text: as long as longer calls pay."""
        costs = self._scheduler.costs
        if costs is None or not texts:
            return self._most
        base = costs.seconds(texts)
        pays = [
            costs.seconds(texts * (1 + n)) <= min(1 + SHARE * n, LONGEST) * base
            for n in range(1, self._most + 1)
        ]
        return max((n for n, does in enumerate(pays, start=1) if does), default=0)

    def _may_go_on(self, run: Run, most: int) -> bool:
        work, sequence = run.work, run.sequence
        assert isinstance(work.job, GenerateJob)
        left = work.job.stop.max_tokens - len(work.drawn) - sequence.guessed
        return (
            sequence.guessed < most
            and left > 1
            and work.ending is None
            and work.closing is None
            and len(sequence.inputs) != run.asked
            and 0 < len(sequence.rows) == sequence.left
            and self._batch.far(sequence.rows) <= NEAR
        )

    def make(self, guess: Guess, distribution: NextToken) -> None:
        """Guesses a token, unless what it would follow has turned out wrong."""
        run, sequence = guess.run, guess.run.sequence
        work = run.work
        job = work.job
        assert isinstance(job, GenerateJob)
        if work.finished or work.ending is not None or not self._may_go_on(run, self._most):
            return
        begin = len(sequence.inputs) - sequence.guessed
        ahead = sequence.inputs[begin:]
        if run.ahead is None:
            run.ahead = copy.copy(work.generator)
        early = len(work.drawn) + len(ahead) < job.stop.min_tokens
        token_id = draw(
            distribution,
            job.sampling,
            seen=work.seen.union(ahead),
            forbidden=job.stop.ids if early else (),
            generator=run.ahead,
        )
        run.asked = len(sequence.inputs)
        if token_id not in job.stop.ids:
            sequence.inputs.append(token_id)
            sequence.guessed += 1
            run.targets.append(None)

    def settle(self, run: Run, token_id: int) -> None:
        """Goes on with the token that was drawn; what was guessed otherwise is withdrawn."""
        work, sequence = run.work, run.sequence
        goes_on = work.ending is None or work.job.lease is not None
        first = len(sequence.inputs) - sequence.guessed
        if goes_on and sequence.inputs[first:][:1] == [token_id]:
            sequence.guessed -= 1
            self._right += 1
        else:
            self._withdraw(run)
            if goes_on:
                sequence.inputs.append(token_id)
                run.targets.append(None)
        if work.ending is not None:
            self._withdraw(run)

    def _withdraw(self, run: Run) -> None:
        self._withdrawn += run.sequence.guessed
        del run.targets[len(run.targets) - run.sequence.guessed :]
        self._scheduler.withdraw(run.sequence)
        run.ahead, run.asked = None, 0

    def take_counts(self) -> dict[str, int]:
        """Guesses that turned out right, and those withdrawn, since last asked."""
        counts = {"right": self._right, "withdrawn": self._withdrawn}
        self._right = self._withdrawn = 0
        return counts
