"""A connection of HTTP/2 that says what it likes, frame by frame."""

import socket
import ssl
from collections.abc import Iterator, Mapping

import hpack
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    RstStreamFrame,
    SettingsFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SCORE = "/deqlm.v1.ScoringService/Score"
TIMEOUT_S = 20.0


GONE = (ConnectionError, ssl.SSLEOFError)
"""What sending raises once the other side has ended the connection."""
BY_TLS: dict[str, ssl.SSLContext] = {}
"""Addresses where TLS comes first."""


def open_socket(address: str) -> socket.socket:
    """A connection without a word said."""
    host, _, port = address.rpartition(":")
    plain = socket.create_connection((host, int(port)), timeout=TIMEOUT_S)
    if address not in BY_TLS:
        return plain
    return BY_TLS[address].wrap_socket(plain, server_hostname=host)


class Raw:
    """A connection that has said the preface."""

    def __init__(self, address: str, settings: Mapping[int, int] | None = None) -> None:
        self.socket = open_socket(address)
        self.encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()
        self.socket.sendall(PREFACE)
        self.send(SettingsFrame(0, settings=dict(settings or {})))

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *frames: Frame) -> bool:
        """Sends frames; False once the other side has ended the connection."""
        try:
            self.socket.sendall(b"".join(frame.serialize() for frame in frames))
        except (*GONE, TimeoutError):
            return False
        return True

    def headers(self, stream_id: int, *, flags: tuple[str, ...] = (), **changes: str) -> Frame:
        """The headers of a call of Score; ``_`` for ``-``, a pseudo header by its name alone."""
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": SCORE,
            ":authority": "localhost",
            "te": "trailers",
            "content-type": "application/grpc",
        }
        for name, value in changes.items():
            pseudo, plain = f":{name}", name.replace("_", "-")
            fields[pseudo if pseudo in fields else plain] = value
        data = self.encoder.encode([(k, v) for k, v in fields.items() if v])
        frame = HeadersFrame(stream_id, data)
        frame.flags.add("END_HEADERS")
        for flag in flags:
            frame.flags.add(flag)
        return frame

    def status(self, stream_id: int) -> str:
        """How a stream ends: ``grpc N``, ``http N``, ``reset``, ``goaway`` or ``closed``."""
        seen: dict[str, str] = {}
        for frame in self.frames():
            if isinstance(frame, GoAwayFrame):
                return "goaway"
            if isinstance(frame, HeadersFrame | ContinuationFrame):
                seen |= dict(self._decoder.decode(frame.data))
            if frame.stream_id != stream_id:
                continue
            if isinstance(frame, RstStreamFrame) and "grpc-status" not in seen:
                return "reset"
            if "END_STREAM" in frame.flags:
                status = seen.get("grpc-status")
                return f"http {seen.get(':status')}" if status is None else f"grpc {status}"
        return "closed"

    def frames(self) -> Iterator[Frame]:
        """What comes, up to the connection's end."""
        with self.socket.makefile("rb") as stream:
            try:
                while len(head := stream.read(9)) == 9:
                    frame, size = Frame.parse_frame_header(memoryview(head))
                    frame.parse_body(memoryview(stream.read(size)))
                    yield frame
            except GONE:
                return


def message(data: bytes, *, compressed: bool = False, size: int | None = None) -> bytes:
    """A message as gRPC frames it, perhaps with another size than it has."""
    length = len(data) if size is None else size
    return bytes([compressed]) + length.to_bytes(4, "big") + data


def data_frames(stream_id: int, data: bytes, *, end: bool = True) -> list[DataFrame]:
    """Data in frames of 16 KiB."""
    size = 1 << 14
    parts = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
    frames = [DataFrame(stream_id, part) for part in parts]
    if end:
        frames[-1].flags.add("END_STREAM")
    return frames
