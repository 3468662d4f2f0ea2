"""Where the threads of this process are, looked at again and again."""

import sys
import threading
import time
from collections import Counter
from pathlib import PurePath
from types import FrameType, TracebackType
from typing import Self

INTERVAL_S = 0.005
_DEEPEST = 100
_MOST_STACKS = 20_000
"""Different ones; further ones are counted together."""


class Stacks:
    """Counts stacks of all threads while it is entered, except that of its own.

    Attributes:
        samples: how often it has looked.
    """

    def __init__(self, interval_s: float = INTERVAL_S) -> None:
        """Look every ``interval_s``, as far as other threads let it."""
        self._interval_s = interval_s
        self._counts: Counter[str] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stacks", daemon=True)
        self.samples = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def text(self) -> str:
        """One line for each stack, ``thread;outermost;…;innermost COUNT``, the most seen first."""
        return "".join([f"{stack} {count}\n" for stack, count in self._counts.most_common()])

    def _run(self) -> None:
        own = threading.get_ident()
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            names = {thread.ident: thread.name for thread in threading.enumerate()}
            for ident, frame in sys._current_frames().items():
                if ident != own:
                    self._count(names.get(ident, "unnamed"), frame)
            self.samples += 1
            due = max(due + self._interval_s, time.monotonic())

    def _count(self, thread: str, frame: FrameType) -> None:
        stack = ";".join([_word(thread), *_frames(frame)])
        if stack not in self._counts and len(self._counts) >= _MOST_STACKS:
            stack = f"{_word(thread)};(other stacks)"
        self._counts[stack] += 1


def _frames(innermost: FrameType) -> list[str]:
    """Names of functions, the outermost first."""
    names: list[str] = []
    frame: FrameType | None = innermost
    while frame is not None and len(names) < _DEEPEST:
        code = frame.f_code
        names.append(_word(f"{code.co_qualname} ({_short(code.co_filename)}:{frame.f_lineno})"))
        frame = frame.f_back
    return names[::-1]


def _short(path: str) -> str:
    """A file by its last two parts: where it is installed says nothing."""
    return "/".join(PurePath(path).parts[-2:])


def _word(text: str) -> str:
    """A name without what separates names."""
    return text.replace(";", ":").replace("\n", " ")
