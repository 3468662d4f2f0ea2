"""One step of training: a block's loss, its gradient, and the change of the parameters."""

from dataclasses import dataclass

import torch
from torch import Tensor

from deq_model.jacobian import frobenius_estimate
from deq_model.memory import Memory
from deq_model.model import DEQLanguageModel
from training.data import Block
from training.optimiser import make_optimiser, set_rate
from training.options.train import TrainOptions
from training.schedule import Schedule

_DTYPES = {"float32": None, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What a step did.

    Attributes:
        loss: mean nll of the block, in nats per token.
        tokens: scored ones.
        nfe_forward: calls of f.
        nfe_backward: products with Jᵀ; 0 while pretraining.
        residual: mean over the tokens of the residual at the forward solution; while pretraining,
            of the relative change that the last application made.
        jac_loss: the Jacobian's estimate, None where it was not drawn.
        grad_norm: before clipping.
        lr: learning rate.
        skipped: whether loss or gradient were not finite and the parameters stayed.
    """

    loss: float
    tokens: int
    nfe_forward: int
    nfe_backward: int
    residual: float
    jac_loss: float | None
    grad_norm: float
    lr: float
    skipped: bool


@dataclass(frozen=True, slots=True)
class _Pass:
    nll: Tensor
    memory: Memory
    loss: Tensor
    jac_loss: Tensor | None
    nfe_forward: int
    residual: float


class Stepper:
    """Holds the model, its optimiser and the source of random numbers."""

    def __init__(
        self, model: DEQLanguageModel, options: TrainOptions, *, generator: torch.Generator
    ) -> None:
        self.model = model
        self.options = options
        self.generator = generator
        self.optimiser = make_optimiser(model.parameters(), options.optimiser)
        self.schedule = Schedule(options.optimiser)

    def step(self, step: int, block: Block, memory: Memory) -> tuple[StepReport, Memory]:
        """Trains on a block.

        Args:
            step: number of steps before this one.
            block: to train on.
            memory: of the blocks before.

        Returns:
            The report, and the memory for the next block: emptied where it would not be finite.
        """
        lr = self.schedule.rate(step)
        set_rate(self.optimiser, lr)
        self.optimiser.zero_grad(set_to_none=True)
        done, nfe_backward = self._gradient(step, block, memory)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options.optimiser.clip)
        loss = done.nll.mean().detach()
        sound = bool(norm.isfinite() & loss.isfinite())
        if sound:
            self.optimiser.step()
        report = StepReport(
            loss=float(loss),
            tokens=done.nll.numel(),
            nfe_forward=done.nfe_forward,
            nfe_backward=nfe_backward,
            residual=done.residual,
            jac_loss=None if done.jac_loss is None else float(done.jac_loss.detach()),
            grad_norm=float(norm),
            lr=lr,
            skipped=not sound,
        )
        return report, self._sound(done.memory)

    def _gradient(self, step: int, block: Block, memory: Memory) -> tuple[_Pass, int]:
        """Runs forward and backward; returns the backward solver's calls as well."""
        tokens = block.tokens.to(self.model.device)
        targets = block.targets.to(self.model.device)
        if step < self.options.equilibrium.pretrain_steps:
            done = self._unrolled(step, tokens, targets, memory)
            done.loss.backward()
            return done, 0
        result = self.model.train_block(
            tokens,
            targets,
            memory,
            forward=self.options.forward,
            backward=self.options.backward,
            matmul_dtype=_DTYPES[self.options.equilibrium.matmul_dtype],
            generator=self.generator,
        )
        loss, jac_loss = self._loss(step, result.nll, result.f_z, result.z)
        residual = float(result.solution.residual.mean())
        loss.backward()
        solved = result.gradient.solution
        done = _Pass(result.nll, result.memory, loss, jac_loss, result.solution.nfe, residual)
        return done, 0 if solved is None else solved.nfe

    def _unrolled(self, step: int, tokens: Tensor, targets: Tensor, memory: Memory) -> _Pass:
        equilibrium = self.options.equilibrium
        result = self.model.unroll_block(
            tokens,
            targets,
            memory,
            depth=equilibrium.pretrain_depth,
            matmul_dtype=_DTYPES[equilibrium.matmul_dtype],
            generator=self.generator,
        )
        loss, jac_loss = self._loss(step, result.nll, result.f_z, result.z)
        moved = (result.f_z - result.z).detach().norm(dim=-1)
        residual = float((moved / result.f_z.detach().norm(dim=-1)).mean())
        return _Pass(
            result.nll, result.memory, loss, jac_loss, equilibrium.pretrain_depth, residual
        )

    def _loss(self, step: int, nll: Tensor, f_z: Tensor, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """The block's loss, with the Jacobian's share where this step has drawn one."""
        weight = self.options.equilibrium.jac_weight(step)
        if not self._draws_jacobian(weight):
            return nll.mean(), None
        jac_loss = frobenius_estimate(f_z, z, generator=self.generator)
        return nll.mean() + weight * jac_loss, jac_loss

    def _draws_jacobian(self, weight: float) -> bool:
        draw = torch.rand((), generator=self.generator, device=self.generator.device)
        return weight > 0 and float(draw) < self.options.equilibrium.jac_loss_freq

    def _sound(self, memory: Memory) -> Memory:
        """Not a number would stay in the memory for ever."""
        if bool(memory.z_hist.isfinite().all() & memory.u_hist.isfinite().all()):
            return memory
        return self.model.empty_memory(memory.z_hist.shape[0])
