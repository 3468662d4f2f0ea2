"""ScoreStream: text comes in pieces, cut anywhere; each response is a commit to a session."""

import asyncio
import sys
import time
from dataclasses import dataclass, replace

from deqlm.v1 import common_pb2, scoring_pb2
from server import translate
from server.call import Call
from server.engine.engine import Engine
from server.engine.requests import Lease, ScoreJob
from server.engine.results import Scored, SessionView, Stopped, Times, TokenLogprob, Totals
from server.engine.solve import SolveStats
from server.errors import InvalidFields
from server.events import Events, submitted
from server.inputs import LONG_TEXT, StreamTokens, Tokens
from server.servicers.edge import LONG_RESPONSE, Edge
from server.servicers.inbox import Inbox, Message
from server.validation import StreamFields, check_stream_message

_BATCH_TOKENS = 4096
"""Tokens from which no further message is scored together with those before it."""


@dataclass(slots=True)
class _Batch:
    """What is scored together, and why it ends there.

    Attributes:
        tokens: to score; afterwards those that are scored.
        is_flush: whether the client asked for what is held back.
        is_last: whether it has sent everything.
        error: of the message behind it.
        stopped: what cut it short.
    """

    tokens: Tokens
    is_flush: bool = False
    is_last: bool = False
    error: InvalidFields | None = None
    stopped: Stopped | None = None

    @property
    def is_answered(self) -> bool:
        """Whether a response is due."""
        return bool(self.tokens) or self.is_flush or self.is_last or self.stopped is not None


class Stream:
    """One stream, from its config to its end."""

    def __init__(
        self,
        edge: Edge,
        engine: Engine,
        fields: StreamFields,
        session: SessionView,
        lease: Lease,
        call: Call,
        inbox: Inbox,
    ) -> None:
        self._edge = edge
        self._engine = engine
        self._fields = fields
        self._session = session
        self._lease = lease
        self._call = call
        self._inbox = inbox
        self._text = StreamTokens(
            engine.tokenizer,
            max_tokens=edge.limits.max_score_tokens,
            max_held_bytes=edge.limits.max_text_bytes,
        )
        self._totals = Totals()
        self._stats = SolveStats()
        self._times = Times(0.0, 0.0)
        self._unknown = 0
        self._kept: common_pb2.Kept = common_pb2.KEPT_UNSPECIFIED
        self._left = Tokens()
        """What the budget left out: scored first thing in the next batch."""

    async def run(self, session_id: str | None) -> scoring_pb2.ScoreStreamResponse:
        """Score until the client half-closes; returns the last response, yet to be sent."""
        while True:
            batch = await self._gather()
            results = await self._solve(batch)
            if batch.is_answered:
                response = await self._respond(batch, results, session_id)
                if batch.is_last:
                    return response
                await self._call.send(response)
            if batch.error is not None:
                raise batch.error

    async def _gather(self) -> _Batch:
        """At least one message, and those that came meanwhile, up to the first flush."""
        batch, self._left = _Batch(self._left), Tokens()
        while len(batch.tokens) < _BATCH_TOKENS:
            message = await self._inbox.next()
            try:
                batch.tokens = batch.tokens + await self._encode(message)
            except InvalidFields as error:
                # What came before is good: it is scored and committed first.
                batch.error = error
                return batch
            batch.is_last = message is None
            batch.is_flush = message is not None and message.WhichOneof("kind") == "flush"
            is_full = len(batch.tokens) >= _BATCH_TOKENS
            if batch.is_last or batch.is_flush or is_full or self._inbox.is_empty:
                return batch
        return batch

    async def _encode(self, message: Message | None) -> Tokens:
        """Tokens that are certain after a message; None is the end."""
        if message is None:
            return self._text.flush()
        check_stream_message(message, limits=self._edge.limits, n_token=self._engine.config.n_token)
        kind = message.WhichOneof("kind")
        if kind == "text" and len(message.text) >= LONG_TEXT:
            return await asyncio.to_thread(self._text.feed, message.text)
        if kind == "text":
            return self._text.feed(message.text)
        held = self._text.flush()
        return held + Tokens(tuple(message.token_ids.ids)) if kind == "token_ids" else held

    async def _solve(self, batch: _Batch) -> tuple[TokenLogprob, ...]:
        tokens = batch.tokens
        if not tokens:
            return ()
        events, budget = Events(self._edge.post), self._fields.budget
        job = ScoreJob(
            job_id=self._call.next_job_id(),
            tokens=tokens.ids,
            lease=self._lease,
            top_k=self._fields.top_k,
            solve=self._fields.solve,
            deadline=self._call.deadline,
            answer_by=budget.answer_by(time.monotonic()),
            max_calls=budget.max_calls,
            priority=self._fields.priority,
            owner=self._call.sharer,
            request_id=self._call.request_id,
            timeline=self._call.timeline(),
            sink=events.sink,
        )
        with (
            self._call.charged(len(tokens), events) as charge,
            submitted(self._engine, job, events),
        ):
            scored = await events.last(Scored)
            charge.used = len(scored.tokens)  # the others are charged when their turn comes
        batch.tokens, self._left = (
            tokens.first(len(scored.tokens)),
            tokens.after(len(scored.tokens)),
        )
        batch.stopped = scored.stopped
        self._kept = await self._edge.persistence.keep(self._engine, self._lease, scored.session)
        self._add(scored, batch.tokens)
        return scored.tokens

    def _add(self, scored: Scored, tokens: Tokens) -> None:
        assert scored.session is not None
        # What is stored is with the store: a stream may be open for long.
        self._session = replace(scored.session, snapshot=None)
        self._totals = self._totals + translate.totals_of(scored.tokens)
        self._stats = self._stats + scored.stats
        self._times = Times(
            self._times.queue_s + scored.times.queue_s,
            self._times.compute_s + scored.times.compute_s,
        )
        self._unknown += len(tokens.unknown)
        self._edge.metrics.input_solved(
            self._engine.name,
            tokens=len(tokens),
            scored=len(tokens),
            queue_s=scored.times.queue_s,
            status=scored.stats.status,
            trace=self._call.trace,
        )

    async def _respond(
        self, batch: _Batch, results: tuple[TokenLogprob, ...], session_id: str | None
    ) -> scoring_pb2.ScoreStreamResponse:
        if len(results) < LONG_RESPONSE:
            return self._response(batch, results, session_id)
        return await asyncio.to_thread(self._response, batch, results, session_id)

    def _response(
        self, batch: _Batch, results: tuple[TokenLogprob, ...], session_id: str | None
    ) -> scoring_pb2.ScoreStreamResponse:
        tokens = (
            translate.token_scores(results, batch.tokens, self._engine.tokenizer)
            if self._fields.include_tokens
            else ()
        )
        return scoring_pb2.ScoreStreamResponse(
            tokens=tokens,
            call=translate.totals(self._totals),
            session=translate.totals(self._session.totals),
            solver=translate.solver_report(self._stats, self._fields.solve),
            committed_position=self._session.position,
            unknown_tokens=self._unknown,
            final=batch.is_last,
            model=self._engine.name,
            session_id=session_id,
            timing=translate.timing(self._times),
            committed_bytes=min(self._text.held_from, _text_begin(self._left)),
            stopped_by=translate.stopped_by(batch.stopped),
            kept=self._kept,
        )


def _text_begin(tokens: Tokens) -> int:
    """Byte of the stream's text at which the first token that is text begins; or far away."""
    return next((span[0] for span in tokens.spans if span is not None), sys.maxsize)
