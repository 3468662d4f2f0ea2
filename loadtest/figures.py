"""Figures of stages, computed from the records."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from loadtest.objectives import Objectives
from loadtest.records import Record
from loadtest.results import StageResult
from loadtest.timings import Timings, per_token_s, timings

SCORING: Final = ("score", "stream", "session", "fork")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What one stage came to; rates are per second that counts.

    Attributes:
        due: requests that were due.
        due_per_s: their rate.
        answered_per_s: requests answered while the stage lasted.
        good_per_s: of them, those that kept to their objectives.
        good_share: share of those due that did, cancelled ones left out.
        tokens_per_s: tokens scored and generated while the stage lasted.
        scored_per_s: of them, those scored.
        generated_per_s: of them, those generated.
        perplexity: of all that was scored; NaN where nothing was.
        nfe: calls of f on a token; NaN where nothing was solved.
        shared_share: share of the tokens that took none, as what began alike had been solved.
        unconverged: tokens accepted above their tolerance.
        dropped: requests that the client could not send.
        late: requests that it sent more than 10 ms late.
        cancelled: requests that it cancelled, as planned.
        failed_share: share of what was due that ended in no answer and was not to be cancelled.
        statuses: requests by how they ended.
    """

    due: int
    due_per_s: float
    answered_per_s: float
    good_per_s: float
    good_share: float
    tokens_per_s: float
    scored_per_s: float
    generated_per_s: float
    perplexity: float
    nfe: float
    shared_share: float
    unconverged: int
    dropped: int
    late: int
    cancelled: int
    failed_share: float
    statuses: dict[str, int]


LATE_S: Final = 0.01
"""From which on a request counts as sent late."""


def is_good(record: Record, objectives: Objectives) -> bool:
    """Whether a request was answered within its objectives, counted from when it was due."""
    if not record.is_ok:
        return False
    if record.plan.kind in SCORING:
        return _within(record.seconds, objectives.score_s)
    first_s = record.times_s[0] - record.plan.at_s if record.times_s else record.seconds
    return (
        _within(record.seconds, objectives.generate_s)
        and _within(first_s, objectives.first_s)
        and _within(per_token_s(record), objectives.token_s)
    )


def _within(seconds: float, bound: float | None) -> bool:
    return bound is None or seconds <= bound


def rates(result: StageResult, objectives: Objectives) -> Rates:
    """What a stage came to."""
    counted, seconds = result.counted, result.counted_s
    begin, end = result.stage.warmup_s, result.stage.warmup_s + seconds
    judged = [one for one in counted if one.plan.kind != "cancel"]
    good = sum(is_good(one, objectives) for one in judged)
    ended = [one for one in result.records if begin <= one.done_s < end]
    scored = sum(one.scored for one in ended)
    generated = sum(begin <= at_s < end for one in result.records for at_s in _drawn_s(one))
    return Rates(
        due=len(counted),
        due_per_s=len(counted) / seconds,
        answered_per_s=sum(one.is_ok for one in ended) / seconds,
        good_per_s=sum(is_good(one, objectives) for one in ended) / seconds,
        good_share=good / len(judged) if judged else 1.0,
        tokens_per_s=(scored + generated) / seconds,
        scored_per_s=scored / seconds,
        generated_per_s=generated / seconds,
        perplexity=_perplexity(counted),
        nfe=_nfe(counted),
        shared_share=_shared_share(counted),
        unconverged=sum(one.unconverged for one in counted),
        dropped=sum(one.status == "DROPPED" for one in counted),
        late=sum(one.lag_s > LATE_S for one in counted),
        cancelled=sum(one.plan.kind == "cancel" and one.status == "CANCELLED" for one in counted),
        failed_share=sum(not one.is_ok for one in judged) / len(judged) if judged else 0.0,
        statuses=dict(sorted(Counter(map(status_of, counted)).items())),
    )


def status_of(record: Record) -> str:
    """How it ended, with the server's reason."""
    return f"{record.status} ({record.reason})" if record.reason else record.status


def _drawn_s(record: Record) -> Sequence[float]:
    return record.times_s if record.generated else ()


def _perplexity(records: Iterable[Record]) -> float:
    """exp of the mean negative log-probability of a token."""
    answered = [one for one in records if one.scored]
    tokens = sum(one.scored for one in answered)
    if not tokens:
        return math.nan
    return math.exp(min(700.0, -sum(one.logprob for one in answered) / tokens))


def _nfe(records: Iterable[Record]) -> float:
    records = list(records)
    tokens = sum(one.solved for one in records)
    return sum(one.nfe for one in records) / tokens if tokens else math.nan


def _shared_share(records: Iterable[Record]) -> float:
    records = list(records)
    shared = sum(one.shared for one in records)
    tokens = shared + sum(one.solved for one in records)
    return shared / tokens if tokens else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """A stage and its repeats.

    Attributes:
        results: one for each repeat.
        rates: the same.
        timings: of all of them together.
    """

    results: list[StageResult]
    rates: list[Rates]
    timings: Timings

    @property
    def label(self) -> str:
        """What the repeats share."""
        return self.results[0].stage.label

    @property
    def load(self) -> float:
        """Requests that were due per second; clients of a closed loop."""
        stage = self.results[0].stage
        return float(stage.clients) if stage.is_closed else self.mean("due_per_s")

    def values(self, name: str) -> list[float]:
        """One rate of each repeat."""
        return [float(getattr(one, name)) for one in self.rates]

    def mean(self, name: str) -> float:
        """Mean of a rate over repeats."""
        values = self.values(name)
        return sum(values) / len(values)

    def to_json(self) -> dict[str, Any]:
        """For figures.json."""
        named = self.timings.named()
        return {
            "label": self.label,
            "load": self.load,
            "repeats": [_to_json(one) for one in self.rates],
            "seconds": {name: one.quantiles().to_json() for name, one in named.items()},
        }


def _to_json(one: Rates) -> dict[str, Any]:
    told = {name: getattr(one, name) for name in Rates.__slots__}
    numbers = {k: v for k, v in told.items() if isinstance(v, float)}
    return told | {k: v if math.isfinite(v) else None for k, v in numbers.items()}


def figures(results: Iterable[StageResult], objectives: Objectives) -> list[Figures]:
    """By stage, its repeats together, in the order of their first."""
    together: dict[str, list[StageResult]] = {}
    for result in results:
        together.setdefault(result.stage.label, []).append(result)
    return [
        Figures(results=some, rates=[rates(one, objectives) for one in some], timings=timings(some))
        for some in together.values()
    ]
