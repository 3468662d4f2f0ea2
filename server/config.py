"""What a server is told when it starts: one typed, checked configuration."""

import dataclasses
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from server.engine.limits import EngineLimits
from server.engine.snapshots import StateFormat
from server.engine.solve import Policy, Solve
from server.metrics.buckets import Bounds, read_buckets
from server.security.exposure import exposure_problem
from server.store import redis
from server.telemetry_options import TelemetryOptions

DTypeName = Literal["auto", "float32", "float16", "bfloat16"]
EarlyDType = Literal["auto", "none", "int8"]
WarmStartUse = Literal["auto", "off"]
StoreSync = Literal["normal", "full"]
LogLevel = Literal["debug", "info", "warning", "error"]

METRICS_OFF = -1
"""``metrics_port`` of a server without metrics."""

_MAX_PORT = 65535
_STORE = re.compile(rf"memory|sqlite:.+|[^:]*/.*|{redis.URL.pattern}")
_STORES = f"memory, sqlite:PATH, a path with a / in it, or {redis.URL_FORM}"
_COLLECTOR = re.compile(r"https?://[^/@\s]+:(\d{1,5})")
_COLLECTORS = "http://HOST:PORT or https://HOST:PORT with PORT in [1, 65535]"
_DEVICE = re.compile(r"cpu|cuda(:\d+)?")
_HERE = Path(__file__).resolve().parent
_BUNDLED = next(
    (path for path in (_HERE / "bundled", _HERE.parent / "models") if path.is_dir()),
    _HERE / "bundled",
)
"""That of the installed package, or that of the source tree."""

# Fields that only need to be at least something; what needs more has a check of its own.
_AT_LEAST: dict[str, int] = {
    "max_batch_tokens": 1,
    "max_running": 1,
    "max_queue": 1,
    "max_queue_tokens": 1,
    "max_owner_queue": 1,
    "max_owner_queue_tokens": 1,
    "max_sessions": 1,
    "window": 1,
    "max_text_bytes": 1,
    "max_score_tokens": 1,
    "max_tokens": 1,
    "default_max_tokens": 1,
    "max_candidates": 1,
    "max_top_k": 0,
    "max_stop_strings": 0,
    "max_stop_string_bytes": 1,
    "max_message_bytes": 4096,
    # Below, gRPC's own metadata would fill it.
    "max_metadata_bytes": 1024,
    "max_streams": 1,
    "max_connections": 1,
    "max_nfe": 1,
    "default_max_nfe": 1,
    "overload_queue": 0,
    "guess_ahead": 0,
    "prefix_cache": 0,
    "resident_bytes": 0,
    "answer_bytes": 0,
}
# Sizes that would fill the memory before anything could tell why, and what other code can take.
_AT_MOST: dict[str, int] = {
    "threads": 1024,
    "max_batch_tokens": 1 << 16,
    "max_sessions": 1_000_000,
    "window": 4096,
    "guess_ahead": 64,
    "max_message_bytes": (1 << 31) - 1,
    "max_metadata_bytes": (1 << 31) - 1,
    "max_streams": (1 << 31) - 1,
    "max_connections": (1 << 31) - 1,
}
_DURATIONS = (
    "default_ttl_s",
    "max_ttl_s",
    "store_timeout_s",
    "max_idle_s",
    "handshake_s",
    "min_ping_s",
    "keepalive_s",
    "send_timeout_s",
)
# Options of which one is worth nothing without the other.
_TOGETHER = (("tls_cert", "tls_key"), ("tls_key", "tls_cert"), ("tls_client_ca", "tls_cert"))
# (smaller, larger): a default lies within the bound of requests, and every sequence has a row.
_ORDERED = (
    ("max_running", "max_batch_tokens"),
    ("default_max_tokens", "max_tokens"),
    ("default_max_nfe", "max_nfe"),
    ("default_ttl_s", "max_ttl_s"),
    ("max_text_bytes", "max_message_bytes"),
)


class ServerConfigError(ValueError):
    """The configuration holds an impossible value, or cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """Bounds of requests, as the contract's ``Limits`` tells them.

    Attributes:
        max_text_bytes: longest text of one input, UTF-8.
        max_score_tokens: most tokens of one call or message.
        max_tokens: most tokens generated.
        default_max_tokens: tokens generated when the request does not say.
        max_candidates: most candidates.
        max_top_k: most alternatives per token.
        max_stop_strings: most stop strings.
        max_stop_string_bytes: longest stop string, UTF-8.
        max_nfe: largest budget of calls of f on one token.
        max_ttl_s: longest time to live.
        default_ttl_s: time to live when the request does not say.
        overload_tol: loosest tolerance that an overloaded server may apply; 0 for none.
    """

    max_text_bytes: int
    max_score_tokens: int
    max_tokens: int
    default_max_tokens: int
    max_candidates: int
    max_top_k: int
    max_stop_strings: int
    max_stop_string_bytes: int
    max_nfe: int
    max_ttl_s: float
    default_ttl_s: float
    overload_tol: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A checkpoint to serve: the name in requests, and its folder."""

    name: str
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig(TelemetryOptions):
    """Configuration of a server.

    Attributes:
        model: checkpoint folder to serve, as NAME=PATH; repeatable, the first is the default; empty for the bundled ones.
        host: address to listen on, for calls.
        port: TCP port for calls; 0 takes a free one.
        metrics_host: address to listen on, for metrics.
        metrics_port: TCP port for metrics; 0 takes a free one, -1 turns metrics off.
        metrics_buckets: bounds of the buckets of a histogram, as NAME=BOUND:BOUND:...; repeatable; those that are not named have the bounds that dashboards know.
        device: where models run: cpu, cuda or cuda:N.
        dtype: number format of the weights; auto is bfloat16 on cuda and float16 on cpu, where states and sums are in float32 all the same.
        early_dtype: how the feed-forward is computed on a CPU: int8 is by two bytes a number once for a token, and otherwise by differences from there in one byte, which needs AVX-512 VNNI and the kernels in C; auto takes it for large models in float16, none never.
        threads: CPU threads of one tensor operation; 0 takes as many as there are cores for large models, and one for small ones, whose calls would wait longer for threads than they take.
        max_batch_tokens: most tokens in one call of f; fewer take part where that is quicker, or where streams of generated tokens would have to wait.
        max_running: most sequences solved together, each with working memory of its own; a quarter is kept for owners that have none running.
        max_queue: most requests that may wait.
        max_queue_tokens: most tokens that may wait.
        max_owner_queue: most requests of one owner that may wait.
        max_owner_queue_tokens: most tokens of one owner that may wait.
        max_sessions: most sessions of one model.
        window: most tokens of one sequence in a call of f; fewer take part while others fill it.
        max_text_bytes: longest text of one input, in bytes of UTF-8.
        max_score_tokens: most tokens of one Score call, prompt or stream message.
        max_tokens: most tokens one Generate call may ask for.
        default_max_tokens: tokens a Generate call generates when it does not say.
        max_candidates: most candidates of one Score call.
        max_top_k: most alternatives returned per token.
        max_stop_strings: most stop strings of one Generate call.
        max_stop_string_bytes: longest stop string, in bytes of UTF-8.
        max_message_bytes: longest message on the wire, in bytes.
        max_nfe: largest budget of calls of f on one token that a request may ask for.
        tol: relative residual at which a token is accepted, when a request does not say; 0 is 0.003, and 0.005 with bfloat16, whose rounding keeps residuals above 0.004.
        default_max_nfe: calls of f on one token, when a request does not say.
        policy: what happens at that budget, when a request does not say.
        overload_tol: tolerance to which tokens are loosened while more requests wait than overload_queue; 0 never loosens any.
        overload_queue: requests that may wait before tolerances are loosened.
        guess_ahead: most tokens of a text that are guessed, and solved, while the solve of the one before them ends; what is drawn stays the same, up to the tolerance; 0 guesses none.
        prefix_cache: tokens of ended calls whose solutions are kept, so that what begins alike is solved once; only within one owner; 0 shares nothing.
        session_store: where sessions are kept away from the device: memory, sqlite:PATH (a path with a / in it, such as ./sessions.db, is taken so), or redis://HOST:PORT/DB, whose sessions outlive the server.
        store_sync: what an answered call to sqlite survives: normal the end of the process, full a power failure as well.
        store_timeout_s: seconds that a call waits for the store before it is answered without.
        state_format: number format of the states of sessions in the store; bfloat16 takes half the room, and adds an error of up to 0.002 of each number.
        resident_bytes: memory of the device for sessions of one model; those used longest ago go to the store to make room; 0 has room for max_sessions.
        resident_idle_s: seconds after which a session that nobody uses goes to the store; 0 for never.
        answer_bytes: most bytes of answers that a session keeps for calls with idempotency keys.
        session_key_file: file with the key by which exported sessions are signed, and imported ones checked; empty for a checksum alone.
        warm_start: auto begins solves where the map says that deqlm calibrate has put beside a checkpoint, at zeros where there is none; off at zeros.
        default_ttl_s: seconds a session lives unused, when it does not say.
        max_ttl_s: longest time to live of a session, in seconds.
        grace_s: seconds that running calls get to finish when the server stops.
        keepalive_s: seconds of silence after which a connection is asked whether its client is still there; it gets half of that to answer.
        send_timeout_s: seconds that the client of a stream gets to read a response; then the call is ended.
        log_level: least severe messages to log.
        reflection: whether clients may ask what services there are (grpc reflection).
    """  # noqa: E501 - the lines are the help texts

    model: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 50051
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 9464
    metrics_buckets: tuple[str, ...] = ()
    device: str = "cpu"
    dtype: DTypeName = "auto"
    early_dtype: EarlyDType = "auto"
    threads: int = 0
    max_batch_tokens: int = 512
    max_running: int = 64
    max_queue: int = 256
    max_queue_tokens: int = 1_000_000
    max_owner_queue: int = 128
    max_owner_queue_tokens: int = 500_000
    max_sessions: int = 256
    window: int = 64
    max_text_bytes: int = 1 << 20
    max_score_tokens: int = 100_000
    max_tokens: int = 4096
    default_max_tokens: int = 128
    max_candidates: int = 256
    max_top_k: int = 100
    max_stop_strings: int = 16
    max_stop_string_bytes: int = 256
    max_message_bytes: int = 1 << 26
    max_nfe: int = 1000
    tol: float = 0.0
    default_max_nfe: int = 100
    policy: Policy = "best_effort"
    overload_tol: float = 0.0
    overload_queue: int = 32
    guess_ahead: int = 4
    prefix_cache: int = 16_384
    session_store: str = "memory"
    store_sync: StoreSync = "normal"
    store_timeout_s: float = 2.0
    state_format: StateFormat = "float32"
    resident_bytes: int = 0
    resident_idle_s: float = 0.0
    answer_bytes: int = 1 << 20
    session_key_file: str = ""
    warm_start: WarmStartUse = "auto"
    default_ttl_s: float = 3600.0
    max_ttl_s: float = 86400.0
    grace_s: float = 30.0
    keepalive_s: float = 30.0
    send_timeout_s: float = 30.0
    log_level: LogLevel = "info"
    reflection: bool = True

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # a file may say null
            if field.default is not None:
                self._check(field.name, getattr(self, field.name) is not None, "set")
        for name, least in _AT_LEAST.items():
            self._check(name, getattr(self, name) >= least, f"at least {least}")
        for name, most in _AT_MOST.items():
            self._check(name, getattr(self, name) <= most, f"at most {most}")
        self._check("port", 0 <= self.port <= _MAX_PORT, f"in [0, {_MAX_PORT}]")
        bound = f"in [0, {_MAX_PORT}], or {METRICS_OFF} for none"
        self._check("metrics_port", METRICS_OFF <= self.metrics_port <= _MAX_PORT, bound)
        self._check("device", bool(_DEVICE.fullmatch(self.device)), "cpu, cuda or cuda:N")
        self._check("threads", self.threads >= 0, "at least 0")
        for name in ("tol", "overload_tol"):
            self._check(name, 0.0 <= getattr(self, name) < 1.0, "in [0, 1)")
        for name in _DURATIONS:
            value = getattr(self, name)
            self._check(name, math.isfinite(value) and value > 0, "finite and above 0")
        for name in ("grace_s", "resident_idle_s"):
            value = getattr(self, name)
            self._check(name, math.isfinite(value) and value >= 0, "at least 0")
        self._check("trace_endpoint", _is_collector(self.trace_endpoint), _COLLECTORS)
        self._check("trace_ratio", 0.0 <= self.trace_ratio <= 1.0, "in [0, 1]")
        self._check("session_store", bool(_STORE.fullmatch(self.session_store)), _STORES)
        for small, large in _ORDERED:
            limit = getattr(self, large)
            self._check(small, getattr(self, small) <= limit, f"at most {large} = {limit}")
        for name, needed in _TOGETHER:
            is_whole = getattr(self, name) is None or getattr(self, needed) is not None
            self._check(needed, is_whole, f"set where {name} is")
        _parse_sources(self.model)
        self._read_buckets()

    def _check(self, name: str, holds: bool, bound: str) -> None:
        if not holds:
            told = _without_secrets(getattr(self, name), is_url=name == "session_store")
            raise ServerConfigError(f"{name} must be {bound}, got {told!r}")

    def check_exposure(self) -> None:
        """Raises ServerConfigError if it would listen beyond this machine without protection."""
        has_metrics = self.metrics_port != METRICS_OFF
        problem = exposure_problem(
            self, host=self.host, metrics_host=self.metrics_host if has_metrics else None
        )
        if problem is not None:
            raise ServerConfigError(problem)

    def sources(self, bundled: Path = _BUNDLED) -> tuple[ModelSource, ...]:
        """The checkpoints to serve, the default one first.

        Args:
            bundled: folder of the checkpoint folders that are served when none is named.

        Raises:
            ServerConfigError: none is named and none is bundled.
        """
        if self.model:
            return _parse_sources(self.model)
        found = sorted(path.parent for path in bundled.glob("*/config.json"))
        if not found:
            raise ServerConfigError(
                f"model must name a checkpoint (--model NAME=PATH): none is bundled in {bundled}"
            )
        return tuple([ModelSource(name=path.name, path=path) for path in found])

    @property
    def bucket_bounds(self) -> dict[str, Bounds]:
        """Bounds of all histograms of the metrics, by name."""
        return self._read_buckets()

    def _read_buckets(self) -> dict[str, Bounds]:
        try:
            return read_buckets(self.metrics_buckets)
        except ValueError as error:
            raise ServerConfigError(f"metrics_buckets must {error}") from None

    @property
    def engine_limits(self) -> EngineLimits:
        """Sizes of every engine."""
        return EngineLimits(**self._named_as(EngineLimits))

    @property
    def request_limits(self) -> RequestLimits:
        """Bounds of requests."""
        return RequestLimits(**self._named_as(RequestLimits))

    @property
    def default_solve(self) -> Solve:
        """Solver options where neither request nor session names one."""
        tol = self.tol or (5e-3 if self.number_format == "bfloat16" else 3e-3)
        return Solve(tol=tol, max_nfe=self.default_max_nfe, policy=self.policy)

    @property
    def number_format(self) -> Literal["float32", "float16", "bfloat16"]:
        """Of the weights, as asked for or as it suits the device."""
        if self.dtype == "auto":
            return "bfloat16" if self.device.startswith("cuda") else "float16"
        return self.dtype

    def _named_as(self, kind: type[EngineLimits] | type[RequestLimits]) -> dict[str, Any]:
        """The fields that ``kind`` has as well."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(kind)}


def _without_secrets(value: object, *, is_url: bool) -> object:
    """A value for a message: before the @ of a URL, or anywhere in a bad one, may be a password."""
    text = str(value)
    if is_url:
        kind, colon, _ = text.partition(":")
        return f"{kind}:…" if colon else value
    return "…@" + text.rpartition("@")[2] if "@" in text else value


def _is_collector(endpoint: str) -> bool:
    """Whether spans can be sent there; nowhere is as good."""
    found = _COLLECTOR.fullmatch(endpoint)
    return not endpoint or (found is not None and 1 <= int(found[1]) <= _MAX_PORT)


def _parse_sources(entries: tuple[str, ...]) -> tuple[ModelSource, ...]:
    sources = tuple([_parse_source(entry) for entry in entries])
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise ServerConfigError(f"model {name!r} must be named once, got {names.count(name)}")
    return sources


def _parse_source(entry: str) -> ModelSource:
    name, separator, path = entry.partition("=")
    if not (name and separator and path):
        raise ServerConfigError(f"model must be NAME=PATH, got {entry!r}")
    return ModelSource(name=name, path=Path(path))
