"""One call of f: its time by rows, against what reading the weights and computing must take."""

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.engine_bench import Bench, Result, spread
from benchmarks.engine_settings import Setting
from deq_model.feed_forward import FeedForward, Int8FeedForward, has_int8
from deq_model.function import EquilibriumWeights
from deq_model.inference import InferenceFunction
from deq_model.products import Format

FORMATS: dict[torch.dtype, Format] = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}
MANY_ROWS = 1024
"""Of a call whose time is arithmetic alone."""
LEAST_S, MOST_TIMES = 0.3, 50
"""Calls are repeated for so long, or so often; at least three times."""


def seconds_each(work: Callable[[], Any], device: torch.device) -> list[float]:
    """Seconds of each call of ``work``, the first ones left out."""
    work()
    work()
    times: list[float] = []
    end = time.perf_counter() + LEAST_S
    while len(times) < 3 or (time.perf_counter() < end and len(times) < MOST_TIMES):
        _synchronise(device)
        began = time.perf_counter()
        work()
        _synchronise(device)
        times.append(time.perf_counter() - began)
    return times


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bandwidth(mib: int, device: torch.device) -> Result:
    """Bytes per second of reading a buffer far larger than the caches, by several readers.

    The best reader's best time counts: what the memory can give, not what one loop can take.
    """
    count = mib * 2**18
    buffer = torch.ones(count, device=device)
    matrix, ones = buffer.view(-1, 2**12), torch.ones(2**12, device=device)
    readers: dict[str, Callable[[], Any]] = {
        "sum": buffer.sum,
        "largest": buffer.max,
        "dot product of halves": lambda: torch.dot(buffer[: count // 2], buffer[count // 2 :]),
        "matrix times vector": lambda: matrix @ ones,
    }
    found = {
        name: buffer.nbytes / min(seconds_each(reader, device)) for name, reader in readers.items()
    }
    return {"bytes_per_s": max(found.values()), "readers": found, "buffer_mib": mib}


@torch.inference_mode()
def calls(bench: Bench) -> Result:
    """Times of calls by rows: of the parts of f alone, plainly made too, and in the engine."""
    read = bandwidth(bench.sizes.buffer_mib, bench.device)
    bench.tell(f"reading: {read['bytes_per_s'] / 1e9:.1f} GB/s")
    weights = bench.load().model.to(bench.device).f.fold().detach()
    parts: Result = {}
    for form in dict.fromkeys(FORMATS[setting.dtype] for setting in bench.settings):
        f = InferenceFunction(weights, form, distances=bench.config.klen)
        parts[form] = _measured(bench, f, f.feed_forward)
        bench.tell(f"f in {form}")
    if has_int8(bench.device.type):
        f = InferenceFunction(weights, "float32", distances=bench.config.klen)
        parts["int8"] = _measured(bench, f, Int8FeedForward(weights))
        bench.tell("f in int8")
    plain = _by_rows(bench, lambda z, u: _plainly(weights, z, u))
    engine = {
        setting.name: _in_engine(bench, setting, read["bytes_per_s"]) for setting in bench.settings
    }
    return {"bandwidth": read, "parts": parts, "plain": {"seconds": plain}, "engine": engine}


def _measured(bench: Bench, f: InferenceFunction, feed_forward: FeedForward) -> Result:
    """All of f but the attention, on rows of nobody; and the rate of its feed-forward."""
    config = bench.config

    def call(z: Tensor, injection: Tensor) -> Tensor:
        query, _, _ = f.channels(z, injection)
        return f.finish(query.flatten(1), z, feed_forward)

    x = torch.randn(MANY_ROWS, config.d_model, device=bench.device)
    best = min(seconds_each(lambda: feed_forward(x), bench.device))
    operations = 4 * config.d_model * config.d_inner
    return {
        "nbytes": f.nbytes - f.feed_forward.nbytes + feed_forward.nbytes,
        "operations_per_s": MANY_ROWS * operations / best,
        "operations_per_row": operations + 8 * config.d_model**2,
        "seconds": _by_rows(bench, call),
    }


def _plainly(weights: EquilibriumWeights, z: Tensor, injection: Tensor) -> Tensor:
    """The same by plain products in float32: the least that a call of the baseline takes."""
    channels = functional.linear(z, weights.qkv) + injection
    hidden = functional.linear(channels[:, : z.shape[1]], weights.o, weights.o_bias) + z
    hidden = functional.layer_norm(hidden, hidden.shape[1:])
    inner = functional.linear(hidden, weights.ff1, weights.ff1_bias).relu()
    out = functional.linear(inner, weights.ff2, weights.ff2_bias) + hidden
    return functional.layer_norm(out, out.shape[1:])


def _by_rows(bench: Bench, call: Callable[[Tensor, Tensor], Tensor]) -> Result:
    d_model = bench.config.d_model
    generator = torch.Generator().manual_seed(bench.seed)
    found: Result = {}
    for rows in bench.sizes.rows:
        z = torch.randn(rows, d_model, generator=generator).to(bench.device)
        injection = torch.randn(rows, 3 * d_model, generator=generator).to(bench.device)
        times = seconds_each(partial(call, z, injection), bench.device)
        found[str(rows)] = spread(times)
    return found


def _in_engine(bench: Bench, setting: Setting, bytes_per_s: float) -> Result:
    """Calls of f with one row, as the engine makes them for one stream that generates.

    They hold all that a call has: attention over a full memory, the solver's step, the test of the
    residual, and what becomes of an accepted token.
    """
    with bench.driver(setting, max_running=2) as driver:
        session = driver.session(bench.texts(1, bench.config.mem_len)[0])
        begin = len(driver.calls.made)
        driver.generate(bench.sizes.drawn, seed=bench.seed, session=session).wait()
        times = [call.seconds for call in driver.calls.made[begin:] if call.rows == 1]
    weights = bench.load().model.f.fold().detach()
    f = InferenceFunction(weights, FORMATS[setting.dtype], distances=bench.config.klen)
    return {
        "nbytes": f.nbytes,
        "seconds": spread(times),
        "over_reading": median(times) * bytes_per_s / f.nbytes,
        "over_reading_best": min(times) * bytes_per_s / f.nbytes,
    }
