"""What an engine is made of, from a checkpoint and its sizes."""

from dataclasses import dataclass

import torch

from deq_model.checkpoint import LoadedCheckpoint
from deq_model.errors import CheckpointError
from deq_model.prepared_softmax import PreparedLogSoftmax
from deq_model.products import Format, has_kernel
from deq_model.solvers.options import Method
from deq_model.tokenizers.base import Tokenizer
from deq_model.warm_start import WarmStart
from server.engine.batch import Batch
from server.engine.costs import CostCurve
from server.engine.jobs import JobRunner
from server.engine.limits import EngineLimits
from server.engine.memory import Memory
from server.engine.scheduler import Scheduler
from server.engine.sessions import SessionTable
from server.engine.slab import Slab, slot_bytes
from server.engine.slots import SlotPool

_FORMS: dict[torch.dtype, Format] = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


@dataclass(frozen=True, slots=True)
class Machine:
    """The parts that solve: all but the queue and the thread.

    Attributes:
        n_parameters: of the model.
        tokenizer: of the checkpoint.
        slab: memory on the device.
        rows: of its work area, which are in use.
        slots: of its store, likewise.
        sessions: that hold most of the slots.
        scheduler: of the rows of calls.
        batch: that makes the calls.
        memory: what jobs take from sessions and leave to them.
        runner: of the jobs.
    """

    n_parameters: int
    tokenizer: Tokenizer
    slab: Slab
    rows: SlotPool
    slots: SlotPool
    sessions: SessionTable
    scheduler: Scheduler
    batch: Batch
    memory: Memory
    runner: JobRunner


def build(
    checkpoint: LoadedCheckpoint,
    *,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    limits: EngineLimits,
    method: Method,
    warm_start: WarmStart | None,
    early_int8: bool,
    costs: CostCurve | None,
) -> Machine:
    """Folds, casts and moves a checkpoint's weights, and makes room on the device.

    Args:
        checkpoint: is taken over.
        method: of the solver.
        name, device, dtype, limits, warm_start, early_int8, costs: as in ``Engine``.

    Raises:
        CheckpointError: the checkpoint has no tokenizer.
    """
    tokenizer, config = checkpoint.tokenizer, checkpoint.config
    if tokenizer is None:
        raise CheckpointError(f"checkpoint of model {name!r} has no tokenizer")
    state = torch.promote_types(dtype, torch.float32)
    model = checkpoint.model.to(device, state).eval().requires_grad_(False)
    n_parameters = model.n_parameters()
    weights = model.f.fold().detach()
    del model.f  # the folded weights replace it
    # Each job may hold its base beside what sessions hold, and one may be about to be held.
    n_resident = resident_sessions(limits, slot_bytes(config, state))
    n_slot = n_resident + limits.max_running + 1
    rows, slots = SlotPool(limits.max_running), SlotPool(n_slot)
    window = min(limits.window, config.klen)
    slab = Slab(
        config,
        rows=limits.max_running,
        slots=n_slot,
        window=window,
        device=device,
        dtype=state,
    )
    sessions = SessionTable(
        slots,
        max_sessions=limits.max_sessions,
        max_resident=n_resident,
        session_bytes=slab.bytes_per_slot,
        model=name,
        fingerprint=checkpoint.fingerprint,
    )
    scheduler = Scheduler(
        max_batch_tokens=limits.max_batch_tokens,
        max_running=limits.max_running,
        window=window,
        costs=costs,
    )
    batch = Batch(
        model,
        weights,
        slab,
        max_rows=limits.max_batch_tokens,
        form=_FORMS[dtype],
        early_int8=early_int8,
        method=method,
        warm_start=None if warm_start is None else warm_start.to(device, dtype),
    )
    memory = Memory(
        slab,
        rows,
        slots,
        sessions,
        batch,
        eos_id=tokenizer.eos_id,
        state_format=limits.state_format,
    )
    runner = JobRunner(
        softmax=PreparedLogSoftmax(model.softmax, _softmax_form(dtype, device)),
        batch=batch,
        slab=slab,
        rows=rows,
        scheduler=scheduler,
        memory=memory,
        eos_id=tokenizer.eos_id,
        prefix_cache=limits.prefix_cache,
        guess_ahead=limits.guess_ahead,
    )
    return Machine(
        n_parameters, tokenizer, slab, rows, slots, sessions, scheduler, batch, memory, runner
    )


def resident_sessions(limits: EngineLimits, slot_bytes: int) -> int:
    """How many sessions may have their memory on the device: at least one."""
    if limits.resident_bytes == 0:
        return limits.max_sessions
    return max(1, min(limits.max_sessions, limits.resident_bytes // slot_bytes))


def _softmax_form(dtype: torch.dtype, device: torch.device) -> Format:
    """Log-probabilities would lose two digits to bfloat16, and on a GPU the softmax is small."""
    form = _FORMS[dtype]
    if form not in ("float16", "bfloat16"):
        return form
    return "float16" if device.type == "cpu" and has_kernel("float16", device) else "float32"
