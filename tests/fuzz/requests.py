"""Requests: from the bytes of a message through every check to what the engine is given."""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import cache
from typing import Any

from google.protobuf.message import DecodeError, Message

from deq_model.tokenizers.base import Tokenizer
from deq_model.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from deqlm.v1 import common_pb2, generation_pb2, scoring_pb2, session_pb2, tokenizer_pb2
from server import translate, validation
from server.bounds import InputValue
from server.config import RequestLimits
from server.engine.solve import Solve
from server.errors import InvalidFields, UnknownText
from server.inputs import StreamTokens, Tokens, encode_text
from server.servicers.inbox import Inbox
from server.servicers.sessions import _read_page_token
from server.store.blob import BlobError, read_blob, write_blob
from server.text import StopStringText
from tests.fuzz.sessions import SNAPSHOT
from tests.fuzz.target import Target
from tests.server.tiny import SPM, word_tokenizer

LIMITS = RequestLimits(
    max_text_bytes=2000,
    max_score_tokens=100,
    max_tokens=50,
    default_max_tokens=20,
    max_candidates=4,
    max_top_k=10,
    max_stop_strings=4,
    max_stop_string_bytes=16,
    max_nfe=100,
    max_ttl_s=1000.0,
    default_ttl_s=100.0,
    overload_tol=0.0,
)
SOLVE = Solve()
REFUSALS = (DecodeError, InvalidFields, UnknownText)

TEXTS = ("the of and", "A night, \u00e4\u4e2d\U0001f600\u2581 \n\n it", "\x00\x85\u2028 x  y   z")
INPUTS = [common_pb2.Input(text=text) for text in TEXTS] + [
    common_pb2.Input(token_ids=common_pb2.TokenIds(ids=[0, 3, 21]))
]
SOLVER = common_pb2.SolverOptions(
    tol=1e-3, max_nfe=20, policy=common_pb2.BUDGET_POLICY_ERROR, keep_tol=True
)
BUDGET = common_pb2.Budget(max_time_s=1.5, max_calls=10)
MORE: dict[str, Any] = {"solver": SOLVER, "budget": BUDGET, "priority": common_pb2.PRIORITY_HIGH}


@cache
def tokenizers() -> tuple[Tokenizer, ...]:
    """Both kinds there are."""
    return word_tokenizer(), SentencePieceTokenizer.from_file(SPM)


def _encoded(value: InputValue | None, name: str) -> None:
    """Tokens of an input by both tokenizers, and what is told of them."""
    if isinstance(value, str):
        for tokenizer in tokenizers():
            tokens = encode_text(value, tokenizer, name=name)
            _check_spans(tokens, value, tokenizer)


def _check_spans(tokens: Tokens, text: str, tokenizer: Tokenizer) -> None:
    size, before = len(text.encode("utf-8")), 0
    for span in tokens.spans:
        assert span is not None
        assert before <= span[0] <= span[1] <= size, "tokens out of their text's order"
        before = span[1]
    told = translate.tokenized(tokens, tokenizer, "m")
    assert len(told.tokens) == len(tokens.ids)


def _score(data: bytes) -> None:
    request = scoring_pb2.ScoreRequest.FromString(data)
    fields = validation.check_score(request, limits=LIMITS, n_token=22, solve=SOLVE)
    _encoded(fields.input, "input")
    for candidate in fields.candidates:
        _encoded(candidate, "candidates[0]")


def _stream(data: bytes) -> None:
    """A config, then messages, each behind its length, as one stream of them."""
    messages = _split(data)
    config = scoring_pb2.ScoreStreamConfig.FromString(messages[0])
    validation.check_stream_config(config, limits=LIMITS, solve=SOLVE)
    texts = [StreamTokens(t, max_tokens=100, max_held_bytes=500) for t in tokenizers()]
    for part in messages[1:]:
        message = scoring_pb2.ScoreStreamRequest.FromString(part)
        validation.check_stream_message(message, limits=LIMITS, n_token=22)
        for text in texts:
            if message.WhichOneof("kind") == "text":
                text.feed(message.text)
            else:
                text.flush()
    for text in texts:
        text.flush()


def _generate(data: bytes) -> None:
    request = generation_pb2.GenerateRequest.FromString(data)
    fields = validation.check_generate(request, limits=LIMITS, n_token=22, solve=SOLVE)
    _encoded(fields.prompt, "prompt")
    for tokenizer in tokenizers():
        text = StopStringText(
            tokenizer.stream_decoder(), fields.stop_strings, min_tokens=fields.min_tokens
        )
        for token_id in (2, 3, 0, 7, 21, *sorted(fields.stop_ids)):
            if text.feed(token_id).stop_string is not None:
                break
        text.finish()


def _inbox(data: bytes) -> None:
    """Messages as the inbox hands them over: all, in their order, then the end or the error."""
    parts = _split(data)
    asyncio.run(_read_all(parts))


async def _read_all(parts: list[bytes]) -> None:
    expected = []

    async def messages() -> AsyncIterator[scoring_pb2.ScoreStreamRequest]:
        for part in parts:
            message = scoring_pb2.ScoreStreamRequest.FromString(part)
            expected.append(message)
            yield message

    inbox = Inbox(messages())
    try:
        found = []
        while (message := await inbox.next()) is not None:
            found.append(message)
        assert found == expected, "a message is lost or out of order"
        assert len(found) == len(parts)
    finally:
        inbox.close()


def _create(data: bytes) -> None:
    request = session_pb2.CreateSessionRequest.FromString(data)
    ttl_s, solve = validation.check_create(request, limits=LIMITS, solve=SOLVE)
    assert 0 < ttl_s <= LIMITS.max_ttl_s
    assert 0 < solve.tol < 1


def _fork(data: bytes) -> None:
    request = session_pb2.ForkSessionRequest.FromString(data)
    validation.check_session_id(request.session_id)
    validation.check_fork(request, limits=LIMITS)


def _import(data: bytes) -> None:
    """What a caller sends as a session, up to what the engine is given."""
    request = session_pb2.ImportSessionRequest.FromString(data)
    validation.check_fork(request, limits=LIMITS)
    read_blob(request.blob, strict=True)


def _list(data: bytes) -> None:
    request = session_pb2.ListSessionsRequest.FromString(data)
    assert 1 <= validation.check_page_size(request.page_size) <= validation.MAX_PAGE_SIZE
    key = _read_page_token(request.page_token)
    assert key is None or isinstance((key > (1.0, "a")), bool)


def _tokenize(data: bytes) -> None:
    request = tokenizer_pb2.TokenizeRequest.FromString(data)
    text = validation.check_text(request, limits=LIMITS)
    _encoded(text, "text")
    for tokenizer in tokenizers():
        _check_pieces(text, tokenizer)


def _check_pieces(text: str, tokenizer: Tokenizer) -> None:
    """However a text is cut, its tokens are the same."""
    whole, stream = tokenizer.encode(text), tokenizer.stream_encoder()
    ids: list[int] = []
    for begin in range(0, len(text), 7):
        ids += stream.feed(text[begin : begin + 7]).ids
    assert (*ids, *stream.flush().ids) == tuple(whole.ids)


def _detokenize(data: bytes) -> None:
    request = tokenizer_pb2.DetokenizeRequest.FromString(data)
    ids = validation.check_ids(request, limits=LIMITS, n_token=22)
    for tokenizer in tokenizers():
        decoder = tokenizer.stream_decoder()
        text = "".join([*(decoder.feed(token_id) for token_id in ids), decoder.flush()])
        assert text == tokenizer.decode(ids)
        text.encode("utf-8")


def _split(data: bytes) -> list[bytes]:
    """Parts behind one byte of length each; at least one."""
    parts, at = [], 0
    while at < len(data):
        size = data[at]
        parts.append(data[at + 1 : at + 1 + size])
        at += 1 + size
    return parts or [b""]


def _joined(messages: list[Message]) -> bytes:
    return b"".join(bytes([len(m)]) + m for m in (m.SerializeToString() for m in messages))


def _of(*messages: Message) -> Callable[[], list[bytes]]:
    return lambda: [message.SerializeToString() for message in messages]


def _stream_messages() -> list[Message]:
    message = scoring_pb2.ScoreStreamRequest
    return [
        message(text="the of"),
        message(text=" and \u4e2d"),
        message(token_ids=common_pb2.TokenIds(ids=[1, 2])),
        message(flush=scoring_pb2.Flush()),
        message(text=" it\n"),
    ]


def _generations() -> list[Message]:
    sampling = generation_pb2.SamplingOptions(
        temperature=0.7, top_k=5, top_p=0.9, min_p=0.01, repetition_penalty=1.2, seed=7
    )
    stop = generation_pb2.StopOptions(
        max_tokens=9, min_tokens=2, stop_strings=["of", "\u00e4\n"], stop_ids=[3], ignore_eos=True
    )
    request = generation_pb2.GenerateRequest
    return [request(prompt=prompt, sampling=sampling, stop=stop, **MORE) for prompt in INPUTS]


def _scores() -> list[Message]:
    request = scoring_pb2.ScoreRequest
    plain = [request(input=value, top_k=3, include_tokens=True, **MORE) for value in INPUTS]
    return [*plain, request(candidates=INPUTS, model="m", session_id="ab")]


def _target(
    name: str, seeds: Callable[[], list[bytes]], decode: Callable[[bytes], object], share: int = 10
) -> Target:
    return Target(f"request {name}", seeds, decode, REFUSALS, share)


CONFIG = scoring_pb2.ScoreStreamConfig(top_k=2, session_id="ab", **MORE)
PAGE = "MTAwMC41IGFi"

TARGETS = (
    _target("Score", _of(*_scores()), _score, 30),
    _target("ScoreStream", lambda: [_joined([CONFIG, *_stream_messages()])], _stream, 20),
    _target("Generate", _of(*_generations()), _generate, 30),
    _target(
        "CreateSession", _of(session_pb2.CreateSessionRequest(ttl_s=9, solver=SOLVER)), _create
    ),
    _target("ForkSession", _of(session_pb2.ForkSessionRequest(session_id="ab", ttl_s=9)), _fork),
    Target(
        "request ImportSession",
        lambda: [
            session_pb2.ImportSessionRequest(
                blob=write_blob(SNAPSHOT), ttl_s=9.0, idempotency_key="k"
            ).SerializeToString()
        ],
        _import,
        (*REFUSALS, BlobError),
    ),
    _target(
        "ListSessions", _of(session_pb2.ListSessionsRequest(page_size=3, page_token=PAGE)), _list
    ),
    _target(
        "Tokenize", _of(*(tokenizer_pb2.TokenizeRequest(text=t) for t in TEXTS)), _tokenize, 20
    ),
    _target(
        "Detokenize",
        _of(tokenizer_pb2.DetokenizeRequest(token_ids=common_pb2.TokenIds(ids=range(22)))),
        _detokenize,
    ),
    _target("stream inbox", lambda: [_joined(_stream_messages())], _inbox, 5),
)
