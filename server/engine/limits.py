"""Sizes of the engine, and how much of them is in use."""

from dataclasses import dataclass

from server.engine.snapshots import StateFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """Sizes of the engine.

    Attributes:
        max_batch_tokens: most rows in one call of f.
        max_running: sequences (requests, or candidates of one) solved together; jobs begun. A
            quarter is kept for owners that have none.
        max_queue: jobs that may wait.
        max_queue_tokens: tokens that may wait.
        max_owner_queue: jobs of one owner that may wait.
        max_owner_queue_tokens: tokens of one owner that may wait.
        max_sessions: sessions held.
        window: most rows of one sequence in a call.
        overload_tol: tolerance to which tokens are loosened while more jobs wait than
            ``overload_queue``; 0 for never.
        overload_queue: jobs that may wait before tokens are loosened.
        guess_ahead: tokens of a text that are guessed, at most, before those they follow are final.
        prefix_cache: tokens whose states are kept for prompts that begin alike; 0 shares nothing.
        resident_bytes: memory for sessions on the device; 0 for room for all of them.
        resident_idle_s: seconds after which an idle session leaves the device; 0 for never.
        state_format: number format in which states are kept off the device.
    """

    max_batch_tokens: int = 512
    max_running: int = 64
    max_queue: int = 256
    max_queue_tokens: int = 1_000_000
    max_owner_queue: int = 128
    max_owner_queue_tokens: int = 500_000
    max_sessions: int = 256
    window: int = 64
    overload_tol: float = 0.0
    overload_queue: int = 32
    guess_ahead: int = 4
    prefix_cache: int = 0
    resident_bytes: int = 0
    resident_idle_s: float = 0.0
    state_format: StateFormat = "float32"


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """Gauges of the engine at one moment.

    ``loosening`` says whether tokens are solved to ``overload_tol`` now, ``prefix_tokens`` how many
    tokens of ended prompts have their states kept. ``sessions_from_...`` and ``sessions_left_...``
    count sessions that came back to the device and left it since the start, ``sessions_repaired``
    those whose memory held no numbers. ``waiting_for_...``
    part the waiting jobs: there is no place, only such as are kept for other owners, or it is not
    their turn yet. ``parked_texts`` have a place and wait for others that begin alike.
    ``repeated_parts`` counts what was done again as something that requests share had failed.
    """

    running_jobs: int
    waiting_jobs: int
    waiting_tokens: int
    sessions: int
    slots_used: int
    slots_total: int
    memory_bytes: int
    session_memory_bytes: int
    loosening: bool = False
    prefix_tokens: int = 0
    resident_sessions: int = 0
    sessions_from_states: int = 0
    sessions_from_tokens: int = 0
    sessions_repaired: int = 0
    sessions_left_idle: int = 0
    sessions_left_full: int = 0
    waiting_for_places: int = 0
    waiting_for_share: int = 0
    waiting_for_turn: int = 0
    parked_texts: int = 0
    repeated_parts: int = 0
