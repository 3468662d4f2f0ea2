"""What a generation has brought so far; shared by both clients."""

from __future__ import annotations

from client import results
from client.errors import Internal


class GenerationLog:
    """Collects the events of one generation."""

    def __init__(self) -> None:
        """Begin empty."""
        self.started: results.GenerationStarted | None = None
        self.finished: results.GenerationFinished | None = None
        self.tokens: list[results.GeneratedToken] = []

    def observe(self, event: results.GenerationEvent) -> None:
        """Note one event."""
        match event:
            case results.GenerationStarted():
                self.started = event
            case results.GeneratedToken():
                self.tokens.append(event)
            case results.GenerationFinished():
                self.finished = event

    def result(self) -> results.GenerationResult:
        """Put the whole together.

        Raises:
            Internal: the stream ended without its first or last event.
        """
        if self.started is None or self.finished is None:
            raise Internal("the stream of tokens ended without its first or last event")
        text = "".join(token.text for token in self.tokens) + self.finished.text
        return results.GenerationResult(
            text=text, tokens=tuple(self.tokens), started=self.started, finished=self.finished
        )


def text_of(event: results.GenerationEvent) -> str:
    """Text an event adds to the generated text."""
    return "" if isinstance(event, results.GenerationStarted) else event.text
