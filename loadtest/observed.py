"""What a recorder keeps of a call: its kind and its sizes, not what it says."""

from collections import OrderedDict
from typing import Any, Final

from google.protobuf.message import DecodeError

from deqlm.v1 import common_pb2, generation_pb2, scoring_pb2, session_pb2
from loadtest.stages import Planned

_SCORE: Final = "/deqlm.v1.ScoringService/Score"
_STREAM: Final = "/deqlm.v1.ScoringService/ScoreStream"
_GENERATE: Final = "/deqlm.v1.GenerationService/Generate"
_FORK: Final = "/deqlm.v1.SessionService/ForkSession"
_REQUESTS: Final[dict[str, Any]] = {
    _SCORE: scoring_pb2.ScoreRequest,
    _STREAM: scoring_pb2.ScoreStreamRequest,
    _GENERATE: generation_pb2.GenerateRequest,
}
_MOST_FORKS: Final = 10_000


class Observed:
    """Sizes of one call."""

    def __init__(self, path: str) -> None:
        """Take its method, as ``/package.Service/Method``."""
        self.path = path
        self.words = self.pieces = self.max_tokens = 0
        self.session_id = ""

    def message(self, raw: bytes) -> None:
        """A message of the client's; what cannot be read is the server's to refuse."""
        kind = _REQUESTS.get(self.path)
        if kind is None:
            return
        try:
            request = kind.FromString(raw)
        except DecodeError:
            return
        if self.path == _STREAM:
            self._piece(request)
            return
        self.session_id = request.session_id
        if self.path == _GENERATE:
            self.words, self.max_tokens = _words(request.prompt), request.stop.max_tokens
        else:
            self.words = _words(request.input) + sum(map(_words, request.candidates))

    def _piece(self, request: Any) -> None:
        if words := len(request.text.split()) + len(request.token_ids.ids):
            self.words += words
            self.pieces += 1


def _words(given: common_pb2.Input) -> int:
    return len(given.text.split()) + len(given.token_ids.ids)


class Observer:
    """Makes arrivals of calls; knows which sessions are forks."""

    def __init__(self) -> None:
        self._forks: OrderedDict[str, None] = OrderedDict()

    def answered(self, path: str, raw: bytes) -> None:
        """A message of the server's."""
        if path == _FORK:
            answer = session_pb2.ForkSessionResponse.FromString(raw)
            self._forks[answer.session.session_id] = None
            if len(self._forks) > _MOST_FORKS:
                self._forks.popitem(last=False)

    def plan(self, observed: Observed, at_s: float, cancel_s: float | None) -> Planned | None:
        """The arrival; None for a call that is none of those that a load is made of."""
        if observed.path not in _REQUESTS:
            return None
        words = max(observed.words, 1)
        piece = -(-words // max(observed.pieces, 1)) if observed.path == _STREAM else 0
        return Planned(
            number=0,
            at_s=at_s,
            kind=self._kind(observed) if cancel_s is None else "cancel",
            words=words,
            piece=piece,
            max_tokens=observed.max_tokens,
            cancel_s=cancel_s or 0.0,
        )

    def _kind(self, observed: Observed) -> str:
        if observed.path == _STREAM:
            return "stream"
        if observed.path == _GENERATE:
            return "generate"
        if observed.session_id in self._forks:
            return "fork"
        return "session" if observed.session_id else "score"
