"""One call of f: its time by rows, against what reading the weights and computing must take."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.engine_bench import Bench, Result, spread
from benchmarks.engine_settings import Setting
from deq_model.function import EquilibriumWeights
from deq_model.inference import InferenceFunction
from deq_model.int8_feed_forward import Int8FeedForward, has_int8
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
ROUNDS = 2
"""Of all row counts, so that a disturbance does not fall on all times of one."""


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


class Bandwidth:
    """Bytes per second of reading a buffer far larger than the caches, by several readers.

    The best reader's best time counts: what the memory can give, not what one loop can take.
    """

    def __init__(self, mib: int, device: torch.device) -> None:
        """Makes the buffer."""
        count = mib * 2**18
        buffer = torch.ones(count, device=device)
        matrix, ones = buffer.view(-1, 2**12), torch.ones(2**12, device=device)
        self._device, self._nbytes = device, buffer.nbytes
        self._readers: dict[str, Callable[[], Any]] = {
            "sum": buffer.sum,
            "largest": buffer.max,
            "dot product of halves": lambda: torch.dot(buffer[: count // 2], buffer[count // 2 :]),
            "matrix times vector": lambda: matrix @ ones,
        }
        self.readers = dict.fromkeys(self._readers, 0.0)

    def measure(self) -> float:
        """The best of all times so far; to be called again, as others may be at work."""
        for name, reader in self._readers.items():
            found = self._nbytes / min(seconds_each(reader, self._device))
            self.readers[name] = max(found, self.readers[name])
        return max(self.readers.values())


@torch.inference_mode()
def calls(bench: Bench) -> Result:
    """Times of calls by rows: of the parts of f alone, plainly made too, and in the engine."""
    read = Bandwidth(bench.sizes.buffer_mib, bench.device)
    weights = bench.load().model.to(bench.device).f.fold().detach()
    parts: Result = {}
    for form in dict.fromkeys(FORMATS[setting.dtype] for setting in bench.settings):
        bench.tell(f"reading: {read.measure() / 1e9:.1f} GB/s")
        f = InferenceFunction(weights, form, distances=bench.config.klen)
        parts[form] = _measured(bench, f)
        bench.tell(f"f in {form}")
    if has_int8(bench.device.type):
        for name, exact in (("int8 differences", False), ("int8 exact", True)):
            f = _with_int8(bench, weights, "float16", exact=exact)
            parts[name] = _measured(bench, f)
            bench.tell(f"f in {name}")
    plain = _by_rows(bench, lambda z, u: _plainly(weights, z, u))
    engine: Result = {}
    for setting in bench.settings:
        engine[setting.name] = _in_engine(bench, setting)
        bench.tell(f"{setting.name}; reading: {read.measure() / 1e9:.1f} GB/s")
    for one in engine.values():
        reading = one["nbytes"] / read.measure()
        one["over_reading"] = one["seconds"]["median"] / reading
        one["over_reading_best"] = one["seconds"]["min"] / reading
    return {
        "bandwidth": {
            "bytes_per_s": max(read.readers.values()),
            "readers": read.readers,
            "buffer_mib": bench.sizes.buffer_mib,
        },
        "parts": parts,
        "plain": {"seconds": plain},
        "engine": engine,
    }


class _AllAlike:
    """A feed-forward of 8-bit differences whose rows are all exact, or none."""

    def __init__(self, feed_forward: Int8FeedForward, *, exact: bool) -> None:
        self.nbytes = feed_forward.nbytes * (1 + exact)
        self._feed_forward, self._exact = feed_forward, exact

    def __call__(self, x: Tensor) -> Tensor:
        """The feed-forward."""
        exact = torch.full((len(x),), self._exact)
        self._feed_forward.set_rows(torch.arange(len(x)), exact)
        return self._feed_forward(x)


def _with_int8(
    bench: Bench, weights: EquilibriumWeights, form: Format, *, exact: bool
) -> InferenceFunction:
    int8 = Int8FeedForward(weights, rows=MANY_ROWS)
    return InferenceFunction(
        weights,
        form,
        distances=bench.config.klen,
        feed_forward=_AllAlike(int8, exact=exact),
    )


def _measured(bench: Bench, f: InferenceFunction) -> Result:
    """All of f but the attention, on rows of nobody; and the rate of its feed-forward."""
    config = bench.config

    def call(z: Tensor, injection: Tensor) -> Tensor:
        query, _, _ = f.channels(z, injection)
        return f.finish(query.flatten(1), z)

    x = torch.randn(MANY_ROWS, config.d_model, device=bench.device)
    best = min(seconds_each(lambda: f.feed_forward(x), bench.device))
    operations = 4 * config.d_model * config.d_inner
    return {
        "nbytes": f.nbytes,
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
    found: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for rows in bench.sizes.rows:
            z = torch.randn(rows, d_model, generator=generator).to(bench.device)
            injection = torch.randn(rows, 3 * d_model, generator=generator).to(bench.device)
            times = seconds_each(partial(call, z, injection), bench.device)
            found.setdefault(str(rows), []).extend(times)
    return {rows: spread(times) for rows, times in found.items()}


def _in_engine(bench: Bench, setting: Setting) -> Result:
    """Calls of f with one row, as the engine makes them for one stream that generates.

    They hold all that a call has: attention over a full memory, the solver's step, the test of the
    residual, and what becomes of an accepted token.
    """
    with bench.driver(setting, max_running=2) as driver:
        session = driver.session(bench.texts(1, bench.config.mem_len)[0])
        begin = len(driver.calls.made)
        driver.generate(bench.sizes.drawn, seed=bench.seed, session=session).wait()
        times = [call.seconds for call in driver.calls.made[begin:] if call.rows == 1]
        early = driver.engine.early_int8
    weights, form = bench.load().model.f.fold().detach(), FORMATS[setting.dtype]
    if early:  # most calls are of differences; the others, which read more, are in the times too
        f = _with_int8(bench, weights, form, exact=False)
    else:
        f = InferenceFunction(weights, form, distances=bench.config.klen)
    return {"nbytes": f.nbytes, "seconds": spread(times)}
