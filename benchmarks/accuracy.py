"""What tolerance, number format and cutting cost: one text, scored by the engine in many ways.

``python -m benchmarks.accuracy MODEL TEXT [--tokens N]`` prints a Markdown table. The reference is
float64 solved to 1e-6 in one call. Speed is in the table for comparison within it only.
"""

import queue
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.scored_text import Outcome, make_parser, prepare
from deq_model.checkpoint import load_checkpoint
from server.engine.engine import Engine
from server.engine.limits import EngineLimits
from server.engine.requests import ScoreJob
from server.engine.results import Event, Scored
from server.engine.solve import Solve, SolveStats

OFF = 0.05
"""A log-probability that differs by more than this from the reference counts as off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A way of scoring: number format, tolerance, budget, and tokens a call (0 for all)."""

    dtype: torch.dtype
    tol: float
    cut: int = 0
    max_nfe: int = 100


SETTINGS = (
    Setting(dtype=torch.float64, tol=1e-6, max_nfe=400),
    Setting(dtype=torch.float32, tol=1e-3),
    Setting(dtype=torch.float32, tol=3e-3),
    Setting(dtype=torch.float16, tol=3e-3),
    Setting(dtype=torch.float16, tol=3e-3, cut=17),
    Setting(dtype=torch.float16, tol=3e-3, cut=1),
    Setting(dtype=torch.float16, tol=1e-2),
    Setting(dtype=torch.bfloat16, tol=5e-3),
)


def measure(model: Path, tokens: tuple[int, ...], setting: Setting) -> Outcome:
    """Scores the tokens in a session, as many a call as the setting says."""
    engine = Engine(
        load_checkpoint(model, device="cpu"),
        name="measured",
        device=torch.device("cpu"),
        dtype=setting.dtype,
        limits=EngineLimits(),
    )
    engine.start()
    view = engine.sessions.create(owner="", ttl_s=3600, solve=Solve())
    lease = engine.sessions.acquire(view.session_id, "")
    solve = Solve(tol=setting.tol, max_nfe=setting.max_nfe)
    found: list[float] = []
    stats, cut, began = SolveStats(), setting.cut or len(tokens), time.perf_counter()
    for begin in range(0, len(tokens), cut):
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        part = tokens[begin : begin + cut]
        engine.submit(
            ScoreJob(job_id=str(begin), tokens=part, sink=events.put, lease=lease, solve=solve)
        )
        event = events.get()
        assert isinstance(event, Scored), event
        found += [token.logprob for token in event.tokens]
        stats += event.stats
    seconds = time.perf_counter() - began
    engine.stop(grace_s=1)
    return Outcome(torch.tensor(found, dtype=torch.float64), stats, seconds)


def row(setting: Setting, outcome: Outcome, reference: torch.Tensor) -> str:
    """A row of the table."""
    change = (outcome.logprob - reference).abs()
    stats = outcome.stats
    perplexity = float((-outcome.logprob).mean().exp())
    relative = perplexity / float((-reference).mean().exp()) - 1
    cells = (
        str(setting.dtype).removeprefix("torch."),
        f"{setting.tol:g}",
        str(setting.cut or len(reference)),
        f"{stats.token_evaluations / stats.solved_tokens:.1f}",
        f"{stats.unconverged_tokens / stats.solved_tokens:.2%}",
        f"{float(change.median()):.1e}",
        f"{float(change.mean()):.1e}",
        f"{float((change > OFF).double().mean()):.2%}",
        f"{perplexity:.3f}",
        f"{relative:+.3%}",
        f"{len(reference) / outcome.seconds:.0f}",
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Prints the table."""
    options = make_parser(__doc__).parse_args()
    tokens = prepare(options)
    print(
        "| dtype | tol | cut | calls of f a token | not converged | median change | mean change "
        "| off | perplexity | change | tokens/s |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    reference: torch.Tensor | None = None
    for setting in SETTINGS:
        outcome = measure(options.model, tokens, setting)
        reference = outcome.logprob if reference is None else reference
        print(row(setting, outcome, reference), flush=True)


if __name__ == "__main__":
    main()
