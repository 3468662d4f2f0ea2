"""Metrics for Prometheus: names as other servers of language models have them, and our own.

Every server has a registry of its own, so that several can live in one process.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.engine.engine import Engine
from server.engine.limits import EngineSnapshot
from server.engine.solve import Solved
from server.security.counts import SecurityCounts
from server.store.keeper import Keeper

_FIRST_TOKEN: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
    10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
_PER_TOKEN: Final = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
    10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_LONG: Final = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
    120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
_LENGTH: Final = tuple(step * 10**power for power in range(6) for step in (1, 2, 5))
_ROWS: Final = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_NFE: Final = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 75, 100, 200, 500, 1000)
_RESIDUAL: Final = tuple(step * 10.0**power for power in range(-8, 1) for step in (1, 2, 5))
_CALL_SECONDS: Final = tuple(step * 10.0**power for power in range(-4, 1) for step in (1, 2, 5))

_REFUSAL: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

# (name, help, field of the snapshot)
_GAUGES: Final = (
    ("deqlm_num_requests_running", "Requests being worked on", "running_jobs"),
    ("deqlm_num_requests_waiting", "Requests waiting for admission", "waiting_jobs"),
    ("deqlm_num_tokens_waiting", "Tokens waiting for admission", "waiting_tokens"),
    ("deqlm_sessions", "Sessions held", "sessions"),
    ("deqlm_session_memory_bytes", "Memory of sessions", "session_memory_bytes"),
    ("deqlm_engine_memory_bytes", "Memory of weights, slots and work", "memory_bytes"),
    ("deqlm_slots_used", "Slots for histories in use", "slots_used"),
    ("deqlm_slots_total", "Slots for histories", "slots_total"),
    ("deqlm_resident_sessions", "Sessions whose memory is on the device", "resident_sessions"),
    ("deqlm_prefix_tokens", "Tokens kept for prompts that begin alike", "prefix_tokens"),
    ("deqlm_loosening", "Whether tolerances are loosened now, 0 or 1", "loosening"),
)

# (name, help, label, (value of the label, field of the snapshot) ...)
_MOVES: Final = (
    (
        "deqlm_session_returns",
        "Sessions that came back to the device",
        "by",
        (("states", "sessions_from_states"), ("tokens", "sessions_from_tokens")),
    ),
    (
        "deqlm_session_evictions",
        "Sessions that left the device",
        "reason",
        (("idle", "sessions_left_idle"), ("budget", "sessions_left_full")),
    ),
)


class Metrics:
    """What one server counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._engines = _EngineGauges()
        self.registry.register(self._engines)
        self._store = _StoreGauges()
        self.registry.register(self._store)
        ProcessCollector(registry=self.registry)
        self.security = SecurityCounts(self.registry)
        self._requests = self._counter(
            "request_success", "Calls ended, by reason", "method", "finished_reason"
        )
        self._errors = self._counter("errors", "Calls that failed, by status", "method", "code")
        self._rejections = self._counter("rejections", "Calls refused at admission", "reason")
        self._refusal = self._histogram(
            "refusal_seconds", "From the arrival of a call to its refusal", _REFUSAL
        )
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts and scored input")
        self._scored_tokens = self._counter("scored_tokens", "Tokens scored, candidates included")
        self._generated = self._counter("generation_tokens", "Tokens generated")
        self._unconverged = self._counter(
            "unconverged_tokens", "Tokens accepted at the end of their budget", "status"
        )
        self._loosened = self._counter(
            "loosened_tokens", "Tokens accepted above their tolerance under overload"
        )
        self._f_calls = self._counter("f_calls", "Calls of f")
        self._warm = self._counter(
            "warm_started_tokens", "Tokens whose solve began at a fitted first state"
        )
        self._guessed = self._counter(
            "guessed_tokens", "Guesses of tokens to be drawn, by what they turned out", "outcome"
        )
        self._shared = self._counter(
            "shared_tokens", "Tokens that took no call of f, as others had solved them"
        )
        self._first_token = self._histogram(
            "time_to_first_token_seconds", "From the call to its first token", _FIRST_TOKEN
        )
        self._inter_token = self._histogram(
            "inter_token_latency_seconds", "Between two tokens of a call", _PER_TOKEN
        )
        self._per_token = self._histogram(
            "request_time_per_output_token_seconds",
            "Mean of a call, without its first",
            _PER_TOKEN,
        )
        self._e2e = self._histogram("e2e_request_latency_seconds", "Whole calls", _LONG)
        self._queue = self._histogram("request_queue_time_seconds", "Before admission", _LONG)
        self._prefill = self._histogram("request_prefill_time_seconds", "Solving prompts", _LONG)
        self._decode = self._histogram("request_decode_time_seconds", "Drawing tokens", _LONG)
        self._prompt_length = self._histogram("request_prompt_tokens", "Tokens of input", _LENGTH)
        self._generated_length = self._histogram(
            "request_generation_tokens", "Tokens generated by a call", _LENGTH
        )
        self._rows = self._histogram("iteration_tokens", "Rows in one call of f", _ROWS)
        self._sequences = self._histogram("iteration_sequences", "Sequences in it", _ROWS)
        self._call_seconds = self._histogram("f_call_seconds", "One call of f", _CALL_SECONDS)
        self._nfe = self._histogram("nfe_per_token", "Calls of f on one token", _NFE)
        self._residual = self._histogram(
            "token_residual", "Relative residual at which a token was accepted", _RESIDUAL
        )

        self._store_seconds = Histogram(
            "deqlm_store_seconds",
            "One read or write of the session store",
            ("operation",),
            buckets=_CALL_SECONDS,
            registry=self.registry,
        )
        self._store_errors = Counter(
            "deqlm_store_errors",
            "Reads and writes of the session store that failed",
            ("operation",),
            registry=self.registry,
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"deqlm_{name}", text, ("model", *labels), registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(
            f"deqlm_{name}", text, ("model",), buckets=tuple(buckets), registry=self.registry
        )

    def add_keeper(self, keeper: Keeper) -> None:
        """Show what a session store has from now on."""
        self._store.keeper = keeper

    def store_called(self, operation: str, seconds: float, *, failed: bool) -> None:
        """The session store was read or written; called on its thread."""
        self._store_seconds.labels(operation).observe(seconds)
        if failed:
            self._store_errors.labels(operation).inc()

    def add_engine(self, engine: Engine) -> None:
        """Show an engine's gauges from now on."""
        self._engines.engines.append(engine)

    def observer(self, model: str) -> "EngineMetrics":
        """What an engine reports to."""
        return EngineMetrics(
            f_calls=self._f_calls.labels(model),
            warm=self._warm.labels(model),
            rows=self._rows.labels(model),
            sequences=self._sequences.labels(model),
            seconds=self._call_seconds.labels(model),
            nfe=self._nfe.labels(model),
            residual=self._residual.labels(model),
            max_nfe=self._unconverged.labels(model, "max_nfe"),
            nonfinite=self._unconverged.labels(model, "nonfinite"),
            loosened=self._loosened.labels(model),
            shared=self._shared.labels(model),
            right=self._guessed.labels(model, "right"),
            withdrawn=self._guessed.labels(model, "withdrawn"),
        )

    def call_ended(self, model: str, method: str, reason: str, seconds: float) -> None:
        """A scoring or generating call is over."""
        self._requests.labels(model, method, reason).inc()
        self._e2e.labels(model).observe(seconds)

    def call_failed(self, model: str, method: str, code: str) -> None:
        """A call of any kind failed."""
        self._errors.labels(model, method, code).inc()

    def rejected(self, model: str, reason: str) -> None:
        """There was no room for a call."""
        self._rejections.labels(model, reason).inc()

    def refused(self, model: str, seconds: float) -> None:
        """A call was told at once that it would not be done, so long after its arrival."""
        self._refusal.labels(model).observe(seconds)

    def input_solved(self, model: str, *, tokens: int, scored: int, queue_s: float) -> None:
        """The input of a scoring job, ``scored`` with its candidates, is done."""
        self._prompt_tokens.labels(model).inc(tokens)
        self._scored_tokens.labels(model).inc(scored)
        self._prompt_length.labels(model).observe(tokens)
        self._queue.labels(model).observe(queue_s)

    def prompt_solved(self, model: str, *, tokens: int) -> None:
        """The prompt of a generation is done."""
        self._prompt_tokens.labels(model).inc(tokens)
        self._prompt_length.labels(model).observe(tokens)

    def token_drawn(self, model: str, *, is_first: bool, seconds: float) -> None:
        """A token came, so many seconds after the call's start or the token before."""
        self._generated.labels(model).inc()
        (self._first_token if is_first else self._inter_token).labels(model).observe(seconds)

    def generated(
        self, model: str, *, tokens: int, queue_s: float, prefill_s: float, decode_s: float
    ) -> None:
        """A generation ended in an orderly way."""
        self._generated_length.labels(model).observe(tokens)
        self._queue.labels(model).observe(queue_s)
        self._prefill.labels(model).observe(max(prefill_s, 0.0))
        self._decode.labels(model).observe(decode_s)

    def time_per_token(self, model: str, seconds: float) -> None:
        """Mean time between the tokens of a call."""
        self._per_token.labels(model).observe(seconds)


class EngineMetrics:
    """Takes what an engine reports, on its thread."""

    def __init__(
        self,
        *,
        f_calls: Counter,
        warm: Counter,
        rows: Histogram,
        sequences: Histogram,
        seconds: Histogram,
        nfe: Histogram,
        residual: Histogram,
        max_nfe: Counter,
        nonfinite: Counter,
        loosened: Counter,
        shared: Counter,
        right: Counter,
        withdrawn: Counter,
    ) -> None:
        self._f_calls, self._warm = f_calls, warm
        self._shared, self._right, self._withdrawn = shared, right, withdrawn
        self._rows = rows
        self._sequences = sequences
        self._seconds = seconds
        self._nfe = nfe
        self._residual = residual
        self._unconverged = {"max_nfe": max_nfe, "nonfinite": nonfinite, "loosened": loosened}

    def started_warm(self, tokens: int) -> None:
        """So many tokens entered whose solves begin at fitted first states."""
        self._warm.inc(tokens)

    def shared(self, tokens: int) -> None:
        """So many tokens were taken over, as others had solved them."""
        self._shared.inc(tokens)

    def guessed(self, *, right: int, withdrawn: int) -> None:
        """So many guesses of tokens to be drawn have turned out right, so many were withdrawn."""
        self._right.inc(right)
        self._withdrawn.inc(withdrawn)

    def step(self, *, rows: int, sequences: int, seconds: float) -> None:
        """One call of f was made on ``rows`` tokens of ``sequences`` sequences."""
        self._f_calls.inc()
        self._rows.observe(rows)
        self._sequences.observe(sequences)
        self._seconds.observe(seconds)

    def solved(self, tokens: Sequence[Solved]) -> None:
        """Tokens were accepted."""
        for token in tokens:
            self._nfe.observe(token.nfe)
            self._residual.observe(token.residual)
            if token.status != "converged":
                self._unconverged[token.status].inc()


class _EngineGauges(Collector):
    """Reads the engines when somebody looks."""

    def __init__(self) -> None:
        self.engines: list[Engine] = []

    def collect(self) -> Iterable[Metric]:
        """The gauges, one sample for each engine."""
        snapshots = [(engine.name, engine.snapshot()) for engine in self.engines]
        for name, text, field in _GAUGES:
            yield _family(name, text, [(n, float(getattr(s, field))) for n, s in snapshots])
        for name, text, label, fields in _MOVES:
            counter = CounterMetricFamily(name, text, labels=("model", label))
            for model, snapshot in snapshots:
                for value, field in fields:
                    counter.add_metric((model, value), float(getattr(snapshot, field)))
            yield counter
        usage = [(name, _share(snapshot)) for name, snapshot in snapshots]
        yield _family("deqlm_cache_usage_ratio", "Share of the slots in use, 0 to 1", usage)


class _StoreGauges(Collector):
    """Asks the keeper of the store when somebody looks."""

    def __init__(self) -> None:
        self.keeper: Keeper | None = None

    def collect(self) -> Iterable[Metric]:
        """The gauges, without labels: models share the store."""
        keeper = self.keeper
        sessions, size = (0, 0) if keeper is None else keeper.stored
        waiting = 0 if keeper is None else keeper.waiting
        is_up = keeper is not None and keeper.is_up
        for name, text, value in (
            ("deqlm_store_up", "Whether the session store answers, 0 or 1", is_up),
            ("deqlm_store_sessions", "Sessions in the session store", sessions),
            ("deqlm_store_bytes", "Bytes of sessions in the session store", size),
            ("deqlm_store_waiting", "Sessions the store has yet to take", waiting),
        ):
            yield GaugeMetricFamily(name, text, value=float(value))


def _family(name: str, text: str, samples: list[tuple[str, float]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=("model",))
    for model, value in samples:
        family.add_metric((model,), value)
    return family


def _share(snapshot: EngineSnapshot) -> float:
    return snapshot.slots_used / snapshot.slots_total if snapshot.slots_total else 0.0
