"""What a block leaves to the next ones."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Memory:
    """Fixed points and injections of the last tokens; no gradient flows into them.

    Attributes:
        z_hist: ``(batch, M, d_model)``, oldest first, M at most ``mem_len``.
        u_hist: ``(batch, M, 3·d_model)``.
    """

    z_hist: Tensor
    u_hist: Tensor

    @classmethod
    def empty(cls, *, batch: int, d_model: int, device: torch.device, dtype: torch.dtype) -> Self:
        """Memory before the first token."""
        z_hist = torch.zeros(batch, 0, d_model, device=device, dtype=dtype)
        return cls(z_hist, z_hist.new_zeros(batch, 0, 3 * d_model))

    @property
    def length(self) -> int:
        """M, in tokens."""
        return self.z_hist.shape[1]

    def extend(self, z_star: Tensor, injection: Tensor, *, mem_len: int) -> "Memory":
        """Memory after a block: the last ``mem_len`` tokens of both."""
        z_all = torch.cat([self.z_hist, z_star.detach()], dim=1)
        u_all = torch.cat([self.u_hist, injection.detach()], dim=1)
        first = max(0, z_all.shape[1] - mem_len)
        return Memory(z_all[:, first:], u_all[:, first:])
