"""Memory of a training step, measured in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.training_runs import LEARNING_RATES, Material, Trainee, Way

MIB = 2**20
STEPS = 2
"""The first fills the memory, the second has all there is."""


def measure(way: Way, material: Material) -> dict[str, Any]:
    """What a few steps need above the loaded model and data, at the peak, in MiB.

    ``saved_mib`` is what autograd keeps for the backward pass of one more step.
    """
    device = material.trained.device
    before = _reset_peak(device)
    trainee = Trainee(material.trained, way, lr=LEARNING_RATES["trained"])
    for step in range(STEPS):
        trainee.step(material.block(step))
    peak = _peak(device) - before
    saved = SavedTensors(trainee.model)
    with saved:
        trainee.step(material.block(STEPS))
    return {
        "peak_mib": peak / MIB,
        "saved_mib": saved.bytes / MIB,
        "nfe_forward": max(trainee.record.nfe_forward),
        "nfe_backward": max(trainee.record.nfe_backward),
    }


class SavedTensors(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that autograd keeps in a ``with`` block: each storage once, parameters not.

    It holds what it has counted, so that no address is given out a second time.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(self._pack, lambda tensor: tensor)
        self._known = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self._held: list[Tensor] = []

    @property
    def bytes(self) -> int:
        """Counted so far."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self._held)

    def _pack(self, tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in self._known:
            self._known.add(address)
            self._held.append(tensor.detach())
        return tensor


def in_child(arguments: list[str]) -> dict[str, Any]:
    """Runs the benchmark's module again with ``arguments``; it prints one line of JSON."""
    command = [sys.executable, "-m", "benchmarks.training", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _reset_peak(device: torch.device) -> int:
    """Bytes in use now; from here on the peak is counted afresh."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    # Not ru_maxrss: a child begins with its parent's, and nothing can take it back.
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def _status(name: str) -> int:
    """A line of ``/proc/self/status``, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")
