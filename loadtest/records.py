"""What is kept of each request, as one line of JSON; everything else is computed from these."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any, Final

from loadtest.stages import Planned

CUT_OFF: Final = "CUT_OFF"
"""Status of a request that was under way when the run was ended."""
DROPPED: Final = "DROPPED"
"""Of one that was not sent, as the client could not."""
CLIENT_ERROR: Final = "CLIENT_ERROR"
"""Of one that failed by a defect of the client's."""


UNTOLD: Final = "(untold)"
"""Behind the status of a call that gRPC found by itself: the server gives its reasons."""
FOUND_HERE: Final = frozenset({"CANCELLED", "DEADLINE_EXCEEDED", "UNAVAILABLE", CLIENT_ERROR})
"""Statuses that are found by the client as a rule."""


class RecordError(Exception):
    """What was kept cannot be read; the message says where."""


@dataclass(slots=True, kw_only=True)
class Record:
    """One request; times are seconds since its stage's begin.

    Attributes:
        stage: number of the stage.
        process: that sent it.
        plan: what was to be sent, and when.
        sent_s: when it was sent; None if it was not.
        done_s: when it was over.
        times_s: when its tokens came, or the answers of a stream.
        status: OK, a status of gRPC, CUT_OFF, DROPPED or CLIENT_ERROR.
        reason: word in capitals by which the server tells why, or why it was dropped; what gRPC
            says where the server says nothing.
        scored: tokens scored.
        logprob: sum of their log-probabilities.
        generated: tokens generated.
        unconverged: tokens that were accepted above their tolerance.
        nfe: calls of f on its tokens, summed over them.
        solved: tokens that took them, those of prompts included.
        shared: tokens that took none, as the server had solved what began alike.
        queue_s: seconds in the server's queue.
        calls: method and status of each call that it was made of.
    """

    stage: int
    process: int
    plan: Planned
    sent_s: float | None = None
    done_s: float = 0.0
    times_s: list[float] = field(default_factory=list)
    status: str = "OK"
    reason: str = ""
    scored: int = 0
    logprob: float = 0.0
    generated: int = 0
    unconverged: int = 0
    nfe: float = 0.0
    solved: int = 0
    shared: int = 0
    queue_s: float = 0.0
    calls: list[tuple[str, str]] = field(default_factory=list)

    @property
    def is_ok(self) -> bool:
        """Whether it was answered."""
        return self.status == "OK"

    @property
    def seconds(self) -> float:
        """From when it was due to its end."""
        return self.done_s - self.plan.at_s

    @property
    def lag_s(self) -> float:
        """How late the client sent it."""
        return 0.0 if self.sent_s is None else self.sent_s - self.plan.at_s

    def to_line(self) -> str:
        """One line of JSON, times to the microsecond."""
        return json.dumps(_rounded(asdict(self)), separators=(",", ":")) + "\n"


_FIELDS: Final = frozenset(item.name for item in fields(Record))
_PLAN: Final = frozenset(item.name for item in fields(Planned))
_NUMBER: Final = (int, float)
_LONGEST_S: Final = 1e9
"""Of a time that somebody can have measured."""
_COUNTS: Final = (
    "stage", "process", "scored", "generated", "unconverged", "solved", "shared",
)  # fmt: skip
_KINDS: Final = {
    **dict.fromkeys(_COUNTS, (int,)),
    **dict.fromkeys(("at_s", "done_s", "logprob", "nfe", "queue_s"), _NUMBER),
    **dict.fromkeys(("status", "reason", "kind"), (str,)),
    "sent_s": (*_NUMBER, type(None)),
}
"""Of what is sorted, counted and added up; nothing else keeps a file from being read."""


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def from_json(value: Any) -> Record:
    """A record as JSON has it. Raises ValueError, TypeError or KeyError."""
    if set(value) != _FIELDS or set(value["plan"]) != _PLAN:
        raise ValueError("it has other fields than a record")
    calls = [(str(method), str(status)) for method, status in value["calls"]]
    for name, kinds in _KINDS.items():
        if type(found := value.get(name, value["plan"].get(name))) not in kinds:
            raise ValueError(f"{name} must not be {found!r}")
    if any(type(seconds) not in _NUMBER for seconds in value["times_s"]):
        raise ValueError("times_s must be numbers")
    instants = (value["plan"]["at_s"], value["done_s"], value["sent_s"] or 0.0, *value["times_s"])
    if not all(abs(seconds) <= _LONGEST_S for seconds in instants):  # NaN is not
        raise ValueError(f"times must be at most {_LONGEST_S:g} s")
    return Record(**value | {"plan": Planned(**value["plan"]), "calls": calls})


def read_lines(path: Path) -> Iterator[Any]:
    """Values of a file of JSON lines; a last line that was cut off is left out.

    Raises:
        RecordError: it cannot be read, or a line is no JSON.
    """
    try:
        with path.open(encoding="utf-8") as file:
            yield from _values(file, path)
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RecordError(f"{path} is not UTF-8") from None


def _values(file: IO[str], path: Path) -> Iterator[Any]:
    for number, line in enumerate(file, start=1):
        if not line.endswith("\n"):  # the process was killed while it wrote
            return
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            raise RecordError(f"{path}, line {number}: is no JSON") from None


def read_records(folder: Path) -> list[Record]:
    """All requests of a run, by stage and when they were due.

    Raises:
        RecordError: there are none, or they are damaged.
    """
    paths = sorted(folder.glob("requests-*.jsonl"))
    if not paths:
        raise RecordError(f"{folder} has no requests-*.jsonl: it is no folder of a load test")
    records = []
    for path in paths:
        for number, value in enumerate(read_lines(path), start=1):
            try:
                records.append(from_json(value))
            except (ValueError, TypeError, KeyError) as error:
                raise RecordError(f"{path}, line {number}: is no record: {error}") from None
    return sorted(records, key=lambda record: (record.stage, record.plan.at_s))
