"""What is fuzzed: a decoder of bytes, inputs that it takes, and how it may refuse others."""

import atexit
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Target:
    """A decoder.

    Attributes:
        name: of it.
        seeds: makes bytes that it takes, to be mutated.
        decode: reads bytes; whatever it raises beside ``refusals`` is a defect.
        refusals: exceptions that say what is wrong with the input.
        share: how much of a run it gets, beside the others.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    decode: Callable[[bytes], object]
    refusals: tuple[type[BaseException], ...]
    share: int = 10

    def takes(self, data: bytes) -> bool:
        """Whether the decoder takes the bytes. Raises what it may not raise."""
        try:
            self.decode(data)
        except self.refusals as error:
            # Somebody has to read it.
            assert str(error), f"{error!r} does not say what is wrong"
            return False
        return True


@cache
def workspace() -> Path:
    """A folder of this process for decoders that read files, in memory where that is possible."""
    memory = Path("/dev/shm")
    folder = tempfile.TemporaryDirectory(
        prefix="deqlm-fuzz-", dir=memory if memory.is_dir() else None
    )
    atexit.register(folder.cleanup)
    return Path(folder.name)


def as_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """A decoder of a file, as one of bytes."""

    def decode(data: bytes) -> object:
        path = workspace() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return read(path)

    return decode
