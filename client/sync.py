"""Synchronous client.

>>> from client.sync import Client
>>> with Client("127.0.0.1:50051") as client:  # doctest: +SKIP
...     print(client.score("It was a dark night.").call.perplexity)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from client import _decode, _encode, resources, results
from client._channel import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_S,
    READY_SERVICE,
    identity,
)
from client._retry import NEVER, ON_ABORTED, ON_UNAVAILABLE, Attempts, RetryPolicy
from client._sync_resume import Open, resuming
from client._sync_session import Session
from client._sync_streams import Generation, Requests, becomes_serving, streamed_scores
from client.context import call_metadata
from client.credentials import Tls
from client.errors import from_call
from client.options import (
    Budget,
    Input,
    Priority,
    SamplingOptions,
    SolverOptions,
    StopOptions,
    StreamPiece,
)
from deqlm.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    scoring_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    tokenizer_pb2_grpc,
)


class Client:
    """A connection to one server; safe to share between threads.

    Every method raises a `client.errors.DeqlmError` when its call fails. Calls that change nothing
    are repeated when the server is unavailable; calls that change a session are only with a key.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        stream_timeout_s: float | None = None,
        owner: str = "",
        token: str | None = None,
        tls: Tls | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        send_token_unencrypted: bool = False,
        retry: RetryPolicy | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Open the channel; the connection is made by the first call.

        Args:
            address: Server as host:port.
            timeout_s: Deadline of calls that name none; None: no deadline.
            stream_timeout_s: The same for `score_stream` and `generate`.
            owner: Owner of the sessions made and used.
            token: Shows who calls, to a server that asks.
            tls: Certificates of an encrypted connection; None: an unencrypted one.
            credentials: The same as gRPC has them, in place of `tls`.
            send_token_unencrypted: Send the token even where anybody on the way can read it.
            retry: When to repeat calls that change nothing.
            sleep: Waits between attempts.

        Raises:
            InvalidArgument: A file is missing, or the token would go unencrypted to elsewhere.
        """
        self.address = address
        self._timeout_s = timeout_s
        self._stream_timeout_s = stream_timeout_s
        shown = identity(
            address,
            owner=owner,
            token=token,
            tls=tls,
            credentials=credentials,
            send_token_unencrypted=send_token_unencrypted,
        )
        self._identity = shown.metadata
        self._retry = retry if retry is not None else RetryPolicy()
        self._sleep = sleep
        self._channel = (
            grpc.insecure_channel(address, options=shown.options)
            if shown.credentials is None
            else grpc.secure_channel(address, shown.credentials, options=shown.options)
        )
        self._scoring = scoring_pb2_grpc.ScoringServiceStub(self._channel)
        self._generation = generation_pb2_grpc.GenerationServiceStub(self._channel)
        self._sessions = session_pb2_grpc.SessionServiceStub(self._channel)
        self._tokenizer = tokenizer_pb2_grpc.TokenizerServiceStub(self._channel)
        self._admin = admin_pb2_grpc.AdminServiceStub(self._channel)
        self._models = model_pb2_grpc.ModelServiceStub(self._channel)
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)

    def __enter__(self) -> Self:
        """Use as a context manager; leaving it closes the channel."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the channel."""
        self.close()

    def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        self._channel.close()

    def score(
        self,
        input: Input | None = None,
        *,
        session: str | None = None,
        model: str = "",
        top_k: int | None = None,
        solver: SolverOptions | None = None,
        include_tokens: bool = True,
        candidates: Sequence[Input] = (),
        budget: Budget | None = None,
        priority: Priority | None = None,
        idempotency_key: str = "",
        timeout_s: float | None = None,
    ) -> results.Score:
        """Score text or token ids; with candidates, score each after session and input.

        With an `idempotency_key` the session gets the input once however often the call is sent,
        so that it is repeated when the server is unavailable.
        """
        request = _encode.score_request(
            input=input,
            session_id=session,
            model=model,
            top_k=top_k,
            solver=solver,
            include_tokens=include_tokens,
            candidates=candidates,
            budget=budget,
            priority=priority,
            idempotency_key=idempotency_key,
        )
        is_safe = session is None or candidates or idempotency_key
        retry_on = ON_UNAVAILABLE if is_safe else NEVER
        return _decode.score(self._call(self._scoring.Score, request, retry_on, timeout_s))

    def score_stream(
        self,
        pieces: Iterable[StreamPiece],
        *,
        session: str | None = None,
        model: str = "",
        top_k: int | None = None,
        solver: SolverOptions | None = None,
        include_tokens: bool = True,
        budget: Budget | None = None,
        priority: Priority | None = None,
        timeout_s: float | None = None,
    ) -> Generator[results.StreamedScore, None, None]:
        """Score text as `pieces` yields it; closing the iterator cancels the call.

        `pieces` is read on another thread. It may cut text anywhere, and yield token ids and FLUSH.
        """
        config = _encode.stream_config(
            session_id=session,
            model=model,
            top_k=top_k,
            solver=solver,
            include_tokens=include_tokens,
            budget=budget,
            priority=priority,
        )
        requests = Requests(config, pieces)
        call = self._stream(self._scoring.ScoreStream, requests, timeout_s)
        requests.on_failure = call.cancel
        return streamed_scores(call, requests)

    def resumed(
        self, session_id: str, pieces: Iterable[StreamPiece], begin: Open
    ) -> Generator[results.StreamedScore, None, None]:
        """Have `begin` begin a stream on a session, and again where the last one was lost."""
        return resuming(self, session_id, pieces, begin, retry=self._retry, sleep=self._sleep)

    def generate(
        self,
        prompt: Input | None = None,
        *,
        session: str | None = None,
        model: str = "",
        sampling: SamplingOptions | None = None,
        stop: StopOptions | None = None,
        logprobs: int | None = None,
        solver: SolverOptions | None = None,
        budget: Budget | None = None,
        priority: Priority | None = None,
        idempotency_key: str = "",
        timeout_s: float | None = None,
    ) -> Generation:
        """Continue a prompt or a session; iterate over the result for the tokens.

        With an `idempotency_key` the session is continued once: sent again, it tells the same.
        """
        request = _encode.generate_request(
            prompt=prompt,
            session_id=session,
            model=model,
            sampling=sampling,
            stop=stop,
            logprobs=logprobs,
            solver=solver,
            budget=budget,
            priority=priority,
            idempotency_key=idempotency_key,
        )
        return Generation(self._stream(self._generation.Generate, request, timeout_s))

    def session(
        self, *, model: str = "", ttl_s: float | None = None, solver: SolverOptions | None = None
    ) -> Session:
        """Make a session; as a context manager it is deleted at the end."""
        return Session(self, self.create_session(model=model, ttl_s=ttl_s, solver=solver))

    def open_session(self, session_id: str) -> Session:
        """Take up a session made before."""
        return Session(self, self.get_session(session_id))

    def create_session(
        self,
        *,
        model: str = "",
        ttl_s: float | None = None,
        solver: SolverOptions | None = None,
        idempotency_key: str = "",
    ) -> resources.SessionInfo:
        """Make a session and leave its end to the caller, or to its time to live."""
        request = session_pb2.CreateSessionRequest(
            model=model,
            ttl_s=ttl_s,
            solver=_encode.solver_to_pb(solver),
            idempotency_key=idempotency_key,
        )
        answer = self._call(
            self._sessions.CreateSession, request, ON_UNAVAILABLE if idempotency_key else NEVER
        )
        return _decode.session(answer.session)

    def get_session(self, session_id: str) -> resources.SessionInfo:
        """Tell about a session."""
        request = session_pb2.GetSessionRequest(session_id=session_id)
        answer = self._call(self._sessions.GetSession, request, ON_UNAVAILABLE)
        return _decode.session(answer.session)

    def list_sessions(self, *, model: str = "") -> tuple[resources.SessionInfo, ...]:
        """List the owner's sessions, oldest first."""
        found: list[resources.SessionInfo] = []
        request = session_pb2.ListSessionsRequest(model=model)
        while True:
            page = self._call(self._sessions.ListSessions, request, ON_UNAVAILABLE)
            found.extend(map(_decode.session, page.sessions))
            if not page.next_page_token:
                return tuple(found)
            request.page_token = page.next_page_token

    def fork_session(
        self, session_id: str, *, ttl_s: float | None = None, idempotency_key: str = ""
    ) -> resources.SessionInfo:
        """Copy a session; once, if it is sent again with the same key."""
        request = session_pb2.ForkSessionRequest(
            session_id=session_id, ttl_s=ttl_s, idempotency_key=idempotency_key
        )
        answer = self._call(
            self._sessions.ForkSession, request, ON_UNAVAILABLE if idempotency_key else NEVER
        )
        return _decode.session(answer.session)

    def export_session(self, session_id: str) -> bytes:
        """Give a session out as bytes, for `import_session`; they hold its tokens."""
        request = session_pb2.ExportSessionRequest(session_id=session_id)
        answer = self._call(self._sessions.ExportSession, request, ON_UNAVAILABLE)
        blob: bytes = answer.blob
        return blob

    def import_session(
        self, blob: bytes, *, model: str = "", ttl_s: float | None = None, idempotency_key: str = ""
    ) -> resources.SessionInfo:
        """Make a session of what `export_session` gave, of this server or another."""
        request = session_pb2.ImportSessionRequest(
            blob=blob, model=model, ttl_s=ttl_s, idempotency_key=idempotency_key
        )
        retry_on = ON_UNAVAILABLE if idempotency_key else NEVER
        answer = self._call(self._sessions.ImportSession, request, retry_on)
        return _decode.session(answer.session)

    def delete_session(self, session_id: str, *, wait_if_busy: bool = False) -> None:
        """Delete a session; `wait_if_busy` tries again while another call still holds it."""
        request = session_pb2.DeleteSessionRequest(session_id=session_id)
        self._call(self._sessions.DeleteSession, request, ON_ABORTED if wait_if_busy else NEVER)

    def tokenize(self, text: str, *, model: str = "") -> resources.Tokenized:
        """Encode text."""
        request = _encode.tokenize_request(model, text)
        return _decode.tokenized(self._call(self._tokenizer.Tokenize, request, ON_UNAVAILABLE))

    def detokenize(self, ids: Iterable[int], *, model: str = "") -> resources.Detokenized:
        """Decode token ids."""
        request = _encode.detokenize_request(model, ids)
        return _decode.detokenized(self._call(self._tokenizer.Detokenize, request, ON_UNAVAILABLE))

    def models(self) -> tuple[resources.ModelInfo, ...]:
        """List the loaded models, the default one first."""
        request = model_pb2.ListModelsRequest()
        answer = self._call(self._models.ListModels, request, ON_UNAVAILABLE)
        return tuple(map(_decode.model_info, answer.models))

    def model(self, name: str = "") -> resources.ModelInfo:
        """Tell about one model, or about the default one."""
        request = model_pb2.GetModelRequest(name=name)
        answer = self._call(self._models.GetModel, request, ON_UNAVAILABLE)
        return _decode.model_info(answer.model)

    def check(self) -> resources.Check:
        """Have the server look whether everything in it adds up; needs the right `admin`."""
        request = admin_pb2.CheckInvariantsRequest()
        return _decode.check(self._call(self._admin.CheckInvariants, request, ON_UNAVAILABLE))

    def profile(
        self,
        *,
        steps: int | None = None,
        max_time_s: float | None = None,
        model: str = "",
        timeout_s: float | None = None,
    ) -> resources.Profile:
        """Have the server write a profile of the next steps of an engine; needs the right `admin`.

        Args:
            steps: Most of them.
            max_time_s: Seconds after which it ends with what there is.
            model: Whose engine; empty: the first model's.
            timeout_s: Deadline of the call.

        Raises:
            FailedPrecondition: The server has no folder for profiles, or it cannot be written to.
            Aborted: One is being taken.
        """
        request = admin_pb2.ProfileRequest(model=model, steps=steps, max_time_s=max_time_s)
        answer = self._call(self._admin.Profile, request, NEVER, timeout_s)
        return _decode.profile(answer)

    def health(self, service: str = "") -> resources.HealthStatus:
        """Ask for the health of the server, or of one service by its full name."""
        request = health_pb2.HealthCheckRequest(service=service)
        return _decode.health(self._call(self._health.Check, request, ON_UNAVAILABLE))

    def wait_ready(self, *, service: str = READY_SERVICE, timeout_s: float | None = None) -> None:
        """Wait until the service is serving, also for a server that is yet to be started.

        Raises:
            DeadlineExceeded: it was not within `timeout_s`.
        """
        attempts = Attempts(self._retry, retry_on=NEVER, timeout_s=self._timeout(timeout_s))
        request = health_pb2.HealthCheckRequest(service=service)
        while True:
            call = self._health.Watch(
                request,
                timeout=attempts.remaining_s(),
                metadata=self._metadata,
                wait_for_ready=True,
            )
            if becomes_serving(call):
                return
            self._sleep(self._retry.initial_backoff_s)

    @property
    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (*self._identity, *call_metadata())

    def _timeout(self, timeout_s: float | None) -> float | None:
        return self._timeout_s if timeout_s is None else timeout_s

    def _call(
        self,
        method: Callable[..., Any],
        request: Any,
        retry_on: frozenset[grpc.StatusCode],
        timeout_s: float | None = None,
    ) -> Any:
        attempts = Attempts(self._retry, retry_on=retry_on, timeout_s=self._timeout(timeout_s))
        while True:
            try:
                return method(request, timeout=attempts.remaining_s(), metadata=self._metadata)
            except grpc.RpcError as error:
                failure = from_call(error)
                delay_s = attempts.delay_s(failure)
                if delay_s is None:
                    raise failure from error
            self._sleep(delay_s)

    def _stream(self, method: Callable[..., Any], request: Any, timeout_s: float | None) -> Any:
        timeout_s = self._stream_timeout_s if timeout_s is None else timeout_s
        return method(request, timeout=timeout_s, metadata=self._metadata)
