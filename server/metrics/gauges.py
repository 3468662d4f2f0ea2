"""What is read from engines and store when somebody looks at the metrics."""

from collections.abc import Callable, Iterable

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from server.engine.engine import Engine
from server.engine.limits import EngineSnapshot
from server.metrics.devices import device_memory

# (name, help, field of the snapshot)
_GAUGES = (
    ("deqlm_num_requests_running", "Requests being worked on", "running_jobs"),
    ("deqlm_num_requests_waiting", "Requests waiting for admission", "waiting_jobs"),
    ("deqlm_num_tokens_waiting", "Tokens waiting for admission", "waiting_tokens"),
    ("deqlm_num_texts_parked", "Texts that wait for others that begin alike", "parked_texts"),
    ("deqlm_sessions", "Sessions held", "sessions"),
    ("deqlm_session_memory_bytes", "Memory of sessions", "session_memory_bytes"),
    ("deqlm_engine_memory_bytes", "Memory of all slots", "memory_bytes"),
    ("deqlm_slots_used", "Slots for histories in use", "slots_used"),
    ("deqlm_slots_total", "Slots for histories", "slots_total"),
    ("deqlm_resident_sessions", "Sessions whose memory is on the device", "resident_sessions"),
    ("deqlm_prefix_tokens", "Tokens kept for prompts that begin alike", "prefix_tokens"),
    ("deqlm_loosening", "Whether tolerances are loosened now, 0 or 1", "loosening"),
)

# (name, help, label, (value of the label, field of the snapshot) ...)
_MOVES = (
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
# (name, help, field of the snapshot)
_COUNTS = (
    (
        "deqlm_session_repairs",
        "Sessions whose memory held NaN or infinity and was solved again",
        "sessions_repaired",
    ),
    (
        "deqlm_repeated_parts",
        "What was done again for some requests, as it had failed for more of them at once",
        "repeated_parts",
    ),
)
_REASONS = (
    ("places", "waiting_for_places"),
    ("share", "waiting_for_share"),
    ("turn", "waiting_for_turn"),
)
_LIMITS = ("max_queue", "max_queue_tokens", "max_running", "max_batch_tokens", "max_sessions")


class EngineGauges(Collector):
    """Reads the engines when somebody looks."""

    def __init__(self) -> None:
        self.engines: list[Engine] = []
        self.is_ready: Callable[[], bool] = lambda: False

    def collect(self) -> Iterable[Metric]:
        """The gauges, one sample for each engine."""
        engines = list(self.engines)
        snapshots = [(engine.name, engine.snapshot()) for engine in engines]
        for name, text, field in _GAUGES:
            yield _family(name, text, [(n, float(getattr(s, field))) for n, s in snapshots])
        for name, text, label, fields in _MOVES:
            counter = CounterMetricFamily(name, text, labels=("model", label))
            for model, snapshot in snapshots:
                for value, field in fields:
                    counter.add_metric((model, value), float(getattr(snapshot, field)))
            yield counter
        for name, text, field in _COUNTS:
            counter = CounterMetricFamily(name, text, labels=("model",))
            for model, snapshot in snapshots:
                counter.add_metric((model,), float(getattr(snapshot, field)))
            yield counter
        usage = [(name, _share(snapshot)) for name, snapshot in snapshots]
        yield _family("deqlm_cache_usage_ratio", "Share of the slots in use, 0 to 1", usage)
        yield _waiting(snapshots)
        yield device_memory(engine.device for engine in engines)
        yield from self._of_engines(engines)

    def _of_engines(self, engines: list[Engine]) -> Iterable[Metric]:
        limits = GaugeMetricFamily(
            "deqlm_limit", "Sizes that the server was given", labels=("model", "limit")
        )
        about = InfoMetricFamily("deqlm_model", "Models that are served", labels=("model",))
        for engine in engines:
            for name in _LIMITS:
                limits.add_metric((engine.name, name), float(getattr(engine.limits, name)))
            about.add_metric((engine.name,), _about(engine))
        yield limits
        yield about
        alive = [(engine.name, float(engine.alive)) for engine in engines]
        yield _family("deqlm_engine_up", "Whether the engine's thread runs, 0 or 1", alive)
        yield GaugeMetricFamily(
            "deqlm_ready", "Whether calls are taken, 0 or 1", value=float(self.is_ready())
        )


def _waiting(snapshots: list[tuple[str, EngineSnapshot]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "deqlm_num_requests_waiting_by_reason",
        "Requests waiting for admission, by what they wait for",
        labels=("model", "reason"),
    )
    for model, snapshot in snapshots:
        for reason, field in _REASONS:
            family.add_metric((model, reason), float(getattr(snapshot, field)))
    return family


def _about(engine: Engine) -> dict[str, str]:
    return {
        "fingerprint": engine.fingerprint,
        "device": str(engine.device),
        "dtype": str(engine.dtype).removeprefix("torch."),
        "solver": engine.solver,
    }


def _family(name: str, text: str, samples: list[tuple[str, float]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=("model",))
    for model, value in samples:
        family.add_metric((model,), value)
    return family


def _share(snapshot: EngineSnapshot) -> float:
    return snapshot.slots_used / snapshot.slots_total if snapshot.slots_total else 0.0
