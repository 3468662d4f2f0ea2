"""What an evaluation does."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deq_model.solvers.options import Method, SolverOptions
from training.errors import OptionsError
from training.options.checks import MOST_THREADS, at_least, device, within

EvalDtype = Literal["auto", "float32", "float64"]
Protocol = Literal["published", "chunk-invariant"]
PROTOCOLS: tuple[Protocol, ...] = ("published", "chunk-invariant")
PUBLISHED_STREAMS = 16
SERVED_WINDOW = 64
SERVED_MAX_NFE = 100
"""The server's window and budget where nobody says otherwise; so is the tolerance below."""
_TOKEN_DEPTH = 12
_RESTART = SolverOptions().restart
_ONLY_PUBLISHED = ("method", "depth", "whole_block", "retries")
_ONLY_SERVED = ("window",)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRun:
    """What ``deqlm eval`` does.

    Attributes:
        model: checkpoint folder.
        data: text to score, UTF-8, plain, .xz or .gz; or a folder that deqlm prepare made, of
            which the test split is scored, or a split's file in it, such as valid.npy.
        protocol: published (streams side by side, whole blocks solved from zeros) or
            chunk-invariant (what the server answers: a session from <eos>, token by token).
        mem_len: tokens of memory before a block; unset for the checkpoint's.
        tgt_len: tokens of a block; unset for the checkpoint's.
        batch_size: equal parts of the text that are scored side by side, each from an empty
            memory; unset for 16 as published, 1 chunk-invariant.
        method: solver, broyden, anderson or picard; unset for broyden.
        tol: tolerance on the relative residual.
        max_nfe: calls of f on a block, or on a window, before it is given up or tried again; unset
            for 35 as published, 100 chunk-invariant.
        depth: past steps that the solver remembers; unset for max_nfe with broyden on whole
            blocks, as published, else 12.
        whole_block: as published, solve each stream's block as one vector; false for token by
            token. Unset for true.
        retries: as published, solve a stream's block that has not converged again from zeros, so
            many times at most, with twice the budget and the depth each time; unset for 2.
        window: chunk-invariant, tokens solved together; unset for 64, or tgt_len where that is
            less.
        max_nfe_curve: budgets, such as 2,4,8,16,32, to measure the perplexity at as well, without
            retries.
        mem_len_curve: memory lengths, such as 0,64,150,480, likewise.
        radius_blocks: blocks, spread over the text, at whose fixed points the spectral radius of
            the Jacobian is estimated; 0 for none.
        dtype: of all numbers; auto is float64 where tol is under 1e-4, else float32.
        device: cpu, cuda, or cuda:N.
        threads: CPU threads of one tensor operation, 0 for as many as there are cores.
        max_blocks: stop after so many blocks, 0 for all.
        out: folder to write evaluation.json, per-token.npz and, with a curve, curves.svg and
            curves.png to.
        per_token: file to write what is known of every target to, as .npz.
        json: print JSON instead of text.
    """

    model: Path
    data: Path
    protocol: Protocol = "published"
    mem_len: int | None = None
    tgt_len: int | None = None
    batch_size: int | None = None
    method: Method | None = None
    tol: float = 1e-3
    max_nfe: int | None = None
    depth: int | None = None
    whole_block: bool | None = None
    retries: int | None = None
    window: int | None = None
    max_nfe_curve: tuple[int, ...] = ()
    mem_len_curve: tuple[int, ...] = ()
    radius_blocks: int = 4
    dtype: EvalDtype = "auto"
    device: str = "cpu"
    threads: int = 0
    max_blocks: int = 0
    out: Path | None = None
    per_token: Path | None = None
    json: bool = False

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise OptionsError(f"protocol must be {' or '.join(PROTOCOLS)}, got {self.protocol!r}")
        self._check_applies()
        bounds = {"mem_len": 0, "retries": 0, "tgt_len": 1, "batch_size": 1, "window": 1}
        for name, bound in (bounds | {"max_nfe": 1, "depth": 1}).items():
            if getattr(self, name) is not None:
                at_least(self, bound, name)
        at_least(self, 0, "max_blocks", "radius_blocks")
        within(self, 0, MOST_THREADS, "threads")
        device(self, "device")
        self.solver()
        check_curve("max_nfe_curve", self.max_nfe_curve, bound=1)
        check_curve("mem_len_curve", self.mem_len_curve, bound=0)

    def _check_applies(self) -> None:
        """Raises where an option is given that the protocol has no use for."""
        foreign = _ONLY_SERVED if self.published else _ONLY_PUBLISHED
        for name in foreign:
            if getattr(self, name) is not None:
                other = PROTOCOLS[int(self.published)]
                raise OptionsError(
                    f"{name} must be left unset with protocol {self.protocol}, got "
                    f"{getattr(self, name)}: it belongs to {other}"
                )

    @property
    def published(self) -> bool:
        """Whether the protocol is the published one."""
        return self.protocol == "published"

    @property
    def by_block(self) -> bool:
        """Whether whole blocks are solved as one vector."""
        return self.published and self.whole_block is not False

    @property
    def n_retries(self) -> int:
        """``retries`` that are in force."""
        default = 2 if self.published else 0
        return default if self.retries is None else self.retries

    @property
    def n_stream(self) -> int:
        """``batch_size`` that is in force."""
        default = PUBLISHED_STREAMS if self.published else 1
        return default if self.batch_size is None else self.batch_size

    def solver(self) -> SolverOptions:
        """Of the first try. Raises ConfigError.

        The published Broyden never restarts: on stiff blocks its residual climbs before it falls,
        and going back to an earlier state there ends at another fixed point, or at none.
        """
        method = self.method or "broyden"
        unrestarted = self.by_block and method == "broyden"
        max_nfe = self.max_nfe
        if max_nfe is None:
            max_nfe = SolverOptions().max_nfe if self.published else SERVED_MAX_NFE
        return SolverOptions(
            method=method,
            tol=self.tol,
            max_nfe=max_nfe,
            depth=self.depth or (max_nfe if unrestarted else _TOKEN_DEPTH),
            restart=math.inf if unrestarted else _RESTART,
        )


def check_curve(name: str, values: tuple[int, ...], *, bound: int) -> None:
    """Raises OptionsError, naming every value of a curve that is below ``bound``."""
    bad = [str(value) for value in values if value < bound]
    if bad:
        raise OptionsError(
            f"{name} must be whole numbers of at least {bound}, got {', '.join(bad)}"
        )
