"""One pass over some of a step's streams: a loss to differentiate, and figures about it."""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields

import torch
from torch import Tensor, nn

from deq_model.draws import Draws
from deq_model.gradient import GradientOptions
from deq_model.implicit import ImplicitGradient
from deq_model.jacobian import frobenius_estimate, spectral_radius
from deq_model.memory import Memory
from deq_model.model import DEQLanguageModel
from deq_model.solvers.loop import Solution
from deq_model.solvers.options import SolverStatus
from training.options.train import TrainOptions

_DTYPES = {"float32": None, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a step does, decided once for all its streams, on every rank alike.

    Attributes:
        solved: whether states are solved for, not applied a fixed number of times (pretraining).
        jac_weight: of the Jacobian's term; None in a step without it.
        radius: whether the spectral radius is estimated.
    """

    solved: bool
    jac_weight: float | None
    radius: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Streams that are computed together.

    Attributes:
        tokens: ``(b, L)`` int64.
        targets: ``(b, L)`` int64.
        memory: of the blocks before.
        draws: random numbers of these streams.
        share: b as a share of this rank's streams.
    """

    tokens: Tensor
    targets: Tensor
    memory: Memory
    draws: Draws
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """About some streams: sums over their tokens, but the largest of what has no sum.

    Attributes:
        tokens: scored ones.
        loss: sum of their nll.
        residual: of the forward solve; while pretraining, the relative change of the last
            application.
        residual_backward: of the backward solve.
        unconverged: tokens above the tolerance of the forward solve.
        unconverged_backward: of the backward solve.
        jac_loss: the Jacobian's estimate, times the tokens.
        spectral_radius: likewise.
        nfe_forward: the most calls of f.
        nfe_backward: the most products with Jᵀ.
        backward_failed: 1 where a row of a backward solve was never finite.
        memory_failed: 1 where the memory for the next block is not finite.
    """

    tokens: float = 0
    loss: float = 0
    residual: float = 0
    residual_backward: float = 0
    unconverged: float = 0
    unconverged_backward: float = 0
    jac_loss: float = 0
    spectral_radius: float = 0
    nfe_forward: float = 0
    nfe_backward: float = 0
    backward_failed: float = 0
    memory_failed: float = 0

    def to_list(self) -> list[float]:
        """All numbers, in order."""
        return list(astuple(self))

    @classmethod
    def from_list(cls, values: Sequence[float]) -> "Figures":
        """What ``to_list`` has made a list of."""
        return cls(**{field.name: v for field, v in zip(fields(cls), values, strict=True)})

    @classmethod
    def joined(cls, parts: Iterable["Figures"]) -> "Figures":
        """Of all parts together."""
        columns = zip(*(part.to_list() for part in parts), strict=True)
        names = (field.name for field in fields(cls))
        joined = {
            name: max(c) if name in _LARGEST else sum(c)
            for name, c in zip(names, columns, strict=True)
        }
        return cls(**joined)


_LARGEST = {"nfe_forward", "nfe_backward", "backward_failed", "memory_failed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What a pass leaves beside its loss.

    Attributes:
        memory: for the next block.
        figures: of the forward pass.
        gradient: holds the backward solution once the backward pass has run; None where there is
            no solve.
    """

    memory: Memory
    figures: Figures
    gradient: ImplicitGradient | None

    def after_backward(self) -> Figures:
        """The figures, with those of the backward pass, which has run."""
        found = [self.figures, Figures(memory_failed=float(not _is_finite(self.memory)))]
        if self.gradient is not None and self.gradient.solution is not None:
            found.append(_of_backward(self.gradient.solution))
        return Figures.joined(found)


class Objective(nn.Module):
    """The loss of a part as a module, so that it can be wrapped for many ranks."""

    def __init__(self, model: DEQLanguageModel, options: TrainOptions) -> None:
        super().__init__()
        self.model = model
        self._options = options
        equilibrium = options.equilibrium
        self._dtype = _DTYPES[equilibrium.matmul_dtype]
        self._gradient = GradientOptions(
            kind=equilibrium.gradient,
            steps=equilibrium.phantom_steps,
            tau=equilibrium.phantom_tau,
            n_states=equilibrium.n_states,
            gamma=equilibrium.gamma,
        )

    def forward(self, plan: Plan, part: Part) -> tuple[Tensor, Pass]:
        """The part's share of its rank's loss, to differentiate, and the rest."""
        return self._solved(plan, part) if plan.solved else self._applied(plan, part)

    def _solved(self, plan: Plan, part: Part) -> tuple[Tensor, Pass]:
        result = self.model.train_block(
            part.tokens,
            part.targets,
            part.memory,
            forward=self._options.forward,
            backward=self._options.backward,
            gradient=self._gradient,
            whole_block=self._options.equilibrium.whole_block,
            matmul_dtype=self._dtype,
            draws=part.draws,
        )
        term, told = self._about_jacobian(plan, part, result.f_z, result.z)
        solution = result.solution
        figures = Figures(
            tokens=result.nll.numel(),
            loss=float(result.nll.detach().sum()),
            residual=float(solution.residual.sum()),
            unconverged=float((solution.status != SolverStatus.CONVERGED).sum()),
            nfe_forward=solution.nfe,
        )
        return part.share * (result.objective.mean() + term), Pass(
            memory=result.memory,
            figures=Figures.joined([figures, told]),
            gradient=result.gradient,
        )

    def _applied(self, plan: Plan, part: Part) -> tuple[Tensor, Pass]:
        depth = self._options.equilibrium.pretrain_depth
        result = self.model.unroll_block(
            part.tokens,
            part.targets,
            part.memory,
            depth=depth,
            matmul_dtype=self._dtype,
            draws=part.draws,
        )
        term, told = self._about_jacobian(plan, part, result.f_z, result.z)
        moved = (result.f_z - result.z).detach().norm(dim=-1)
        figures = Figures(
            tokens=result.nll.numel(),
            loss=float(result.nll.detach().sum()),
            residual=float((moved / result.f_z.detach().norm(dim=-1)).sum()),
            nfe_forward=depth,
        )
        return part.share * (result.nll.mean() + term), Pass(
            memory=result.memory, figures=Figures.joined([figures, told]), gradient=None
        )

    def _about_jacobian(
        self, plan: Plan, part: Part, f_z: Tensor, z: Tensor
    ) -> tuple[Tensor | float, Figures]:
        """The Jacobian's term of the loss, and what the step estimates of it."""
        count = part.tokens.numel()
        term: Tensor | float = 0.0
        jac_loss = radius = 0.0
        if plan.jac_weight is not None:
            estimate = frobenius_estimate(f_z, z, v=part.draws.jacobian)
            term, jac_loss = plan.jac_weight * estimate, float(estimate.detach())
        if plan.radius:
            steps = self._options.equilibrium.spectral_radius_steps
            radius = float(spectral_radius(f_z, z, steps=steps, v=part.draws.spectral).mean())
        return term, Figures(jac_loss=jac_loss * count, spectral_radius=radius * count)


def _of_backward(solution: Solution) -> Figures:
    return Figures(
        residual_backward=float(solution.residual.sum()),
        unconverged_backward=float((solution.status != SolverStatus.CONVERGED).sum()),
        nfe_backward=solution.nfe,
        backward_failed=float((solution.status == SolverStatus.NONFINITE).any()),
    )


def _is_finite(memory: Memory) -> bool:
    return bool(memory.z_hist.isfinite().all() & memory.u_hist.isfinite().all())
