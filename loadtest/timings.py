"""Durations of stages, computed from the records."""

from collections.abc import Iterable
from dataclasses import dataclass

from loadtest.quantiles import Histogram
from loadtest.records import Record
from loadtest.results import StageResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Durations of one stage, or of its repeats together; of requests that were answered.

    Attributes:
        by_kind: from when a request was due to its end.
        every: the same over all kinds; cancelled ones are in neither.
        first: to a generation's first token.
        gap: between two tokens, all generations pooled.
        token: mean of that in one generation.
        refused: from when a request was due to its refusal for want of room.
        lag: by how much the client sent late.
    """

    by_kind: dict[str, Histogram]
    every: Histogram
    first: Histogram
    gap: Histogram
    token: Histogram
    refused: Histogram
    lag: Histogram

    def named(self, *, by_kind: bool = True) -> dict[str, Histogram]:
        """All of them that hold something, by what they are called in tables."""
        kinds = {f"{kind}, whole": one for kind, one in sorted(self.by_kind.items())}
        every = {
            **({"all, whole": self.every} if len(kinds) != 1 or not by_kind else {}),
            **(kinds if by_kind else {}),
            "first token": self.first,
            "between tokens": self.gap,
            "per token": self.token,
            "refusal": self.refused,
            "client's lag": self.lag,
        }
        return {name: one for name, one in every.items() if len(one)}


def timings(results: Iterable[StageResult]) -> Timings:
    """Durations of a stage's repeats."""
    made = Timings(
        by_kind={}, every=Histogram(), first=Histogram(), gap=Histogram(), token=Histogram(),
        refused=Histogram(), lag=Histogram(),
    )  # fmt: skip
    for result in results:
        for record in result.counted:
            _time(record, made)
    return made


def _time(record: Record, to: Timings) -> None:
    kind = record.plan.kind
    if record.sent_s is not None:
        to.lag.add(max(record.lag_s, 0.0))
    if record.status == "RESOURCE_EXHAUSTED":
        to.refused.add(record.seconds)
    if kind in ("generate", "cancel"):
        for before, after in zip(record.times_s, record.times_s[1:], strict=False):
            to.gap.add(after - before)
    if kind == "cancel" or not record.is_ok:
        return
    to.every.add(record.seconds)
    to.by_kind.setdefault(kind, Histogram()).add(record.seconds)
    if kind == "generate" and record.times_s:
        to.first.add(record.times_s[0] - record.plan.at_s)
        if len(record.times_s) > 1:
            to.token.add(per_token_s(record))


def per_token_s(record: Record) -> float:
    """Mean time between tokens; 0 where there are fewer than two."""
    times = record.times_s
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0
