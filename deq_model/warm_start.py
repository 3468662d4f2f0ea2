"""A first state for every solve: a map that was fitted to fixed points of the same model.

It takes a token's injection and the z* of the token before it, and is saved beside the checkpoint
it was fitted for. A checkpoint without one works: its solves begin at zeros.

Letters: n tokens, D ``d_model``, H hidden width.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from deq_model.errors import CheckpointError
from deq_model.files import write_whole
from deq_model.function import LAYER_NORM_EPS

WARM_START_FILE = "warm_start.safetensors"
VERSION = "1"
_FORMAT = "deqlm-warm-start"

Kind = Literal["linear", "network"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmStart:
    """``z_init = A [u; z*_before] + a``, or ``B relu(A [u; z*_before] + a) + b``.

    Whatever scaling of the inputs the fit used is folded into A and a.

    Attributes:
        from_injection: ``(D or H, 3·D)``, A's part for the injection.
        from_previous: ``(D or H, D)``, A's part for the state before.
        bias: ``(D or H,)``, a.
        out: ``(D, H)``, B; None for the linear map.
        out_bias: ``(D,)``, b; None for the linear map.
        layer_norm: normalise the result, which is what f of a post-LN model gives.
    """

    from_injection: Tensor
    from_previous: Tensor
    bias: Tensor
    out: Tensor | None = None
    out_bias: Tensor | None = None
    layer_norm: bool = False

    @property
    def kind(self) -> Kind:
        """Which of the two maps it is."""
        return "linear" if self.out is None else "network"

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Those that the kind has, by name."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    @property
    def n_parameters(self) -> int:
        """Numbers of the map: as many products as it costs per token."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """The map on a device, its products in ``dtype``."""
        moved: dict[str, Any] = {
            name: tensor.to(device, dtype).contiguous() for name, tensor in self.tensors.items()
        }
        return dataclasses.replace(self, **moved)

    def __call__(self, injection: Tensor, previous: Tensor) -> Tensor:
        """First states of tokens whose predecessors are known.

        Args:
            injection: ``(n, 3·D)``.
            previous: ``(n, D)`` z* of the tokens before, zeros where there is none.

        Returns:
            ``(n, D)`` in the dtype of ``previous``.
        """
        return self._finished(self._of_injection(injection), previous)

    def chain(self, injection: Tensor, previous: Tensor, parents: Sequence[int]) -> Tensor:
        """First states where a token may follow another one of the same n.

        Such a token's predecessor stands for its z* with its own first state. All tokens that are
        equally many steps behind a known state are mapped in one product.

        Args:
            injection: ``(n, 3·D)``.
            previous: ``(n, D)``, read where a token has no parent.
            parents: index of the token before among the n, which is less than the token's own; −1
                for a token whose predecessor is in ``previous``.

        Returns:
            ``(n, D)`` in the dtype of ``previous``.
        """
        depth: list[int] = []
        for parent in parents:
            depth.append(0 if parent < 0 else depth[parent] + 1)
        part = self._of_injection(injection)
        if not any(depth):
            return self._finished(part, previous)
        first = torch.zeros_like(previous)
        for step in range(max(depth) + 1):
            at = [i for i, d in enumerate(depth) if d == step]
            index = torch.tensor(at, device=previous.device)
            before = previous[index] if step == 0 else first[[parents[i] for i in at]]
            first[index] = self._finished(part[index], before)
        return first

    def _of_injection(self, injection: Tensor) -> Tensor:
        weight = self.from_injection
        return functional.linear(injection.to(weight.dtype), weight, self.bias)

    def _finished(self, part: Tensor, previous: Tensor) -> Tensor:
        """From the injection's share of the first product to the state."""
        weight = self.from_previous
        z = part + functional.linear(previous.to(weight.dtype), weight)
        if self.out is not None:
            z = functional.linear(z.relu_(), self.out, self.out_bias)
        z = z.to(previous.dtype)
        return (
            functional.layer_norm(z, (z.shape[-1],), eps=LAYER_NORM_EPS) if self.layer_norm else z
        )


def save_warm_start(
    folder: Path, warm_start: WarmStart, *, fingerprint: str, figures: Mapping[str, Any]
) -> None:
    """Writes the map beside a checkpoint, whole or not at all.

    Args:
        folder: of the checkpoint.
        warm_start: the map; it is stored in its own dtype.
        fingerprint: of the checkpoint that it was fitted for.
        figures: JSON-ready, what was measured of it.

    Raises:
        CheckpointError: the folder cannot be written to.
    """
    about = {
        "format": _FORMAT,
        "version": VERSION,
        "kind": warm_start.kind,
        "layer_norm": json.dumps(warm_start.layer_norm),
        "fingerprint": fingerprint,
        "figures": json.dumps(figures, allow_nan=False),
    }
    tensors = {name: tensor.cpu().contiguous() for name, tensor in warm_start.tensors.items()}
    path = folder / WARM_START_FILE
    try:
        write_whole(path, lambda temporary: save_file(tensors, temporary, metadata=about))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error


def load_warm_start(folder: Path, *, d_model: int, fingerprint: str) -> WarmStart | None:
    """The map that lies beside a checkpoint, in float32 on the CPU; None where there is none.

    Args:
        folder: of the checkpoint.
        d_model: of its model.
        fingerprint: of its configuration and weights.

    Raises:
        CheckpointError: the file is damaged, of another version, or was fitted for other weights.
    """
    path = folder / WARM_START_FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone().float() for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {error}") from None
    _check_about(path, about, fingerprint)
    _check_tensors(path, tensors, d_model)
    return WarmStart(**tensors, layer_norm=about.get("layer_norm") == "true")


def _check_about(path: Path, about: Mapping[str, str], fingerprint: str) -> None:
    if about.get("format") != _FORMAT or about.get("version") != VERSION:
        found = f"{about.get('format')} {about.get('version')}"
        raise CheckpointError(f"{path} must be of format {_FORMAT} {VERSION}, got {found}")
    if about.get("fingerprint") != fingerprint:
        raise CheckpointError(
            f"{path} was fitted for the weights {about.get('fingerprint')}, the checkpoint has "
            f"{fingerprint}: fit it again with `deqlm calibrate --model {path.parent} --data "
            "TEXT`, or delete it"
        )


def _check_tensors(path: Path, tensors: Mapping[str, Tensor], d_model: int) -> None:
    width = tensors["bias"].numel() if "bias" in tensors else 0
    expected: dict[str, tuple[int, ...]] = {
        "from_injection": (width, 3 * d_model),
        "from_previous": (width, d_model),
        "bias": (width,),
    }
    if "out" in tensors:
        expected |= {"out": (d_model, width), "out_bias": (d_model,)}
    elif width != d_model:
        expected["bias"] = (d_model,)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        raise CheckpointError(f"{path} must hold {expected} for d_model {d_model}, got {found}")
    bad = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if bad:
        raise CheckpointError(f"{path} holds values that are not finite: {', '.join(bad)}")
