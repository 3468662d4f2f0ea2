"""Bytes near given ones: flips, cuts, repeats, splices, and numbers at the edges of their types."""

import random
from collections.abc import Callable, Sequence

_EDGES = (
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\xff\x0f",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x00\x00\x00\x80",
    b"\x00\x00\xc0\x7f",
    b"\x00\x00\x80\x7f",
    b"\x00\x00\x00\x00\x00\x00\xf8\x7f",
    b"-1",
    b"0",
    b"1e999",
    b"NaN",
    b"null",
    b"[]",
    b"{}",
    b'""',
    b"true",
    b"9" * 30,
    b"\xed\xa0\x80",
    b"\xc3",
    "\u2581".encode(),
    "\u0085".encode(),
    b"\r\n",
    b"\n",
    b" ",
)
_LONGEST = 1 << 17


def mutated(seeds: Sequence[bytes], generator: random.Random) -> bytes:
    """One of the seeds, changed a few times; sometimes bytes that are near none."""
    if generator.random() < 0.02:
        return generator.randbytes(generator.randrange(200))
    data = bytearray(generator.choice(seeds))
    for _ in range(1 + min(int(generator.expovariate(0.7)), 12)):
        generator.choice(_CHANGES)(data, generator, seeds)
        del data[_LONGEST:]
    return bytes(data)


def _place(data: bytearray, generator: random.Random) -> int:
    # Headers are short and at the front: half of all changes are there.
    size = len(data) if generator.random() < 0.5 else min(len(data), 64)
    return generator.randrange(size + 1)


def _flip(data: bytearray, generator: random.Random, seeds: Sequence[bytes]) -> None:
    if data:
        data[min(_place(data, generator), len(data) - 1)] ^= 1 << generator.randrange(8)


def _set(data: bytearray, generator: random.Random, seeds: Sequence[bytes]) -> None:
    if data:
        data[min(_place(data, generator), len(data) - 1)] = generator.randrange(256)


def _cut(data: bytearray, generator: random.Random, seeds: Sequence[bytes]) -> None:
    begin = _place(data, generator)
    del data[begin : begin + generator.choice((1, 1, 2, 4, 8, 64, len(data)))]


def _insert(data: bytearray, generator: random.Random, seeds: Sequence[bytes]) -> None:
    at = _place(data, generator)
    data[at:at] = generator.randbytes(generator.choice((1, 1, 2, 4, 8)))


def _edge(data: bytearray, generator: random.Random, seeds: Sequence[bytes]) -> None:
    at, edge = _place(data, generator), generator.choice(_EDGES)
    data[at : at + generator.choice((0, 1, len(edge)))] = edge


def _repeat(data: bytearray, generator: random.Random, seeds: Sequence[bytes]) -> None:
    begin = _place(data, generator)
    part = data[begin : begin + generator.choice((1, 2, 4, 16, 64))]
    data[begin:begin] = part * generator.choice((1, 1, 2, 5, 100))


def _splice(data: bytearray, generator: random.Random, seeds: Sequence[bytes]) -> None:
    other = generator.choice(seeds)
    begin = generator.randrange(len(other) + 1)
    at = _place(data, generator)
    data[at : at + generator.choice((0, 8, len(data)))] = other[
        begin : begin + generator.choice((4, 16, len(other)))
    ]


_CHANGES: tuple[Callable[[bytearray, random.Random, Sequence[bytes]], None], ...] = (
    _flip,
    _set,
    _cut,
    _insert,
    _edge,
    _repeat,
    _splice,
)
