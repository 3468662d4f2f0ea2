"""Gradients through a fixed point without the steps that led to it (arXiv 1909.01377)."""

import torch
from torch import Tensor

from deq_model.solvers.loop import Solution, solve_block
from deq_model.solvers.options import SolverOptions


class ImplicitGradient:
    """Replaces the gradient g that comes back to ``f(z*)`` by the solution of ``y = Jᵀ y + g``.

    ``attach(f_z)`` returns the tensor to go on with. When its backward pass comes, the linear
    system is solved with products by Jᵀ, each as dear as one call of f and its backward; memory
    does not grow with their number.

    Attributes:
        solution: of the backward system, with ``nfe`` and residuals; None until it has run.
    """

    def __init__(self, z: Tensor, options: SolverOptions, *, whole_block: bool = False) -> None:
        """Takes the leaf ``z`` (batch, tgt_len, d_model) that ``f_z`` was computed from.

        ``whole_block`` solves each sample's block as one vector, as published.
        """
        self._z = z
        self._whole_block = whole_block
        self._options = options
        self.solution: Solution | None = None

    def attach(self, f_z: Tensor) -> Tensor:
        """The value of ``f_z``, with the implicit gradient."""
        attached = f_z.view_as(f_z)
        if attached.requires_grad:
            attached.register_hook(lambda grad: self._solve(f_z, grad))
        return attached

    def _solve(self, f_z: Tensor, grad: Tensor) -> Tensor:
        # Position i's y depends on later positions only; flipped, on earlier ones, as solve wants.
        def transposed(y: Tensor) -> Tensor:
            (product,) = torch.autograd.grad(f_z, self._z, y.flip(1), retain_graph=True)
            return (product + grad).flip(1)

        self.solution = solve_block(
            transposed, torch.zeros_like(grad), self._options, whole_block=self._whole_block
        )
        return self.solution.z_star.flip(1)
