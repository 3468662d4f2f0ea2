"""GenerationService."""

import secrets
import time
from typing import Any

from deq_model.tokenizers.base import StreamDecoder
from deqlm.v1 import common_pb2, generation_pb2, generation_pb2_grpc
from server import translate
from server.attempts import Attempt, Send, from_answer, to_answer
from server.call import Call
from server.engine.engine import Engine
from server.engine.requests import GenerateJob, Lease, Sampling, Stop
from server.engine.results import Drawn, FinishReason, Generated, PromptSolved, SessionView
from server.events import Events, check_room, submitted
from server.inputs import Tokens, encode
from server.metrics.counts import Metrics
from server.security.quotas import Charge
from server.servicers.edge import Edge
from server.text import StopStringText
from server.validation import GenerateFields, check_generate, check_token_count

_SEED_BITS = 53
"""Of a seed that the server chooses: few enough for clients whose numbers are all doubles."""

# As other servers' dashboards have them.
_FINISHED: dict[FinishReason, str] = {
    "eos": "stop",
    "stop_id": "stop",
    "stop_string": "stop",
    "length": "length",
    "time": "budget",
    "calls": "budget",
}


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """Continues text."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def Generate(self, request: generation_pb2.GenerateRequest, call: Call) -> None:
        """Generate tokens and stream them as they are drawn."""
        session_id = request.session_id if request.HasField("session_id") else None
        engine, view = self._edge.registry.for_call(request.model, session_id, call.owner)
        call.model = engine.name
        fields = check_generate(
            request,
            limits=self._edge.limits,
            n_token=engine.config.n_token,
            solve=self._edge.solve_of(view),
        )
        if not request.idempotency_key:  # or it may be done already
            check_room(engine, call.sharer, call.deadline)
        prompt = await encode(
            fields.prompt, engine.tokenizer, name="prompt", may_be_unknown=view is not None
        )
        check_token_count("prompt", len(prompt), self._edge.limits)
        key = request.idempotency_key
        if session_id is None or not key:
            await self._generate(request, prompt, fields, engine, session_id, call, Sent(call.send))
            return

        async def generate(attempt: Attempt) -> None:
            call.goes_on = True
            sent = Sent(attempt.send, keeps=True)
            await self._generate(request, prompt, fields, engine, session_id, call, sent)

        await self._edge.attempts.once(session_id, key, request, generate, call.send)
        call.finished = call.finished or "stop"  # of a call that was sent again

    async def _generate(
        self,
        request: generation_pb2.GenerateRequest,
        prompt: Tokens,
        fields: GenerateFields,
        engine: Engine,
        session_id: str | None,
        call: Call,
        sent: "Sent",
    ) -> None:
        """Generate, or send again what was answered to the same call before."""
        seed = secrets.randbits(_SEED_BITS) if fields.seed is None else fields.seed
        started = generation_pb2.GenerationStarted(
            model=engine.name,
            session_id=session_id,
            seed=seed,
            prompt_tokens=len(prompt),
            unknown_tokens=len(prompt.unknown),
        )
        events = Events(self._edge.post)
        persistence, key = self._edge.persistence, request.idempotency_key
        async with persistence.leased(engine, session_id, call.owner) as lease:
            if lease is not None and key:
                answer = engine.sessions.answer(lease, key)
                if answer is not None:
                    for response in from_answer(answer, request, generation_pb2.GenerateResponse):
                        await sent.send(response)
                    return
            held = None if lease is None else engine.sessions.view(lease)
            before = _token_before(fields, prompt, held)
            decoder = engine.tokenizer.stream_decoder(after=before)
            job = _job(
                fields,
                prompt,
                seed=seed,
                decoder=decoder,
                eos_id=engine.tokenizer.eos_id,
                events=events,
                lease=lease,
                call=call,
            )
            with (
                call.charged(len(prompt), events, more=fields.max_tokens) as charge,
                submitted(engine, job, events),
                call.watched(lambda: engine.cancel(job.job_id)),
            ):
                generated = await self._relay(events, started, engine, call, sent, charge)
            last = translate.generation_finished(generated, fields.solve)
            if lease is not None:
                answer = None
                if key:
                    last.finished.kept = common_pb2.KEPT_IN_STORE  # or nobody will read it
                    answer = to_answer(key, request, [*sent.responses, last])
                last.finished.kept = await persistence.keep(
                    engine, lease, generated.session, answer
                )
        # Only now: the session is free when the client learns that the generation is over.
        await sent.send(last)
        call.finished = _FINISHED[generated.reason]

    async def _relay(
        self,
        events: Events,
        started: generation_pb2.GenerationStarted,
        engine: Engine,
        call: Call,
        sent: "Sent",
        charge: Charge,
    ) -> Generated:
        """Send what comes out of the engine, up to the end of the job."""
        clock = _Clock(self._edge.metrics, engine.name, call)
        while True:
            event = await events.next()
            if isinstance(event, PromptSolved):
                clock.prompt_solved(event.totals.scored_tokens)
                started.prompt.CopyFrom(translate.totals(event.totals))
                await sent.send(generation_pb2.GenerateResponse(started=started))
            elif isinstance(event, Drawn):
                clock.token_drawn()
                charge.used += 1
                await sent.send(
                    translate.generated_token(event.token, event.text, engine.tokenizer)
                )
            elif isinstance(event, Generated):
                clock.generated(event)
                return event


class Sent:
    """Responses on their way to the client, and what of them is to be kept."""

    def __init__(self, send: Send, *, keeps: bool = False) -> None:
        self._send, self._keeps = send, keeps
        self.responses: list[Any] = []

    async def send(self, response: Any) -> None:
        """Send one."""
        if self._keeps:
            self.responses.append(response)
        await self._send(response)


class _Clock:
    """Measures one generation."""

    def __init__(self, metrics: Metrics, model: str, call: Call) -> None:
        self._metrics = metrics
        self._model = model
        self._trace = call.trace
        self._started = self._solved = self._first = self._last = call.started
        self._tokens = 0

    def prompt_solved(self, tokens: int) -> None:
        """The prompt is done."""
        self._solved = time.monotonic()
        self._metrics.prompt_solved(self._model, tokens=tokens)

    def token_drawn(self) -> None:
        """A token came."""
        now = time.monotonic()
        if self._tokens == 0:
            self._metrics.first_token_drawn(self._model, now - self._last, self._trace)
            self._first = now
        else:
            self._metrics.token_drawn(self._model, now - self._last)
        self._last = now
        self._tokens += 1

    def generated(self, event: Generated) -> None:
        """It is over."""
        queue_s = event.times.queue_s
        self._metrics.generated(
            self._model,
            tokens=self._tokens,
            queue_s=queue_s,
            prefill_s=self._solved - self._started - queue_s,
            decode_s=time.monotonic() - self._solved,
            status=event.stats.status,
            trace=self._trace,
        )
        if self._tokens > 1:
            mean_s = (self._last - self._first) / (self._tokens - 1)
            self._metrics.time_per_token(self._model, mean_s, self._trace)


def _job(
    fields: GenerateFields,
    prompt: Tokens,
    *,
    seed: int,
    decoder: StreamDecoder,
    eos_id: int,
    events: Events,
    lease: Lease | None,
    call: Call,
) -> GenerateJob:
    return GenerateJob(
        job_id=call.next_job_id(),
        prompt=prompt.ids,
        text=StopStringText(decoder, fields.stop_strings, min_tokens=fields.min_tokens),
        stop=Stop(
            max_tokens=fields.max_tokens,
            min_tokens=fields.min_tokens,
            stop_ids=fields.stop_ids,
            eos_id=None if fields.ignore_eos else eos_id,
        ),
        sampling=Sampling(
            repetition_penalty=fields.repetition_penalty,
            temperature=fields.temperature,
            top_k=fields.top_k,
            top_p=fields.top_p,
            min_p=fields.min_p,
            seed=seed,
        ),
        logprobs=fields.logprobs,
        lease=lease,
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


def _token_before(fields: GenerateFields, prompt: Tokens, held: SessionView | None) -> int | None:
    """The token that the generated text continues; None where it begins after white space."""
    if isinstance(fields.prompt, str) and fields.prompt[-1:].isspace():
        return None
    if prompt.ids:
        return prompt.ids[-1]
    return None if held is None else held.last_token
