"""From a checkpoint's folder to a warm engine."""

import logging
import time
from collections.abc import Callable

import torch

from deq_model.checkpoint import load_checkpoint
from deq_model.config import ModelConfig
from deq_model.devices import find_device
from deq_model.errors import CheckpointError
from deq_model.int8_feed_forward import has_int8
from deq_model.native.library import find
from deq_model.products import has_kernel
from deq_model.warm_start import load_warm_start
from server.config import ModelSource, ServerConfig, ServerConfigError
from server.engine.engine import Engine
from server.engine.observer import Observer

_log = logging.getLogger(__name__)

_LARGE = 1 << 22
"""Weights of a feed-forward that is worth a second thread, and 8 bits.

With a quarter of that (the bundled models) two threads wait for each other longer than they share:
they generated 300 tokens per second, one thread 450; scoring 800 and 1,100.
"""

Loader = Callable[[ModelSource, ServerConfig, Observer], Engine]
"""Makes a warm engine; blocks while it does."""


def load_engine(source: ModelSource, config: ServerConfig, observer: Observer) -> Engine:
    """Load a checkpoint and warm its engine up.

    Raises:
        CheckpointError, TokenizerError: the folder does not hold a whole checkpoint, or a warm
            start that was fitted for another one.
        ConfigError: the device is not there.
        ServerConfigError: the sizes do not fit into its memory.
    """
    began = time.monotonic()
    device = find_device(config.device)
    dtype = pick_dtype(config, device)
    # Folding the weights is done in their own precision; the engine casts afterwards.
    checkpoint = load_checkpoint(source.path, device=device)
    if checkpoint.tokenizer is None:
        raise CheckpointError(f"checkpoint {source.path} has no vocab.txt or tokenizer.model")
    warm_start = None
    if config.warm_start == "auto":
        warm_start = load_warm_start(
            source.path, d_model=checkpoint.config.d_model, fingerprint=checkpoint.fingerprint
        )
    try:
        engine = Engine(
            checkpoint,
            name=source.name,
            device=device,
            dtype=dtype,
            limits=config.engine_limits,
            observer=observer,
            warm_start=warm_start,
            early_int8=pick_early(config, device, dtype, checkpoint.config),
            threads=pick_threads(config, checkpoint.config),
        )
        engine.measure_calls()
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise ServerConfigError(
            f"model {source.name} must fit into the memory of {device} with max_sessions = "
            f"{config.max_sessions}, max_running = {config.max_running} and max_batch_tokens = "
            f"{config.max_batch_tokens}: it does not"
        ) from error
    engine.start()
    if device.type == "cpu" and find("attend") is None:
        _log.warning(
            "without the kernels in C calls of f take longer: install deqlm where there is a C "
            "compiler"
        )
    _log.info(
        "loaded model %s: %s, %s parameters, %s%s on %s, solves begin at %s, in %.1f s",
        source.name,
        checkpoint.fingerprint,
        f"{engine.n_parameters:,}",
        str(dtype).removeprefix("torch."),
        " after int8" if engine.early_int8 else "",
        f"cpu (threads: {engine.threads})" if device.type == "cpu" else device,
        "zeros" if warm_start is None else f"a {warm_start.kind} map's states",
        time.monotonic() - began,
    )
    return engine


def _is_out_of_memory(error: Exception) -> bool:
    """Whether there is no room; on a CPU torch tells that by its words alone."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return "allocate memory" in text or "overflow" in text


def pick_dtype(config: ServerConfig, device: torch.device) -> torch.dtype:
    """The number format that the configuration asks for, if this machine can do it."""
    if config.number_format == "bfloat16":
        return torch.bfloat16
    if config.number_format == "float32":
        return torch.float32
    if has_kernel("float16", device):
        return torch.float16
    if config.dtype == "float16":
        _log.warning("this CPU has no products with float16 weights, they are float32")
    return torch.float32


def pick_early(
    config: ServerConfig, device: torch.device, dtype: torch.dtype, model: ModelConfig
) -> bool:
    """Whether the feed-forward may be computed by differences in 8 bits.

    Raises:
        ServerConfigError: it must be, and this machine cannot.
    """
    can = has_int8(device.type)
    if config.early_dtype == "int8" and not can:
        raise ServerConfigError(
            f"early_dtype must be none or auto on {device}: int8 needs a CPU with AVX-512 VNNI, "
            "and the kernels that a C compiler makes when deqlm is installed"
        )
    pays = is_large(model) and dtype == torch.float16
    return can and (config.early_dtype == "int8" or (config.early_dtype == "auto" and pays))


def pick_threads(config: ServerConfig, model: ModelConfig) -> int:
    """CPU threads of one tensor operation, 0 for as many as torch has."""
    return config.threads or (0 if is_large(model) else 1)


def is_large(model: ModelConfig) -> bool:
    """Whether calls of f take long by their products, not by all that is around them."""
    return 2 * model.d_model * model.d_inner >= _LARGE
