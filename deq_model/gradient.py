"""How a block's gradient is had: by which rule, and from how many states of the solve."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from deq_model.errors import ConfigError

GradientKind = Literal["ift", "phantom"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientOptions:
    """The gradient of a fixed point, and which other states of the solve are supervised.

    With n states the forward solve's budget is cut in n equal parts. The states at the ends of the
    first n − 1 parts, or the fixed point where it was found before, are trained as well: their
    losses weigh ``gamma^(n − k − 1)``, k = 0 … n − 2, and the last state's weighs 1.

    Attributes:
        kind: by the implicit function theorem (ift), or of a few steps unrolled from the fixed
            point (phantom, arXiv 2111.05177). The other states' gradients are those of one step
            with ift, and of the same unrolled steps with phantom.
        steps: that phantom unrolls.
        tau: damping of those steps, ``z ← (1 − tau) z + tau f(z)``, in (0, 1].
        n_states: supervised states, the fixed point included.
        gamma: base of the weights of the others, in (0, 1].
    """

    kind: GradientKind = "ift"
    steps: int = 1
    tau: float = 1.0
    n_states: int = 1
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("ift", "phantom"):
            raise ConfigError(f"kind must be ift or phantom, got {self.kind!r}")
        for name in ("steps", "n_states"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("tau", "gamma"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be in (0, 1], got {getattr(self, name)}")

    def marks(self, max_nfe: int) -> tuple[int, ...]:
        """Calls of f after which the states before the last one are taken.

        Raises:
            ConfigError: there are more states than calls.
        """
        if self.n_states > max_nfe:
            raise ConfigError(f"n_states must be at most max_nfe = {max_nfe}, got {self.n_states}")
        return tuple(math.ceil(max_nfe * k / self.n_states) for k in range(1, self.n_states))

    def weights(self) -> tuple[float, ...]:
        """Of the losses of the states before the last one."""
        return tuple(self.gamma ** (self.n_states - k - 1) for k in range(self.n_states - 1))

    def damped(self, z: Tensor, f_z: Tensor) -> Tensor:
        """``(1 − tau) z + tau f(z)``."""
        return f_z if self.tau == 1 else (1 - self.tau) * z + self.tau * f_z

    def unroll(self, f: Callable[[Tensor], Tensor], z: Tensor, f_z: Tensor) -> Tensor:
        """The state after the phantom steps from ``z``, of which f was called already."""
        z = self.damped(z, f_z)
        for _ in range(self.steps - 1):
            z = self.damped(z, f(z))
        return z

    def supervised(self, f: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        """What the loss of a state before the last one reads: with its graph, ``z`` without."""
        f_z = f(z)
        return f_z if self.kind == "ift" else self.unroll(f, z, f_z)
