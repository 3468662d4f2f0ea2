"""Generation and scoring with the published shapes: the engine and the baseline in turns.

Everything begins with a full memory. The engine's context reaches from ``mem_len`` tokens before
the segment to the token, so 150 to 299 tokens with a memory of 150; the baseline's is ``mem_len``.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import torch
from torch import Tensor

from benchmarks.baseline import Baseline, Stand
from benchmarks.engine_bench import Bench, Result, changes, in_turns, places, spread
from benchmarks.engine_drive import Driver, Pending, calls_per_token
from benchmarks.engine_settings import EXACT_FLOAT32
from deq_model.checkpoint import LoadedCheckpoint
from deq_model.memory import Memory
from server.engine.results import Scored

BASELINE = "baseline"
PRIMING_TOL = 1e-2
"""The baseline's memory of many streams is solved to this: it is only there to be full."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Competitors with full memories.

    Attributes:
        drivers: engines by setting.
        sessions: of each engine, one a stream.
        plain: the baseline.
        stand: its memory of all streams.
        inputs: ``(streams, 1 + tgt_len)``: the last token in memory, then a block to score.
    """

    drivers: dict[str, Driver]
    sessions: dict[str, list[str]]
    plain: Baseline
    stand: Stand
    inputs: Tensor


@contextmanager
def prepared(bench: Bench, *, streams: int, mem_len: int | None = None) -> Iterator[Prepared]:
    """Engines and baseline, each stream's memory full and at the end of a segment."""
    loaded = bench.load(mem_len=mem_len)
    mem_len = loaded.config.mem_len
    full = _full(bench, mem_len)
    texts = bench.texts(streams, full - 1 + bench.config.tgt_len)
    with ExitStack() as stack:
        drivers, sessions = {}, {}
        for setting in bench.settings:
            driver = bench.driver(setting, mem_len=mem_len, max_running=places(streams))
            drivers[setting.name] = stack.enter_context(driver)
            sessions[setting.name] = driver.sessions([text[: full - 1] for text in texts])
        bench.tell("the engines' memories are full")
        inputs = torch.tensor([[0, *text] for text in texts], device=bench.device)
        stand = _stand(bench, loaded, inputs[:, :full])
        bench.tell("the baseline's memory is full")
        plain = Baseline(loaded.model)
        yield Prepared(drivers, sessions, plain, stand, inputs[:, full - 1 :])


def _full(bench: Bench, mem_len: int) -> int:
    """Tokens of whole segments that fill the memory, the <eos> before every text included."""
    length = bench.config.tgt_len
    return length * -(-mem_len // length)


def _stand(bench: Bench, loaded: LoadedCheckpoint, inputs: Tensor) -> Stand:
    """The baseline's memory of ``inputs``; that of many streams takes minutes and is kept."""
    model = loaded.model.to(bench.device)
    if len(inputs) == 1:
        return Baseline(model).score(inputs, inputs).stand
    name = f"stand-{loaded.fingerprint}-{loaded.config.mem_len}-{len(inputs)}-{bench.seed}.pt"
    path = bench.cache / name
    if not path.exists():
        stand = Baseline(model, tol=PRIMING_TOL).score(inputs, inputs).stand
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = (stand.memory.z_hist, stand.memory.u_hist, stand.hidden)
        torch.save([tensor.cpu() for tensor in kept], path)
    z_hist, u_hist, hidden = torch.load(path, map_location=bench.device, weights_only=True)
    return Stand(Memory(z_hist, u_hist), hidden)


def generation(bench: Bench, *, streams: int) -> Result:
    """Tokens per second of generation and calls of f per token, by competitor."""
    with prepared(bench, streams=streams) as ready:
        sizes = bench.sizes
        count = sizes.baseline_drawn if streams == 1 else sizes.baseline_drawn_many
        competitors = {BASELINE: partial(_plain_generation, ready, count)}
        for name in ready.drivers:
            competitors[name] = partial(_generation, ready, name, sizes.drawn)
        found = in_turns(competitors, sizes.reps, bench.tell)
    return {"streams": streams, "competitors": _summaries(found)}


def _plain_generation(ready: Prepared, count: int, rep: int) -> Result:
    seeds = [1000 * rep + i for i in range(len(ready.inputs))]
    began = time.perf_counter()
    drawn = ready.plain.generate(ready.stand, count, seeds=seeds)
    seconds = time.perf_counter() - began
    solves = (count - 1) * len(seeds)
    nfe = list(drawn.nfe)
    return {
        "tokens_per_s": solves / seconds,
        "calls_per_token": fmean(nfe),
        "nfe": nfe,
        "unconverged": 0,
    }


def _generation(ready: Prepared, name: str, count: int, rep: int) -> Result:
    driver = ready.drivers[name]
    forks = [driver.fork(session) for session in ready.sessions[name]]
    jobs = [
        driver.generate(count, seed=1000 * rep + i, session=fork) for i, fork in enumerate(forks)
    ]
    for job in jobs:
        job.wait()
    driver.delete(forks)
    solved = [token.token.solved for job in jobs for token in job.drawn[1:]]
    return {
        "tokens_per_s": steady_rate(jobs),
        "calls_per_token": calls_per_token(driver.calls, jobs),
        "nfe": [one.nfe for one in solved],
        "unconverged": sum(one.status != "converged" for one in solved),
    }


def steady_rate(jobs: list[Pending]) -> float:
    """Tokens per second while all jobs draw: from the last one's first to the first one's last."""
    return rate([job.drawn_at for job in jobs])


def rate(times: list[list[float]]) -> float:
    """The same of the instants of each stream's tokens."""
    begin, end = max(at[0] for at in times), min(at[-1] for at in times)
    drawn = sum(begin < instant <= end for at in times for instant in at)
    return drawn / (end - begin)


def scoring(bench: Bench, *, streams: int, mem_len: int) -> Result:
    """Tokens per second of scoring a block, by competitor."""
    with prepared(bench, streams=streams, mem_len=mem_len) as ready:
        plain = {BASELINE: partial(_plain_scoring, ready)}
        ours: dict[str, Callable[[int], Result]] = {
            name: partial(_scoring, ready, name) for name in ready.drivers
        }
        if streams == 1:
            found = in_turns({**plain, **ours}, bench.sizes.reps, bench.tell)
        else:  # a turn of the baseline takes minutes
            found = in_turns(plain, bench.sizes.slow_reps, bench.tell)
            found |= in_turns(ours, bench.sizes.reps, bench.tell)
    result: Result = {"streams": streams, "mem_len": mem_len, "competitors": _summaries(found)}
    if streams == 1:
        exact = _exact_logprob(bench, mem_len)
        for name, reps in found.items():
            logprob = torch.tensor(reps[0]["logprob"])
            result["competitors"][name].update(changes(logprob, exact))
    return result


def _exact_logprob(bench: Bench, mem_len: int) -> Tensor:
    """Of the block that a single stream scores, but its first token."""
    full = _full(bench, mem_len)
    text = bench.texts(1, full - 1 + bench.config.tgt_len)[0]
    with bench.driver(EXACT_FLOAT32, mem_len=mem_len, max_running=1) as driver:
        session = driver.session(text[: full - 1])
        end = driver.score(text[full - 1 :], session=session).wait()
    assert isinstance(end, Scored)
    return torch.tensor([token.logprob for token in end.tokens[1:]])


def _plain_scoring(ready: Prepared, rep: int) -> Result:
    block = ready.inputs[:, 1:]
    # What follows the block is not looked at: any target will do.
    targets = torch.cat([block[:, 1:], block[:, :1]], dim=1)
    began = time.perf_counter()
    scores = ready.plain.score(block, targets, stand=ready.stand)
    seconds = time.perf_counter() - began
    return {
        "tokens_per_s": block.numel() / seconds,
        "nfe": list(scores.nfe),
        "evaluations_per_token": scores.token_evaluations / block.numel(),
        "unconverged": 0,
        "logprob": scores.logprob[:, :-1].flatten().tolist(),
    }


def _scoring(ready: Prepared, name: str, rep: int) -> Result:
    driver = ready.drivers[name]
    forks = [driver.fork(session) for session in ready.sessions[name]]
    began = time.perf_counter()
    blocks = ready.inputs[:, 1:].tolist()
    jobs = [driver.score(block, session=fork) for block, fork in zip(blocks, forks, strict=True)]
    ends = [job.wait() for job in jobs]
    seconds = time.perf_counter() - began
    driver.delete(forks)
    assert all(isinstance(end, Scored) for end in ends)
    scored = [end for end in ends if isinstance(end, Scored)]
    stats = [end.stats for end in scored]
    tokens = sum(one.solved_tokens for one in stats)
    return {
        "tokens_per_s": tokens / seconds,
        "nfe": [one.nfe_total for one in stats],
        "evaluations_per_token": sum(one.token_evaluations for one in stats) / tokens,
        "unconverged": sum(one.unconverged_tokens for one in stats),
        "logprob": [token.logprob for end in scored for token in end.tokens[1:]],
    }


def _summaries(found: dict[str, list[Result]]) -> Result:
    return {name: _summary(reps) for name, reps in found.items()}


def _summary(reps: list[Result]) -> Result:
    """Rates of all repetitions; calls of f on average and one by one."""
    nfe = [one for rep in reps for one in rep["nfe"]]
    summary: Result = {
        "tokens_per_s": spread([rep["tokens_per_s"] for rep in reps]),
        "nfe_mean": fmean(nfe),
        "nfe": nfe,
        "unconverged": sum(rep["unconverged"] for rep in reps),
    }
    for name in ("evaluations_per_token", "calls_per_token"):
        if name in reps[0]:
            summary[name] = fmean(rep[name] for rep in reps)
    return summary
