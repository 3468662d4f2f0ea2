"""The tokens of a generation: drawn one after another, made text, told to the caller."""

import time

from server.engine.next_token import NextToken
from server.engine.predictions import Prediction
from server.engine.requests import GenerateJob
from server.engine.results import Drawn, PromptSolved, TokenLogprob, Totals
from server.engine.sampling import draw
from server.engine.work import Ending, Work, totals_of


def draw_next(prediction: Prediction, distribution: NextToken) -> int:
    """Draws the token that a state predicts, and tells the caller; ``work.ending`` if it ends."""
    run, work = prediction.run, prediction.run.work
    job = work.job
    assert isinstance(job, GenerateJob)
    announce_prompt(work, job, totals_of(run.tokens))
    early = len(work.drawn) < job.stop.min_tokens
    token_id = draw(
        distribution,
        job.sampling,
        seen=work.seen,
        forbidden=job.stop.ids if early else (),
        generator=work.generator,
    )
    token = TokenLogprob(
        token_id,
        distribution.logprob(token_id),
        distribution.top(job.logprobs),
        prediction.solved,
    )
    work.drawn.append(token)
    work.seen.add(token_id)
    if work.first_token is None:
        work.first_token = time.monotonic()
    text, work.ending = _text_and_ending(work, job, token_id)
    job.sink(Drawn(token, text))
    return token_id


def announce_prompt(work: Work, job: GenerateJob, totals: Totals) -> None:
    """Tells the caller, once, that the prompt is solved."""
    if not work.prompt_announced:
        work.prompt_announced = True
        if job.timeline is not None:
            job.timeline.solve_prompt(time.monotonic())
        job.sink(PromptSolved(totals))


def _text_and_ending(work: Work, job: GenerateJob, token_id: int) -> tuple[str, Ending | None]:
    if token_id in job.stop.ids:
        is_eos = token_id == job.stop.eos_id and token_id not in job.stop.stop_ids
        return "", Ending("eos" if is_eos else "stop_id", stop_id=token_id)
    piece = job.text.feed(token_id)
    if piece.stop_string is not None:
        return piece.text, Ending("stop_string", stop_string=piece.stop_string)
    if len(work.drawn) >= job.stop.max_tokens:
        return piece.text, Ending("length")
    return piece.text, None
