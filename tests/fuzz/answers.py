"""Answers: what a client makes of the bytes that claim to come from a server."""

from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError, Message

from client import _decode
from deqlm.v1 import common_pb2, generation_pb2, model_pb2, scoring_pb2, session_pb2
from tests.fuzz.target import Target

TOKEN = scoring_pb2.TokenScore(
    text="a", token_id=3, logprob=-1.5, alternatives=[common_pb2.TokenAlternative(token_id=2)]
)
TOTALS = common_pb2.Totals(scored_tokens=3, logprob_sum=-4.0)


def _target(message: Message, decode: Callable[[Any], object]) -> Target:
    kind = type(message)

    def read(data: bytes) -> object:
        return decode(kind.FromString(data))

    name = f"answer {kind.DESCRIPTOR.name}"
    # What a client cannot read is a ValueError, of a time out of range for one.
    return Target(name, lambda: [message.SerializeToString()], read, (DecodeError, ValueError), 3)


TARGETS = (
    _target(scoring_pb2.ScoreResponse(tokens=[TOKEN], call=TOTALS, session=TOTALS), _decode.score),
    _target(
        scoring_pb2.ScoreStreamResponse(tokens=[TOKEN], final=True, call=TOTALS),
        _decode.streamed_score,
    ),
    _target(
        generation_pb2.GenerateResponse(
            token=generation_pb2.GeneratedToken(text="a", token_id=3, logprob=-0.5)
        ),
        _decode.generation_event,
    ),
    _target(session_pb2.Session(session_id="ab", ttl_s=3.0, position=4), _decode.session),
    _target(model_pb2.ModelInfo(name="m"), _decode.model_info),
)
