"""Whether client and server have counted the same calls and tokens.

A call that the client gave up (cancelled, or late) may have come to any end at the server, or never
have got there, so such calls leave a range; without them the counts must be equal.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from loadtest.counts import Key
from loadtest.records import FOUND_HERE, UNTOLD, Record

MEASURED: Final = ("Score", "ScoreStream", "Generate")
"""Methods whose calls the server counts whether or not they fail."""
_COMPARED: Final = (*MEASURED, "CreateSession", "ForkSession")
"""Methods whose failures are compared; sessions are deleted as often as that takes."""
_OK_REASONS: Final = frozenset({"scored", "stop", "length", "budget"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """One count on both sides; the server's must be in the range that the client's allows."""

    name: str
    server: float
    least: float
    most: float

    @property
    def agrees(self) -> bool:
        """Whether it is."""
        return self.least <= self.server <= self.most

    def __str__(self) -> str:
        """One line."""
        if not math.isfinite(self.most):
            client = f"at least {self.least:.0f}"
        elif self.most != self.least:
            client = f"{self.least:.0f} to {self.most:.0f}"
        else:
            client = f"{self.least:.0f}"
        return f"{self.name}: the server counted {self.server:.0f}, the client {client}"

    def to_json(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "server": self.server,
            "least": self.least,
            "most": self.most if math.isfinite(self.most) else None,
            "agrees": self.agrees,
        }


def compare(records: Iterable[Record], grown: Mapping[Key, float]) -> list[Count]:
    """Every count that both sides have, of the requests of one stage.

    Args:
        records: all of them, warm-up included.
        grown: how much the server's counters have grown meanwhile.
    """
    records = list(records)
    ended = Counter(call for record in records for call in record.calls)
    counts = [count for method in MEASURED for count in _calls(method, ended, grown)]
    codes = {status for _, status in ended if status != "OK" and not _is_unsure(status)}
    codes |= {_label(key, "code") for key in grown if key[0] == "deqlm_errors_total"} - FOUND_HERE
    counts += [_failures(code, ended, grown) for code in sorted(codes)]
    return [*counts, _scored(records, grown), _generated(records, grown)]


Ended = Mapping[tuple[str, str], int]
"""Calls by method and status."""


def _calls(method: str, ended: Ended, grown: Mapping[Key, float]) -> Iterator[Count]:
    mine = {status: n for (name, status), n in ended.items() if name == method}
    unsure = sum(n for status, n in mine.items() if _is_unsure(status))
    ok, every = mine.get("OK", 0), sum(mine.values())
    theirs = {
        _label(key, "finished_reason"): value
        for key, value in grown.items()
        if key[0] == "deqlm_request_success_total" and _label(key, "method") == method
    }
    answered = sum(value for reason, value in theirs.items() if reason in _OK_REASONS)
    yield Count(name=f"{method} answered", server=answered, least=ok, most=ok + unsure)
    yield Count(
        name=f"{method} in all", server=sum(theirs.values()), least=every - unsure, most=every
    )


def _failures(code: str, ended: Ended, grown: Mapping[Key, float]) -> Count:
    mine = sum(n for (_, status), n in ended.items() if status == code)
    unsure = sum(n for (_, status), n in ended.items() if _is_unsure(status))
    theirs = sum(
        value
        for key, value in grown.items()
        if key[0] == "deqlm_errors_total"
        and _label(key, "code") == code
        and _label(key, "method") in _COMPARED
    )
    name = f"calls that failed with {code}"
    return Count(name=name, server=theirs, least=mine, most=mine + unsure)


def _scored(records: list[Record], grown: Mapping[Key, float]) -> Count:
    """A call that was given up may have been scored all the same."""
    least = sum(record.scored for record in records)
    unsure = [r for r in records if not r.is_ok and r.sent_s is not None and _scores(r)]
    theirs = sum(v for key, v in grown.items() if key[0] == "deqlm_scored_tokens_total")
    most = float("inf") if unsure else float(least)
    return Count(name="tokens scored", server=theirs, least=least, most=most)


def _scores(record: Record) -> bool:
    """Whether one of its calls may have been scored without the client's knowing it."""
    return any(
        (method == "Score" and _is_unsure(status)) or (method == "ScoreStream" and status != "OK")
        for method, status in record.calls
    )


def _generated(records: list[Record], grown: Mapping[Key, float]) -> Count:
    """A generation that was given up drew at most what it was to, and at least what came."""
    least = most = 0
    for record in records:
        unsure = any(m == "Generate" and status != "OK" for m, status in record.calls)
        least += record.generated
        most += max(record.plan.max_tokens, record.generated) if unsure else record.generated
    theirs = sum(v for key, v in grown.items() if key[0] == "deqlm_generation_tokens_total")
    return Count(name="tokens generated", server=theirs, least=least, most=most)


def _is_unsure(status: str) -> bool:
    """Whether the client found it by itself, so that the server may have counted anything."""
    return status in FOUND_HERE or status.endswith(UNTOLD)


def _label(key: Key, name: str) -> str:
    return dict(key[1]).get(name, "")
