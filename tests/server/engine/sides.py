"""A batch that is driven call by call, without an engine."""

import dataclasses
import itertools

import torch

from deq_model.model import DEQLanguageModel
from deq_model.products import Format
from server.engine.batch import Accepted, Batch
from server.engine.scheduler import Scheduler, Sequence
from server.engine.slab import Slab
from server.engine.solve import Solve

ROWS, RUNNING, WINDOW = 24, 4, 5
FORMS: dict[torch.dtype, Format] = {torch.float32: "float32", torch.float64: "float64"}

Job = tuple[tuple[int, ...], Solve, int]
"""A text, how to solve it, and the call from which on it may be solved."""


@dataclasses.dataclass
class Side:
    """A batch and its scheduler."""

    model: DEQLanguageModel
    padded: bool
    depth: int = 30

    def __post_init__(self) -> None:
        like = self.model.injection.weight
        self.slab = Slab(
            self.model.config,
            rows=RUNNING,
            slots=0,
            window=WINDOW,
            device=like.device,
            dtype=like.dtype,
        )
        weights = self.model.f.fold().detach()
        self.batch = Batch(
            self.model,
            weights,
            self.slab,
            max_rows=ROWS,
            form=FORMS[like.dtype],
            depth=self.depth,
            padded=self.padded,
        )
        self.scheduler = Scheduler(max_batch_tokens=ROWS, max_running=RUNNING, window=WINDOW)

    def solve(self, jobs: list[Job]) -> dict[tuple[int, int], Accepted]:
        """Solves texts, each from a certain call on, in the first work row that is free then."""
        free, found = list(range(RUNNING)), {}
        waiting = sorted(enumerate(jobs), key=lambda item: item[1][2])
        running: dict[Sequence, tuple[int, Solve]] = {}
        for call in itertools.count():
            while waiting and waiting[0][1][2] <= call and free:
                number, (tokens, solve, _) = waiting.pop(0)
                sequence = Sequence(slot=free.pop(0), start=0, inputs=list(tokens))
                self.slab.reset(sequence.slot)
                self.scheduler.add(sequence)
                running[sequence] = number, solve
            if running:
                self.batch.enter(self.scheduler.enter())
                options = {sequence: solve for sequence, (_, solve) in running.items()}
                for token in self.batch.step(self.scheduler, options):
                    found[running[token.sequence][0], token.index] = token
            for sequence in [sequence for sequence in running if sequence.done]:
                self.scheduler.remove(sequence)
                free = sorted([*free, sequence.slot])
                del running[sequence]
            if not running and not waiting:
                return found
