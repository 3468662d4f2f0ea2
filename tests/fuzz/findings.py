"""Notes what a decoder may not raise: once for each place in the code, with the bytes."""

import hashlib
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.target import Target


@dataclass
class Findings:
    """Defects of one target.

    Attributes:
        target: that is tried.
        folder: where the bytes go that found a defect, and what it was.
        inputs: tried so far.
        taken: how many of them the decoder took.
        places: where defects are: the type of the exception and the innermost lines.
    """

    target: Target
    folder: Path
    inputs: int = 0
    taken: int = 0
    places: set[tuple[str, ...]] = field(default_factory=set)

    def try_out(self, data: bytes) -> None:
        """Lets the target decode, and keeps what it may not raise."""
        self.inputs += 1
        try:
            self.taken += self.target.takes(data)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            frames = traceback.extract_tb(error.__traceback__)[-3:]
            place = (type(error).__name__, *(f"{f.filename}:{f.lineno}" for f in frames))
            if place not in self.places:
                self.places.add(place)
                self._keep(data, error)

    def _keep(self, data: bytes, error: BaseException) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{self.target.name.replace(' ', '-')}-{hashlib.sha256(data).hexdigest()[:12]}"
        (self.folder / name).write_bytes(data)
        text = "".join(traceback.format_exception(error))
        (self.folder / f"{name}.txt").write_text(text, encoding="utf-8", errors="backslashreplace")
