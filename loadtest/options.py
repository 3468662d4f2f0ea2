"""What ``deqlm loadtest`` takes; every class checks itself, so that nothing impossible starts."""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final, Literal

from loadtest.sizes import Sizes
from loadtest.target import Connection, check_range

KINDS: Final = ("score", "stream", "generate", "session", "fork", "cancel")
"""What a request may be."""

MOST_ARRIVALS: Final = 2_000_000
"""Of one stage: all of them are kept."""
MOST_CLIENTS: Final = 10_000
MOST_PROCESSES: Final = 64
_LONGEST_S: Final = 86_400.0

Pattern = Literal["poisson", "constant", "bursts", "closed", "trace"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Connection):
    """A load test.

    Attributes:
        out: folder to write to, new or empty; none makes loadtest-DATE-TIME here
        processes: processes that send, so that the client is not the bottleneck
        timeout_s: seconds from the moment a request is due until it is given up
        most_in_flight: requests of one process that may be under way; one that is due beyond them
            is dropped, and counted
        seed: of arrivals, kinds, sizes and texts
        repeats: times that every stage is run, each with a seed of its own
        text: UTF-8 file that texts are cut from, plain or .xz; none takes one that comes with it
        tokens: ask for every token's log-probability, not for the sums alone
    """

    out: Path | None = None
    processes: int = 2
    timeout_s: float = 30.0
    most_in_flight: int = 2000
    seed: int = 1
    repeats: int = 1
    text: Path | None = None
    tokens: bool = False

    def __post_init__(self) -> None:
        """Check the bounds."""
        Connection.__post_init__(self)
        check_range(self, "processes", 1, MOST_PROCESSES)
        check_range(self, "timeout_s", 0.001, 3600.0)
        check_range(self, "most_in_flight", 1, 100_000)
        check_range(self, "repeats", 1, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """When requests are sent.

    Attributes:
        pattern: poisson, constant and bursts are open loops, which send at their rates whether or
            not answers come; closed is clients that each wait for theirs; trace repeats arrivals
            that were recorded
        rates: requests per second of each stage; none measures the capacity by a closed loop first
            and takes times of it
        times: the stages as multiples of that capacity
        clients: clients of each stage of a closed loop
        capacity_clients: clients that measure the capacity
        seconds: of a stage, after its warm-up
        warmup_s: seconds at its begin that are sent and not counted
        burst: requests of a burst; bursts themselves come by a Poisson process
        think_s: seconds that a client of a closed loop waits after an answer
        trace: file of recorded arrivals (deqlm loadtest record), or the folder of a run
        speeds: the stages of a trace: how many times as fast as it was recorded
    """

    pattern: Pattern = "poisson"
    rates: tuple[float, ...] = ()
    times: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0)
    clients: tuple[int, ...] = (1, 4, 16, 64)
    capacity_clients: int = 32
    seconds: float = 20.0
    warmup_s: float = 3.0
    burst: int = 10
    think_s: float = 0.0
    trace: Path | None = None
    speeds: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        """Check the bounds."""
        check_range(self, "seconds", 0.1, _LONGEST_S)
        check_range(self, "warmup_s", 0.0, _LONGEST_S)
        check_range(self, "think_s", 0.0, _LONGEST_S)
        check_range(self, "capacity_clients", 1, MOST_CLIENTS)
        check_range(self, "burst", 1, 100_000)
        for name in ("rates", "times", "speeds"):
            self._check_positive(name)
        for clients in self.clients:
            if not 1 <= clients <= MOST_CLIENTS:
                raise ValueError(f"clients must be in [1, {MOST_CLIENTS}], got {clients}")
        for rate in self.rates:
            check_arrivals(rate, self.seconds + self.warmup_s)
        for name in {"closed": ("clients",), "trace": ("speeds",)}.get(self.pattern, ("times",)):
            if not getattr(self, name) and not (name == "times" and self.rates):
                raise ValueError(f"{name} must not be empty with pattern {self.pattern}")
        if (self.pattern == "trace") != (self.trace is not None):
            raise ValueError("trace must name a file with pattern trace, and only then")

    def _check_positive(self, name: str) -> None:
        for value in getattr(self, name):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be finite numbers above 0, got {value:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """How often each kind of request is sent: weights, of which at least one is above 0.

    Attributes:
        score: score a text in one call
        stream: score a text piece by piece on a stream
        generate: continue a prompt, streamed token by token
        session: score the next lines of a session
        fork: fork a session, and score on the copy
        cancel: generate or score, and cancel it amid
    """

    score: float = 4.0
    stream: float = 1.0
    generate: float = 2.0
    session: float = 2.0
    fork: float = 0.5
    cancel: float = 0.5

    def __post_init__(self) -> None:
        """Check the bounds."""
        for kind in KINDS:
            check_range(self, kind, 0.0, 1e9)
        if not any(self.weights):
            raise ValueError(f"one of {', '.join(KINDS)} must be above 0, got an empty mix")

    @property
    def weights(self) -> tuple[float, ...]:
        """In the order of KINDS."""
        return tuple(getattr(self, kind) for kind in KINDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How long texts are: fixed:N, uniform:LEAST:MOST, lognormal:MEDIAN:SIGMA:MOST or
    geometric:MEAN:MOST.

    Attributes:
        score: words of a text that is scored in one call
        stream: words of one that is streamed
        piece: words of a piece of it
        prompt: words of a prompt
        tokens: tokens to generate
        session: words that a session goes on with
        turns: calls that a session has until it is deleted
        cancel_s: most seconds after which a call that is to be cancelled is
    """

    score: str = "lognormal:30:0.6:300"
    stream: str = "lognormal:40:0.6:300"
    piece: str = "uniform:4:12"
    prompt: str = "lognormal:12:0.6:100"
    tokens: str = "lognormal:24:0.5:128"
    session: str = "lognormal:15:0.5:100"
    turns: str = "fixed:8"
    cancel_s: float = 0.3

    def __post_init__(self) -> None:
        """Check the spellings."""
        for item in fields(self):
            if item.name != "cancel_s":
                try:
                    Sizes.of(getattr(self, item.name))
                except ValueError as error:
                    raise ValueError(f"{item.name} {error}") from None
        check_range(self, "cancel_s", 0.0, 3600.0)


def check_arrivals(rate: float, seconds: float) -> None:
    """Raises ValueError where a stage would have more arrivals than can be kept."""
    if rate * seconds > MOST_ARRIVALS:
        raise ValueError(
            f"rates: {rate:g} a second for {seconds:g} s are {rate * seconds:.3g} requests, and a "
            f"stage may have {MOST_ARRIVALS}"
        )
