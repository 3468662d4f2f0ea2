"""What a warm start saves: one text, generated and scored by the engine from zeros and with it.

``python -m benchmarks.warm_start MODEL TEXT [--tokens N] [--tol TOL]`` prints a Markdown table;
MODEL is a checkpoint that ``deqlm calibrate`` has put a map beside. The text is solved one token at
a time, as in generation, and 16 together. Speed is in the table for comparison within it only.
"""

import queue
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.scored_text import Outcome, make_parser, prepare
from deq_model.checkpoint import load_checkpoint
from deq_model.warm_start import load_warm_start
from server.engine.costs import CostCurve
from server.engine.engine import Engine
from server.engine.limits import EngineLimits
from server.engine.requests import ScoreJob
from server.engine.results import Event, Scored
from server.engine.solve import Solve

NO_ROOM = CostCurve(rows=(1,), times=(1.0,))
"""Every row costs as much as the first, so that only rows that are worth it take part in calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A way of scoring: with the map or from zeros, tokens together, tolerance, number format."""

    warm: bool
    window: int
    tol: float = 3e-3
    max_nfe: int = 100
    dtype: torch.dtype = torch.float32


def exact(*, warm: bool) -> Setting:
    """The fixed points that a start leads to."""
    return Setting(warm=warm, window=1, tol=1e-6, max_nfe=400, dtype=torch.float64)


def measure(model: Path, tokens: tuple[int, ...], setting: Setting) -> Outcome:
    """Scores the tokens in one request."""
    checkpoint = load_checkpoint(model, device="cpu")
    warm_start = load_warm_start(
        model, d_model=checkpoint.config.d_model, fingerprint=checkpoint.fingerprint
    )
    assert warm_start is not None, "deqlm calibrate has put no map beside the checkpoint"
    engine = Engine(
        checkpoint,
        name="measured",
        device=torch.device("cpu"),
        dtype=setting.dtype,
        limits=EngineLimits(window=setting.window),
        warm_start=warm_start if setting.warm else None,
        costs=NO_ROOM,
    )
    engine.start()
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    solve = Solve(tol=setting.tol, max_nfe=setting.max_nfe)
    began = time.perf_counter()
    engine.submit(ScoreJob(job_id="measured", tokens=tokens, sink=events.put, solve=solve))
    event = events.get()
    seconds = time.perf_counter() - began
    engine.stop(grace_s=1)
    assert isinstance(event, Scored), event
    found = [token.logprob for token in event.tokens]
    return Outcome(torch.tensor(found, dtype=torch.float64), event.stats, seconds)


def row(setting: Setting, outcome: Outcome, own: torch.Tensor, zeros: torch.Tensor) -> str:
    """A row of the table."""
    stats = outcome.stats
    change = (outcome.logprob - own).abs()
    perplexity = float((zeros - outcome.logprob).mean().expm1())
    cells = (
        "warm" if setting.warm else "zeros",
        str(setting.window),
        f"{stats.token_evaluations / stats.solved_tokens:.2f}",
        f"{float(change.mean()):.1e}",
        f"{float(change.median()):.1e}",
        f"{perplexity:+.2%}",
        str(stats.unconverged_tokens),
        f"{len(own) / outcome.seconds:.0f}",
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Prints the table."""
    parser = make_parser(__doc__)
    parser.add_argument("--tol", type=float, default=3e-3, help="tolerance of a request")
    options = parser.parse_args()
    tokens = prepare(options)
    own = {warm: measure(options.model, tokens, exact(warm=warm)) for warm in (False, True)}
    print(
        "| start | tokens together | calls of f a token | mean change against its exact states "
        "| median | perplexity against exact from zeros | not converged | tokens/s |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for window in (1, 16):
        for warm in (False, True):
            setting = Setting(warm=warm, window=window, tol=options.tol)
            outcome = measure(options.model, tokens, setting)
            print(row(setting, outcome, own[warm].logprob, own[False].logprob), flush=True)


if __name__ == "__main__":
    main()
