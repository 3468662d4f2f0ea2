"""What an evaluation does."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deq_model.solvers.options import Method, SolverOptions
from training.options.checks import at_least

EvalDtype = Literal["auto", "float32", "float64"]
_TOKEN_DEPTH = 12
_RESTART = SolverOptions().restart


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRun:
    """What ``deqlm eval`` does.

    Attributes:
        model: checkpoint folder.
        data: text to score, UTF-8, plain or .xz.
        mem_len: tokens of memory before a block; unset for the checkpoint's.
        tgt_len: tokens of a block; unset for the checkpoint's.
        batch_size: streams that the text is cut into, side by side.
        method: solver, broyden, anderson or picard.
        tol: tolerance on the relative residual.
        max_nfe: calls of f on a block before it is given up, or tried again.
        depth: past steps that the solver remembers; 0 for max_nfe with broyden and whole_block,
            as published, else 12.
        whole_block: solve each stream's block as one vector, as published, instead of token by
            token.
        retries: solve a stream's block that has not converged again from zeros, so many times at
            most, with twice the budget and the depth each time.
        dtype: of all numbers; auto is float64 where tol is under 1e-4, else float32.
        device: cpu, cuda, or cuda:N.
        threads: CPU threads of one tensor operation, 0 for as many as there are cores.
        max_blocks: stop after so many blocks, 0 for all.
        per_token: file to write the loss of every target to, nll (streams, positions), as .npz.
        json: print JSON instead of text.
    """

    model: Path
    data: Path
    mem_len: int | None = None
    tgt_len: int | None = None
    batch_size: int = 16
    method: Method = "broyden"
    tol: float = 1e-3
    max_nfe: int = 35
    depth: int = 0
    whole_block: bool = True
    retries: int = 2
    dtype: EvalDtype = "auto"
    device: str = "cpu"
    threads: int = 0
    max_blocks: int = 0
    per_token: Path | None = None
    json: bool = False

    def __post_init__(self) -> None:
        for name, bound in (("mem_len", 0), ("tgt_len", 1)):
            if getattr(self, name) is not None:
                at_least(self, bound, name)
        at_least(self, 1, "batch_size")
        at_least(self, 0, "retries", "threads", "max_blocks", "depth")
        self.solver()

    def solver(self) -> SolverOptions:
        """Of the first try. Raises ConfigError.

        The published Broyden never restarts: on stiff blocks its residual climbs before it falls,
        and going back to an earlier state there ends at another fixed point, or at none.
        """
        published = self.whole_block and self.method == "broyden"
        return SolverOptions(
            method=self.method,
            tol=self.tol,
            max_nfe=self.max_nfe,
            depth=self.depth or (self.max_nfe if published else _TOKEN_DEPTH),
            restart=math.inf if published else _RESTART,
        )
