"""Frames of HTTP/2 by hand, for what no well-behaved client does."""

import socket
import struct
from collections.abc import Iterator

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY = 4, 6, 7
ENHANCE_YOUR_CALM = 11
TIMEOUT_S = 30.0


def connect(address: str) -> socket.socket:
    """A connection without a word said."""
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=TIMEOUT_S)


def frame(kind: int, body: bytes = b"", flags: int = 0) -> bytes:
    """A frame of the connection as a whole."""
    return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + bytes(4) + body


def greet(connection: socket.socket) -> None:
    """What every client says first."""
    connection.sendall(PREFACE + frame(SETTINGS))


def received(connection: socket.socket) -> Iterator[tuple[int, bytes]]:
    """Kind and body of the frames that come, up to the connection's end."""
    with connection.makefile("rb") as stream:
        while len(head := stream.read(9)) == 9:
            yield head[3], stream.read(int.from_bytes(head[:3], "big"))


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side ends the connection; waits for it."""
    try:
        while connection.recv(4096):
            pass
    except ConnectionError:
        pass
    return True
