"""Numbers from the host to a device, without waiting for it."""

from collections.abc import Sequence as Seq

import torch
from torch import Tensor


def sent(values: Seq[int] | Seq[bool] | Seq[float], device: torch.device) -> Tensor:
    """A tensor ``(n,)`` on a device: int64, bool or float32 by what the values are.

    From pinned memory, which torch keeps until the copy is made: from other memory the host would
    wait until everything before it is done.
    """
    if device.type != "cuda":
        return torch.tensor(values, device=device)
    return torch.tensor(values, pin_memory=True).to(device, non_blocking=True)
