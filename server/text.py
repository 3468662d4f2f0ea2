"""Text of drawn tokens, with stop strings watched for."""

from collections.abc import Sequence

from deq_model.tokenizers.base import StreamDecoder
from server.engine.requests import Piece


class StopStringText:
    """Turns tokens into text, up to the stop string that is complete first.

    However the text is cut into tokens, the result is the same: the first character that completes
    a stop string decides, and of several that it completes the longest one. Text that may be the
    beginning of a stop string is held back until it is known not to be.
    """

    def __init__(
        self, decoder: StreamDecoder, stop_strings: Sequence[str] = (), *, min_tokens: int = 0
    ) -> None:
        """Begin with nothing.

        Args:
            decoder: makes text of tokens.
            stop_strings: none empty.
            min_tokens: the text of the tokens before this many is not searched.
        """
        self._decoder = decoder
        # Longest first: that is the one to find where several end at the same character.
        self._stop_strings = sorted(set(stop_strings), key=len, reverse=True)
        self._heed_from = min_tokens
        self._fed = 0
        self._held = ""

    def feed(self, token_id: int) -> Piece:
        """Take a token; return the text that is certain by now, or all up to a stop string."""
        self._fed += 1
        return self._take(self._decoder.feed(token_id))

    def finish(self) -> str:
        """The text held back: after the last token it can no longer begin a stop string."""
        piece = self._take(self._decoder.flush())
        rest, self._held = self._held, ""
        return piece.text + rest

    def _take(self, text: str) -> Piece:
        if self._fed < self._heed_from or not self._stop_strings:
            return Piece(text)
        for index in range(len(text)):
            seen = self._held + text[: index + 1]
            found = next((stop for stop in self._stop_strings if seen.endswith(stop)), None)
            if found is not None:
                self._held = ""
                return Piece(seen.removesuffix(found), found)
        return Piece(self._release(self._held + text))

    def _release(self, text: str) -> str:
        """Keep the longest end of the text that begins a stop string; return the rest."""
        longest = min(len(text), len(self._stop_strings[0]) - 1)
        for size in range(longest, 0, -1):
            end = text[-size:]
            if any(stop.startswith(end) for stop in self._stop_strings):
                self._held = end
                return text[:-size]
        self._held = ""
        return text
