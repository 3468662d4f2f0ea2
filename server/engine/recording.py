"""What torch does in the next steps of an engine, recorded by its profiler."""

import logging
import os
from concurrent.futures import Future
from pathlib import Path

import torch
from torch.profiler import ProfilerAction, ProfilerActivity, profile

log = logging.getLogger(__name__)


class Recording:
    """Some steps of one engine. Between its first step and its last it lives on that thread.

    Attributes:
        steps: recorded so far.
        over: done once nothing more is recorded; its exception where the profiler has failed.
    """

    def __init__(self, most: int, device: torch.device) -> None:
        """Prepare to record.

        Args:
            most: steps after which it ends by itself.
            device: of the engine.
        """
        activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        # With a plan, though it is always the same, steps are marked in the trace.
        self._profile = profile(activities=activities, schedule=lambda _: ProfilerAction.RECORD)
        self._most, self.steps = most, 0
        self.over: Future[None] = Future()

    @property
    def is_over(self) -> bool:
        """Whether nothing more is recorded."""
        return self.over.done()

    def begin(self) -> None:
        """Record from now on."""
        self._profile.start()

    def stepped(self) -> None:
        """A step has been made; what fails here fails the recording alone."""
        if self.is_over:
            return
        self.steps += 1
        try:
            self._profile.step()
        except Exception as error:  # torch's profiler may have any
            self._fail(error)
        if self.steps >= self._most:
            self.end()

    def end(self) -> None:
        """Record no more; this takes milliseconds for each step."""
        if self.is_over:
            return
        try:
            self._profile.stop()
        except Exception as error:  # torch's profiler may have any
            self._fail(error)
        else:
            self.over.set_result(None)

    def write(self, path: Path) -> None:
        """Write what was recorded as a trace in Chrome's format; once, on any thread.

        Torch tells nobody where that fails: look at the file.
        """
        self._profile.export_chrome_trace(str(path))

    def _fail(self, error: Exception) -> None:
        if not self.is_over:
            log.exception("a profile failed")
            self.over.set_exception(error)


def warm_up() -> None:
    """Loads what the profiler needs when it is used first: seconds, which no engine should wait."""
    # It would write to standard error, where the log is, whenever it begins and ends.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU]):
        pass
