"""A scripted gRPC server: answers are queued by the test, calls are recorded for it."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from deqlm.v1 import (
    common_pb2,
    generation_pb2,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    scoring_pb2,
    scoring_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    tokenizer_pb2,
    tokenizer_pb2_grpc,
)

SESSION = session_pb2.Session(session_id="s1", model="tiny", position=3)
MODEL = model_pb2.ModelInfo(
    name="tiny",
    is_default=True,
    n_parameters=12_345_678,
    tokenizer=model_pb2.TOKENIZER_KIND_WORD,
    vocab_size=100,
    default_solver=common_pb2.SolverOptions(tol=1e-3, max_nfe=30),
    server_version="0.1.0",
    server_revision="0123456789ab",
    torch_version="2.13.0",
    device="cpu",
    fingerprint="0123456789abcdef",
)

TEXT = "It was a dark and stormy night\n"
"""What the tests' short file holds."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An answer that is an error."""

    code: grpc.StatusCode
    message: str = "scripted"
    details: tuple[Message, ...] = ()

    def abort(self, context: grpc.ServicerContext) -> None:
        """End the call with this error."""
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        for detail in self.details:
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        context.abort_with_status(rpc_status.to_status(status))


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call the server has got."""

    method: str
    request: Any
    metadata: dict[str, str | bytes]
    time_remaining_s: float | None


Answer = Message | Failure | Callable[[Any, grpc.ServicerContext], Any]


class FakeServer:
    """A server on a free port; `queue(method, answer)` scripts it, `calls` tells what came."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=4)
        self._grpc = grpc.server(self._pool)
        self._queued: defaultdict[str, list[Answer]] = defaultdict(list)
        self.calls: list[Call] = []
        self.cancelled = threading.Event()
        self.health = health.HealthServicer()
        _register(self, self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._grpc)
        self.address = f"127.0.0.1:{self._grpc.add_insecure_port('127.0.0.1:0')}"
        self._grpc.start()

    def stop(self) -> None:
        """Stop at once."""
        self._grpc.stop(grace=None).wait()
        self._pool.shutdown()

    def queue(self, method: str, *answers: Answer) -> None:
        """Script the next answers of a method; after them come the plain ones."""
        self._queued[method].extend(answers)

    def methods(self) -> list[str]:
        """Names of the methods called so far."""
        return [call.method for call in self.calls]

    def set_ready(self, service: str) -> None:
        """Tell by grpc.health.v1 that a service is serving."""
        self.health.set(service, health_pb2.HealthCheckResponse.SERVING)

    def answer(
        self, method: str, request: Any, context: grpc.ServicerContext, plain: Answer
    ) -> Any:
        """Record a call and answer it."""
        self.calls.append(
            Call(
                method=method,
                request=request,
                metadata=dict(context.invocation_metadata()),
                time_remaining_s=context.time_remaining(),
            )
        )
        answer = self._queued[method].pop(0) if self._queued[method] else plain
        if isinstance(answer, Failure):
            answer.abort(context)
        if method == "ScoreStream":  # as the real one: headers tell that the config is taken
            context.send_initial_metadata((("deqlm-accepted", "1"),))
        return answer(request, context) if callable(answer) else answer


def score_of(text: str, *, session_id: str | None = None) -> scoring_pb2.ScoreResponse:
    """A score with a log-probability of -1 for each word of a text."""
    tokens = words(text)
    sums = totals(len(tokens))
    return scoring_pb2.ScoreResponse(
        model="tiny",
        session_id=session_id,
        tokens=tokens,
        call=sums,
        session=None if session_id is None else sums,
        position=len(tokens),
        solver=report(len(tokens)),
    )


def totals(count: int) -> common_pb2.Totals:
    """Sums over so many words."""
    mean = 1.0 if count else 0.0
    return common_pb2.Totals(
        scored_tokens=count, logprob_sum=-float(count), mean_nll=mean, perplexity=2.718281828
    )


def report(count: int) -> common_pb2.SolverReport:
    """Solver figures: four calls of f on each of so many tokens."""
    return common_pb2.SolverReport(
        solved_tokens=count,
        token_evaluations=4 * count,
        nfe_per_token=4.0,
        converged=True,
        status=common_pb2.SOLVER_STATUS_CONVERGED,
        tol=1e-3,
        max_nfe=30,
    )


def words(text: str, *, begin: int = 0) -> list[scoring_pb2.TokenScore]:
    """A token for each word; `begin` is added to the offsets."""
    tokens = []
    raw = text.encode()
    at = 0
    for word in raw.split():
        at = raw.index(word, at)
        tokens.append(
            scoring_pb2.TokenScore(
                token_id=len(word),
                text=word.decode(),
                raw=word,
                byte_begin=begin + at,
                byte_end=begin + at + len(word),
                logprob=-1.0,
                nfe=4,
                converged=True,
            )
        )
        at += len(word)
    return tokens


def generated(*texts: str, held_back: str = "") -> list[generation_pb2.GenerateResponse]:
    """The events of a generation."""
    started = generation_pb2.GenerationStarted(model="tiny", seed=7, prompt_tokens=2)
    tokens = [
        generation_pb2.GeneratedToken(token_id=i, text=text, logprob=-0.5, nfe=3, converged=True)
        for i, text in enumerate(texts)
    ]
    finished = generation_pb2.GenerationFinished(
        reason=generation_pb2.FINISH_REASON_LENGTH,
        text=held_back,
        generated_tokens=len(texts),
        solver=report(len(texts)),
    )
    return [
        generation_pb2.GenerateResponse(started=started),
        *(generation_pb2.GenerateResponse(token=token) for token in tokens),
        generation_pb2.GenerateResponse(finished=finished),
    ]


def _score(request: scoring_pb2.ScoreRequest, _: grpc.ServicerContext) -> scoring_pb2.ScoreResponse:
    session_id = request.session_id if request.HasField("session_id") else None
    answer = score_of(request.input.text, session_id=session_id)
    for candidate in request.candidates:
        tokens = words(candidate.text)
        answer.candidates.add(tokens=tokens, totals=totals(len(tokens)))
    return answer


def _score_stream(
    requests: Iterator[scoring_pb2.ScoreStreamRequest], context: grpc.ServicerContext
) -> Iterator[scoring_pb2.ScoreStreamResponse]:
    """Score a word when white space, a flush or the end follows it."""
    next(requests)
    held, at, count = "", 0, 0

    def respond(text: str, *, final: bool = False) -> scoring_pb2.ScoreStreamResponse:
        return scoring_pb2.ScoreStreamResponse(
            tokens=words(text, begin=at),
            call=totals(count),
            session=totals(count),
            solver=report(count),
            committed_position=count,
            committed_bytes=at + len(text.encode()),
            final=final,
            model="tiny",
        )

    for request in requests:
        held += request.text
        cut = len(held) if request.HasField("flush") else held.rfind(" ") + 1
        done, held = held[:cut], held[cut:]
        count += len(done.split())
        yield respond(done)
        at += len(done.encode())
    count += len(held.split())
    yield respond(held, final=True)


class _Scoring(scoring_pb2_grpc.ScoringServiceServicer):
    def __init__(self, fake: FakeServer) -> None:
        self._fake = fake

    def Score(self, request, context):
        return self._fake.answer("Score", request, context, _score)

    def ScoreStream(self, request_iterator, context):
        context.add_callback(self._fake.cancelled.set)
        yield from self._fake.answer("ScoreStream", request_iterator, context, _score_stream)


class _Generation(generation_pb2_grpc.GenerationServiceServicer):
    def __init__(self, fake: FakeServer) -> None:
        self._fake = fake

    def Generate(self, request, context):
        def plain(_request, _context):
            return generated("The", " end", held_back=".")

        context.add_callback(self._fake.cancelled.set)
        yield from self._fake.answer("Generate", request, context, plain)


class _Sessions(session_pb2_grpc.SessionServiceServicer):
    def __init__(self, fake: FakeServer) -> None:
        self._fake = fake

    def CreateSession(self, request, context):
        plain = session_pb2.CreateSessionResponse(session=SESSION)
        return self._fake.answer("CreateSession", request, context, plain)

    def GetSession(self, request, context):
        plain = session_pb2.GetSessionResponse(session=SESSION)
        return self._fake.answer("GetSession", request, context, plain)

    def ListSessions(self, request, context):
        plain = session_pb2.ListSessionsResponse(sessions=[SESSION])
        return self._fake.answer("ListSessions", request, context, plain)

    def ForkSession(self, request, context):
        plain = session_pb2.ForkSessionResponse(session=session_pb2.Session(session_id="s2"))
        return self._fake.answer("ForkSession", request, context, plain)

    def DeleteSession(self, request, context):
        plain = session_pb2.DeleteSessionResponse()
        return self._fake.answer("DeleteSession", request, context, plain)


class _Tokenizer(tokenizer_pb2_grpc.TokenizerServiceServicer):
    def __init__(self, fake: FakeServer) -> None:
        self._fake = fake

    def Tokenize(self, request, context):
        tokens = [
            tokenizer_pb2.Token(
                token_id=word.token_id,
                text=word.text,
                byte_begin=word.byte_begin,
                byte_end=word.byte_end,
            )
            for word in words(request.text)
        ]
        plain = tokenizer_pb2.TokenizeResponse(model="tiny", tokens=tokens)
        return self._fake.answer("Tokenize", request, context, plain)

    def Detokenize(self, request, context):
        text = " ".join(map(str, request.token_ids.ids))
        plain = tokenizer_pb2.DetokenizeResponse(model="tiny", text=text)
        return self._fake.answer("Detokenize", request, context, plain)


class _Models(model_pb2_grpc.ModelServiceServicer):
    def __init__(self, fake: FakeServer) -> None:
        self._fake = fake

    def ListModels(self, request, context):
        plain = model_pb2.ListModelsResponse(models=[MODEL])
        return self._fake.answer("ListModels", request, context, plain)

    def GetModel(self, request, context):
        plain = model_pb2.GetModelResponse(model=MODEL)
        return self._fake.answer("GetModel", request, context, plain)


def _register(fake: FakeServer, server: grpc.Server) -> None:
    scoring_pb2_grpc.add_ScoringServiceServicer_to_server(_Scoring(fake), server)
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(_Generation(fake), server)
    session_pb2_grpc.add_SessionServiceServicer_to_server(_Sessions(fake), server)
    tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server(_Tokenizer(fake), server)
    model_pb2_grpc.add_ModelServiceServicer_to_server(_Models(fake), server)
