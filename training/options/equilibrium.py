"""What is particular to a deep-equilibrium model: its gradient, and what keeps it solvable."""

from dataclasses import dataclass
from typing import Literal

from training.errors import OptionsError
from training.options.checks import at_least, not_negative, share

MatmulDtype = Literal["float32", "bfloat16"]
GradientKind = Literal["ift", "phantom"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EquilibriumOptions:
    """The gradient of the fixed point, and what makes it easy to find.

    Attributes:
        gradient: by the implicit function theorem (ift), or of a few steps unrolled from the fixed
            point (phantom, arXiv 2111.05177).
        phantom_steps: steps that the phantom gradient unrolls.
        phantom_tau: damping of those steps, z ← (1 − tau) z + tau f(z), in (0, 1].
        n_states: states of the forward solve whose loss is trained on, the last one being the
            fixed point, the others at equal shares of its budget.
        gamma: weight of such a state's loss, to the power of how far from the last it is, in
            (0, 1].
        jac_loss_weight: weight of the estimate of the Jacobian's squared Frobenius norm.
        jac_loss_increment: what is added to the weight every jac_loss_every steps.
        jac_loss_every: steps between increments, 0 for never.
        jac_loss_freq: share of the steps that add it, drawn at random, in [0, 1].
        spectral_radius_every: steps between estimates of the Jacobian's spectral radius, 0 for
            never.
        spectral_radius_steps: products with the Jacobian of such an estimate, by the power method.
        pretrain_steps: first steps, which apply f a fixed number of times instead of solving.
        pretrain_depth: how many times.
        whole_block: solve each stream's block as one vector, as published, instead of token by
            token.
        matmul_dtype: precision of the matrix products of f, in both passes; the solver's state and
            history, normalisation and softmax stay in float32.
    """

    gradient: GradientKind = "ift"
    phantom_steps: int = 5
    phantom_tau: float = 0.8
    n_states: int = 1
    gamma: float = 0.8
    jac_loss_weight: float = 0.0
    jac_loss_increment: float = 0.0
    jac_loss_every: int = 0
    jac_loss_freq: float = 0.0
    spectral_radius_every: int = 0
    spectral_radius_steps: int = 20
    pretrain_steps: int = 0
    pretrain_depth: int = 3
    whole_block: bool = False
    matmul_dtype: MatmulDtype = "float32"

    def __post_init__(self) -> None:
        not_negative(self, "jac_loss_weight", "jac_loss_increment")
        share(self, "jac_loss_freq", one=True)
        for name in ("phantom_tau", "gamma"):
            if not 0 < getattr(self, name) <= 1:
                raise OptionsError(f"{name} must be in (0, 1], got {getattr(self, name)}")
        at_least(self, 0, "pretrain_steps", "jac_loss_every", "spectral_radius_every")
        at_least(self, 1, "pretrain_depth", "phantom_steps", "n_states")
        at_least(self, 2, "spectral_radius_steps")
        if self.jac_loss_increment and not self.jac_loss_every:
            raise OptionsError(
                "jac_loss_every must be at least 1 where jac_loss_increment is "
                f"{self.jac_loss_increment}, got 0"
            )

    def jac_weight(self, step: int) -> float:
        """Of the Jacobian's term after ``step`` steps."""
        raised = step // self.jac_loss_every if self.jac_loss_every else 0
        return self.jac_loss_weight + raised * self.jac_loss_increment
