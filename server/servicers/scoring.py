"""ScoringService: one call here, streams in ``streams``."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from deqlm.v1 import common_pb2, scoring_pb2, scoring_pb2_grpc
from server import translate
from server.attempts import Attempt, from_answer, to_answer
from server.call import Call
from server.engine.engine import Engine
from server.engine.requests import Lease, ScoreJob
from server.engine.results import Scored
from server.events import Events, check_room, submitted
from server.inputs import Tokens, encode
from server.servicers.edge import LONG_RESPONSE, Edge
from server.servicers.streams import Streams
from server.validation import ScoreFields, check_score, check_token_count


@dataclass(frozen=True, slots=True)
class _Inputs:
    """A Score call's input and candidates as tokens."""

    input: Tokens
    candidates: tuple[Tokens, ...]

    def __len__(self) -> int:
        return len(self.input) + sum(map(len, self.candidates))


class ScoringServicer(scoring_pb2_grpc.ScoringServiceServicer):
    """Scores text or token ids."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self.streams = Streams(edge)

    async def Score(
        self, request: scoring_pb2.ScoreRequest, call: Call
    ) -> scoring_pb2.ScoreResponse:
        """Score one input, or candidates after it."""
        session_id = request.session_id if request.HasField("session_id") else None
        engine, view = self._edge.registry.for_call(request.model, session_id, call.owner)
        call.model = engine.name
        fields = check_score(
            request,
            limits=self._edge.limits,
            n_token=engine.config.n_token,
            solve=self._edge.solve_of(view),
        )
        if not request.idempotency_key:  # or it may be done already
            check_room(engine, call.sharer, call.deadline)
        inputs = await self._encode(fields, engine, has_session=view is not None)
        if session_id is None or not request.idempotency_key:
            return await self._score(request, inputs, fields, engine, session_id, call)
        answers: list[scoring_pb2.ScoreResponse] = []

        async def answer(response: scoring_pb2.ScoreResponse) -> None:
            answers.append(response)

        async def score(attempt: Attempt) -> None:
            call.goes_on = True
            await attempt.send(await self._score(request, inputs, fields, engine, session_id, call))

        key = request.idempotency_key
        await self._edge.attempts.once(session_id, key, request, score, answer)
        call.finished = "scored"
        return answers[0]

    async def _score(
        self,
        request: scoring_pb2.ScoreRequest,
        inputs: _Inputs,
        fields: ScoreFields,
        engine: Engine,
        session_id: str | None,
        call: Call,
    ) -> scoring_pb2.ScoreResponse:
        """Score, or find out what was answered to the same call before."""
        persistence, key = self._edge.persistence, request.idempotency_key
        async with persistence.leased(engine, session_id, call.owner) as lease:
            if lease is not None and key:
                answer = engine.sessions.answer(lease, key)
                if answer is not None:
                    return from_answer(answer, request, scoring_pb2.ScoreResponse)[0]
            scored = await self._solve(inputs, fields, engine, lease, call)
            response = await self._respond(scored, inputs, fields, engine, session_id, call)
            if lease is not None:
                answer = None
                if key:
                    response.kept = common_pb2.KEPT_IN_STORE  # or nobody will read it
                    answer = to_answer(key, request, [response])
                view = None if inputs.candidates else scored.session
                response.kept = await persistence.keep(engine, lease, view, answer)
            return response

    async def _respond(
        self,
        scored: Scored,
        inputs: _Inputs,
        fields: ScoreFields,
        engine: Engine,
        session_id: str | None,
        call: Call,
    ) -> scoring_pb2.ScoreResponse:
        self._edge.metrics.input_solved(
            engine.name,
            tokens=len(scored.tokens),
            scored=len(scored.tokens) + sum(map(len, scored.candidates)),
            queue_s=scored.times.queue_s,
            status=scored.stats.status,
            trace=call.trace,
        )
        call.finished = "scored"
        if len(inputs) < LONG_RESPONSE:
            return _response(scored, inputs, fields, engine, session_id)
        return await asyncio.to_thread(_response, scored, inputs, fields, engine, session_id)

    async def ScoreStream(
        self, requests: AsyncIterator[scoring_pb2.ScoreStreamRequest], call: Call
    ) -> None:
        """Score text as it comes in."""
        await self.streams.run(requests, call)

    async def _encode(self, fields: ScoreFields, engine: Engine, *, has_session: bool) -> _Inputs:
        tokenizer = engine.tokenizer
        value = await encode(fields.input, tokenizer, name="input", may_be_unknown=has_session)
        # After a prefix a candidate of unknown words has a score that means something.
        has_context = has_session or fields.input is not None
        candidates = [
            await encode(
                candidate, tokenizer, name=f"candidates[{index}]", may_be_unknown=has_context
            )
            for index, candidate in enumerate(fields.candidates)
        ]
        inputs = _Inputs(value, tuple(candidates))
        name = "input and candidates" if candidates else "input"
        check_token_count(name, len(inputs), self._edge.limits)
        return inputs

    async def _solve(
        self,
        inputs: _Inputs,
        fields: ScoreFields,
        engine: Engine,
        lease: Lease | None,
        call: Call,
    ) -> Scored:
        events = Events(self._edge.post)
        job = ScoreJob(
            job_id=call.next_job_id(),
            tokens=inputs.input.ids,
            candidates=tuple(candidate.ids for candidate in inputs.candidates),
            lease=lease,
            top_k=fields.top_k,
            solve=fields.solve,
            deadline=call.deadline,
            answer_by=fields.budget.answer_by(call.started),
            max_calls=fields.budget.max_calls,
            priority=fields.priority,
            owner=call.sharer,
            request_id=call.request_id,
            timeline=call.timeline(),
            sink=events.sink,
        )
        with (
            call.charged(len(inputs), events) as charge,
            submitted(engine, job, events),
            call.watched(lambda: engine.cancel(job.job_id)),
        ):
            scored = await events.last(Scored)
            charge.used = len(scored.tokens) + sum(map(len, scored.candidates))
            return scored


def _response(
    scored: Scored,
    inputs: _Inputs,
    fields: ScoreFields,
    engine: Engine,
    session_id: str | None,
) -> scoring_pb2.ScoreResponse:
    tokenizer, include = engine.tokenizer, fields.include_tokens
    own = inputs.input.first(len(scored.tokens))
    return scoring_pb2.ScoreResponse(
        model=engine.name,
        session_id=session_id,
        tokens=translate.token_scores(scored.tokens, own, tokenizer) if include else (),
        call=translate.totals(translate.totals_of(scored.tokens)),
        session=None if scored.session is None else translate.totals(scored.session.totals),
        solver=translate.solver_report(scored.stats, fields.solve),
        candidates=[
            translate.candidate_score(
                results,
                tokens,
                tokenizer,
                include_tokens=include,
                stopped=scored.stopped if index in scored.cut else None,
            )
            for index, (results, tokens) in enumerate(
                zip(scored.candidates, inputs.candidates, strict=True)
            )
        ],
        position=scored.position,
        unknown_tokens=len(own.unknown),
        timing=translate.timing(scored.times),
        stopped_by=translate.stopped_by(scored.stopped),
    )
