"""Limits that gRPC itself keeps: on connections, and on what comes in before a call is ours."""

from server.config import ServerConfig

_PENDING_CALLS = 1 << 14
"""Calls that have come and that Python has not seen, from which gRPC drops some, whosesoever.

By its own bound of 1000 a few connections whose calls are reset at once have others' calls
CANCELLED. A connection has at most ``max_streams`` of them, so that by its default it takes more
than 64 that do so; with ``max_connections`` times ``max_streams`` below this nobody's is dropped.
One takes about ten kilobytes and half a millisecond, which those behind it wait.
"""

Option = tuple[str, int]


def channel_options(config: ServerConfig) -> tuple[Option, ...]:
    """Arguments of the port for calls.

    What is too long is refused with RESOURCE_EXHAUSTED, a call too many on a connection waits at
    the client; whatever else goes beyond a limit costs the connection.
    """
    return (
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        # Between the two, gRPC would refuse some calls by chance.
        ("grpc.max_metadata_size", config.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", config.max_metadata_bytes),
        ("grpc.max_concurrent_streams", config.max_streams),
        ("grpc.server.max_pending_requests", _PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", 2 * _PENDING_CALLS),
        ("grpc.max_allowed_incoming_connections", config.max_connections),
        ("grpc.max_connection_idle_ms", _ms(config.max_idle_s)),
        ("grpc.server_handshake_timeout_ms", _ms(config.handshake_s)),
        # A client whose machine is gone sends no end: ask, and give its session back.
        ("grpc.keepalive_time_ms", _ms(config.keepalive_s)),
        ("grpc.keepalive_timeout_ms", _ms(config.keepalive_s / 2)),
        ("grpc.http2.ping_timeout_ms", _ms(config.keepalive_s / 2)),
        # Also while no data goes out: a stream that waits for its client sends none.
        ("grpc.http2.max_pings_without_data", 0),
        # Of pings between which no data goes out, two too soon are forgiven.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _ms(config.min_ping_s)),
        ("grpc.http2.max_ping_strikes", 2),
        # Two servers on one port would each get some of the calls.
        ("grpc.so_reuseport", 0),
    )


def _ms(seconds: float) -> int:
    """In milliseconds, at least one; at most what gRPC's integers hold."""
    return max(1, min(round(seconds * 1000), (1 << 31) - 1))
