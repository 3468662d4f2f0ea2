"""Trained models: how many calls of f the engine and the baseline take, and what that changes.

Every change of a log-probability is against exact fixed points (float64, 1e-6) with the same
history: the engine's with the context of its segments, the baseline's, one token at a time, with
the last ``mem_len`` tokens. Where fixed points are not unique, the exact solve of the engine starts
where the measured one does.
"""

import dataclasses
from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor

from benchmarks.baseline import Baseline, Draws
from benchmarks.engine_bench import Bench, Result, changes, load_map, load_trained
from benchmarks.engine_drive import Driver, calls_per_token
from benchmarks.engine_settings import EXACT, Setting
from benchmarks.models import TrainedModel
from server.engine.results import Scored

BASELINE = "baseline"
STREAMS = 8
"""That generate together."""
PROMPT = 64
"""Tokens that each begins with."""
BASELINE_EXACT = 1e-6, 400
"""Tolerance and budget of the baseline's own exact states."""


def trained(bench: Bench) -> Result:
    """By model: scoring and generation, by competitor."""
    found: Result = {}
    for model in bench.trained:
        found[model.name] = {
            "scoring": _scoring(bench, model),
            "generation": _generation(bench, model),
        }
        bench.tell(model.name)
    return found


def _driver(bench: Bench, model: TrainedModel, setting: Setting) -> Driver:
    loaded = load_trained(model)
    warm_start = load_map(model.folder, loaded)
    return Driver(loaded, setting, device=bench.device, warm_start=warm_start)


def _scoring(bench: Bench, model: TrainedModel) -> Result:
    """One text, in one request; the baseline solves it in blocks of ``tgt_len``."""
    tokens = model.tokens(bench.sizes.scored)
    exact = {
        warm: _logprob(_score(bench, model, dataclasses.replace(EXACT, warm=warm), tokens))
        for warm in {False, *(setting.warm for setting in bench.settings)}
    }
    inputs = torch.tensor([[_eos(model), *tokens[:-1]]], device=bench.device)
    plain = Baseline(load_trained(model).model.to(bench.device))
    scores = plain.score(inputs, torch.tensor([tokens], device=bench.device))
    found: Result = {
        BASELINE: {
            "evaluations_per_token": scores.token_evaluations / len(tokens),
            "unconverged": 0 if scores.residual_max < plain.tol else None,
            **changes(scores.logprob[0].cpu(), exact[False]),
        }
    }
    for setting in bench.settings:
        end = _score(bench, model, setting, tokens)
        found[setting.name] = {
            "evaluations_per_token": end.stats.token_evaluations / end.stats.solved_tokens,
            "unconverged": end.stats.unconverged_tokens,
            **changes(_logprob(end), exact[setting.warm]),
        }
    return found


def _score(bench: Bench, model: TrainedModel, setting: Setting, tokens: Sequence[int]) -> Scored:
    with _driver(bench, model, setting) as driver:
        end = driver.score(tokens).wait()
    assert isinstance(end, Scored)
    return end


def _logprob(scored: Scored) -> Tensor:
    return torch.tensor([token.logprob for token in scored.tokens], dtype=torch.float64)


def _eos(model: TrainedModel) -> int:
    tokenizer = load_trained(model).tokenizer
    assert tokenizer is not None, "the checkpoint has no tokenizer"
    return tokenizer.eos_id


def _generation(bench: Bench, model: TrainedModel) -> Result:
    """Tokens drawn after pieces of the text; what was drawn is scored exactly afterwards."""
    text = model.tokens(STREAMS * PROMPT)
    prompts = [text[begin : begin + PROMPT] for begin in range(0, len(text), PROMPT)]
    found: Result = {BASELINE: _plain_generation(bench, model, prompts)}
    for setting in bench.settings:
        found[setting.name] = _engine_generation(bench, model, setting, prompts)
    return found


def _plain_generation(
    bench: Bench, model: TrainedModel, prompts: Sequence[Sequence[int]]
) -> Result:
    """One stream at a time; a batch would go on until its worst one has converged."""
    loaded, eos = load_trained(model).model.to(bench.device), _eos(model)
    inputs = [torch.tensor([[eos, *prompt]], device=bench.device) for prompt in prompts]
    plain = Baseline(loaded)
    drawn: list[Draws] = []
    for i, one in enumerate(inputs):
        stand = plain.score(one, one).stand
        drawn.append(plain.generate(stand, bench.sizes.generated, seeds=(i,)))
    tol, max_nfe = BASELINE_EXACT
    exactly = Baseline(loaded.double(), tol=tol, max_nfe=max_nfe)
    exact: list[Tensor] = []
    for one, draws in zip(inputs, drawn, strict=True):
        stand = exactly.score(one, one).stand
        tokens = draws.tokens
        again = exactly.score(tokens[:, :-1], tokens[:, 1:], stand=stand, tgt_len=1)
        exact.append(again.logprob[0].cpu())
    found = torch.cat([draws.logprob[0, 1:].cpu() for draws in drawn])
    nfe = [calls for draws in drawn for calls in draws.nfe]
    own = {"calls_per_token": fmean(nfe), "nfe_mean": fmean(nfe), "nfe": nfe}
    return {**own, **changes(found, torch.cat(exact))}


def _engine_generation(
    bench: Bench, model: TrainedModel, setting: Setting, prompts: Sequence[Sequence[int]]
) -> Result:
    with _driver(bench, model, setting) as driver:
        jobs = [
            driver.generate(bench.sizes.generated, seed=i, prompt=prompt)
            for i, prompt in enumerate(prompts)
        ]
        for job in jobs:
            job.wait()
        calls = calls_per_token(driver.calls, jobs)
    drawn = [[event.token for event in job.drawn] for job in jobs]
    with _driver(bench, model, dataclasses.replace(EXACT, warm=setting.warm)) as driver:
        scoring = [
            driver.score([*prompt, *(token.token_id for token in tokens)])
            for prompt, tokens in zip(prompts, drawn, strict=True)
        ]
        ends = [job.wait() for job in scoring]
    # The first token of a stream follows the prompt, which is solved as scored text is.
    exact = [_logprob(end)[PROMPT + 1 :] for end in ends if isinstance(end, Scored)]
    later = [token for tokens in drawn for token in tokens[1:]]
    found = torch.tensor([token.logprob for token in later], dtype=torch.float64)
    nfe = [token.solved.nfe for token in later]
    own = {"calls_per_token": calls, "nfe_mean": fmean(nfe), "nfe": nfe}
    return {**own, **changes(found, torch.cat(exact))}
