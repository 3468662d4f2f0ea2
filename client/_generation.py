"""What a generation has brought so far; shared by both clients."""

from __future__ import annotations

from client import types
from client.errors import Internal


class GenerationLog:
    """Collects the events of one generation."""

    def __init__(self) -> None:
        """Begin empty."""
        self.started: types.GenerationStarted | None = None
        self.finished: types.GenerationFinished | None = None
        self.tokens: list[types.GeneratedToken] = []

    def observe(self, event: types.GenerationEvent) -> None:
        """Note one event."""
        match event:
            case types.GenerationStarted():
                self.started = event
            case types.GeneratedToken():
                self.tokens.append(event)
            case types.GenerationFinished():
                self.finished = event

    def result(self) -> types.GenerationResult:
        """Put the whole together.

        Raises:
            Internal: the stream ended without its first or last event.
        """
        if self.started is None or self.finished is None:
            raise Internal("the stream of tokens ended without its first or last event")
        text = "".join(token.text for token in self.tokens) + self.finished.text
        return types.GenerationResult(
            text=text, tokens=tuple(self.tokens), started=self.started, finished=self.finished
        )


def text_of(event: types.GenerationEvent) -> str:
    """Text an event adds to the generated text."""
    return "" if isinstance(event, types.GenerationStarted) else event.text
