"""What an attacker may send to the port. Each takes the address, and a round to wait for."""

import contextlib
import random
import ssl
import zlib
from collections.abc import Callable
from contextlib import ExitStack

from hyperframe.frame import (
    ContinuationFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from deqlm.v1 import common_pb2, scoring_pb2
from tests.server.hostile.raw import GONE, PREFACE, Raw, data_frames, message, open_socket

Round = Callable[[], None]
"""Returns once a neighbour of the attacker has had one more answer."""

ASK = scoring_pb2.ScoreRequest(input=common_pb2.Input(text="the of")).SerializeToString()
MAX_MESSAGE_BYTES = 1 << 22
REFUSED = ("grpc 8", "grpc 16")
"""RESOURCE_EXHAUSTED, or UNAUTHENTICATED where callers have to be known."""


def garbage(address: str, next_round: Round) -> None:
    """Noise, in place of the preface and behind it."""
    noise = random.Random(0)
    for index in range(20):
        with open_socket(address) as connection, contextlib.suppress(*GONE):
            begin = PREFACE + SettingsFrame(0).serialize() if index % 2 else b""
            connection.sendall(begin + noise.randbytes(1 << 16))


def other_protocols(address: str, next_round: Round) -> None:
    """A TLS greeting, HTTP/1.1, and a part of the preface."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    greeting = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="a")
    with contextlib.suppress(ssl.SSLWantReadError):
        greeting.do_handshake()
    for data in (outgoing.read(), b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", PREFACE[:9], PREFACE, b""):
        with open_socket(address) as connection:
            connection.sendall(data)


def rapid_reset(address: str, next_round: Round) -> None:
    """Calls that are reset as soon as they are made (CVE-2023-44487)."""
    for _ in range(3):
        with Raw(address) as raw:
            for stream_id in range(1, 4001, 2):
                asked = [raw.headers(stream_id), *data_frames(stream_id, message(ASK))]
                if not raw.send(*asked, RstStreamFrame(stream_id, 8)):
                    break


def rapid_resets(address: str, next_round: Round) -> None:
    """The same from many connections at once: others' calls wait behind, and are not dropped."""
    with ExitStack() as stack:
        many = [stack.enter_context(Raw(address)) for _ in range(24)]
        for begin in range(1, 2000, 100):
            for raw in many:
                frames: list[Frame] = []
                for stream_id in range(begin, begin + 100, 2):
                    asked = data_frames(stream_id, message(ASK))
                    frames += [raw.headers(stream_id), *asked, RstStreamFrame(stream_id, 8)]
                raw.send(*frames)
        next_round()


def huge_headers(address: str, next_round: Round) -> None:
    """A header of a megabyte, and a megabyte of small ones."""
    plain = b"\x00\x03x-a"  # not to be indexed
    for more in (plain + b"\x7f\x81\xff\x3f" + b"a" * (1 << 20), (plain + b"\x01b") * (1 << 17)):
        with Raw(address) as raw:
            data = raw.headers(1).data + more
            parts = [data[at : at + 16000] for at in range(0, len(data), 16000)]
            frames: list[Frame] = [HeadersFrame(1, parts[0])]
            frames += [ContinuationFrame(1, part) for part in parts[1:]]
            frames[-1].flags.add("END_HEADERS")
            raw.send(*frames)


def continuation_flood(address: str, next_round: Round) -> None:
    """Headers that never end (CVE-2024-27316 and its kin)."""
    with Raw(address) as raw:
        begin = raw.headers(1)
        begin.flags.discard("END_HEADERS")
        raw.send(begin)
        part = ContinuationFrame(1, raw.encoder.encode([("x-a", "a" * 1000)]))
        for _ in range(5000):
            if not raw.send(part):
                break


def flood(make: Callable[[int], Frame]) -> Callable[[str, Round], None]:
    """An attack by very many frames of a kind."""

    def attack(address: str, next_round: Round) -> None:
        with Raw(address) as raw:
            for begin in range(0, 50_000, 500):
                if not raw.send(*(make(begin + index) for index in range(500))):
                    break

    return attack


def window_overflow(address: str, next_round: Round) -> None:
    """Windows beyond what their counters hold, of the connection and of a stream."""
    for stream_id in (0, 1):
        with Raw(address) as raw:
            raw.send(raw.headers(1))
            most = WindowUpdateFrame(stream_id, window_increment=(1 << 31) - 1)
            raw.send(most, most)
            next_round()


def never_reading(address: str, next_round: Round) -> None:
    """Calls whose answers have no room to go to, on connections that nobody reads."""
    with ExitStack() as stack:
        for _ in range(5):
            raw = stack.enter_context(Raw(address, {SettingsFrame.INITIAL_WINDOW_SIZE: 0}))
            for stream_id in range(1, 101, 2):
                raw.send(raw.headers(stream_id), *data_frames(stream_id, message(ASK)))
        for _ in range(5):
            next_round()


def slowloris(address: str, next_round: Round) -> None:
    """Fifty connections on which a byte comes once in a while."""
    ask = PREFACE + SettingsFrame(0).serialize()
    with ExitStack() as stack:
        slow = [stack.enter_context(open_socket(address)) for _ in range(50)]
        for index in range(20):
            for connection in slow:
                with contextlib.suppress(*GONE):
                    connection.sendall(ask[index : index + 1])
            next_round()


def idle_streams(address: str, next_round: Round) -> None:
    """Thousands of calls that are begun and say nothing, beyond the bound of streams."""
    with ExitStack() as stack:
        for _ in range(2):
            raw = stack.enter_context(Raw(address))
            for stream_id in range(1, 4001, 2):
                if not raw.send(raw.headers(stream_id)):
                    break
        for _ in range(5):
            next_round()


def announced(address: str, next_round: Round) -> None:
    """Messages of four gigabytes, of which nothing comes."""
    with ExitStack() as stack:
        for _ in range(10):
            raw = stack.enter_context(Raw(address))
            begin = message(b"", size=(1 << 32) - 1)
            raw.send(raw.headers(1), *data_frames(1, begin, end=False))
            assert raw.status(1) in REFUSED, "at once"
        next_round()


def bombs(address: str, next_round: Round) -> None:
    """Messages of 57 kB that unpack to fourteen times what is allowed."""
    for encoding, bits in (("gzip", 31), ("deflate", 15)):
        packer = zlib.compressobj(9, zlib.DEFLATED, bits)
        packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(56)) + packer.flush()
        assert len(packed) < 1 << 16, "it must fit into the first window"
        with Raw(address) as raw:
            raw.send(raw.headers(1, grpc_encoding=encoding))
            raw.send(*data_frames(1, message(packed, compressed=True)))
            assert raw.status(1) in REFUSED


def bad_calls(address: str, next_round: Round) -> None:
    """Calls that are none: each is refused for itself, or with its connection."""
    for changes in (
        {"grpc_timeout": "abc"},
        {"grpc_timeout": "-1S"},
        {"grpc_timeout": "99999999999999999S"},
        {"path": "/deqlm.v1.ScoringService/Nothing"},
        {"path": "/nobody.v1.Service/Nothing"},
        {"path": "\x00\xff"},
        {"path": ""},
        {"method": "GET"},
        {"method": ""},
        {"content_type": "text/html"},
        {"content_type": ""},
        {"te": "nothing"},
        {"grpc_encoding": "brotli"},
        {"deqlm_owner": "\x00"},
    ):
        with Raw(address) as raw:
            raw.send(raw.headers(1, **changes), *data_frames(1, message(ASK)))
            assert raw.status(1)


def bad_messages(address: str, next_round: Round) -> None:
    """Messages that are none, of every length, and ends in the midst of one."""
    noise = random.Random(1)
    with Raw(address) as raw:
        for index in range(100):
            cut, whole = 4 * index + 1, 4 * index + 3
            body = noise.randbytes(index)
            # gRPC does not answer a message that ends too early before the connection ends.
            raw.send(raw.headers(cut), *data_frames(cut, message(body, size=index + 1)))
            raw.send(raw.headers(whole), *data_frames(whole, message(body)))
            assert raw.status(whole).startswith("grpc ")
        next_round()


def bad_frames(address: str, next_round: Round) -> None:
    """Frames where they may not be, of sizes that they may not have."""
    own = b"\x00\x00\x05\x02\x00\x00\x00\x00\x01\x00\x00\x00\x01\xff"  # a stream that needs itself
    for data in (
        b"\x00\x00\x00\x00\x00\x00\x00\x00\x00",  # data of no stream
        b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",  # 16 MB of data to come
        b"\x00\x00\x03\x03\x00\x00\x00\x00\x01abc",  # a reset of three bytes
        b"\x00\x00\x05\x04\x00\x00\x00\x00\x00abcde",  # settings of five
        b"\x00\x00\x01\x06\x00\x00\x00\x00\x00a",  # a ping of one
        b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00",  # no more window
        b"\x00\x00\x02\x01\x0d\x00\x00\x00\x01\xff\x00",  # more padding than frame
        b"\x00\x00\x06\x01\x04\x00\x00\x00\x01\xff\xff\xff\xff\xff\x7f",  # an index without end
        own,
        b"\x00\x00\x04\xee\x00\x00\x00\x00\x00abcd" * 2000,  # of a kind that nobody knows
    ):
        with Raw(address) as raw, contextlib.suppress(*GONE):
            raw.socket.sendall(data)


ATTACKS: dict[str, Callable[[str, Round], None]] = {
    "garbage": garbage,
    "other protocols": other_protocols,
    "rapid reset": rapid_reset,
    "rapid resets": rapid_resets,
    "huge headers": huge_headers,
    "continuation flood": continuation_flood,
    "ping flood": flood(lambda index: PingFrame(0, index.to_bytes(8, "big"))),
    "settings flood": flood(lambda index: SettingsFrame(0, settings={4: 1000 + index % 7})),
    "priority flood": flood(lambda index: PriorityFrame(2 * (index % 999) + 3, depends_on=1)),
    "window overflow": window_overflow,
    "never reading": never_reading,
    "slowloris": slowloris,
    "idle streams": idle_streams,
    "announced and not sent": announced,
    "compressed bombs": bombs,
    "bad calls": bad_calls,
    "bad messages": bad_messages,
    "bad frames": bad_frames,
}
