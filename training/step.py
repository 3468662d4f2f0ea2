"""One step of training: a block's gradient, a judgement on it, the change of the parameters."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from deq_model.draws import Draws
from deq_model.memory import Memory
from deq_model.model import DEQLanguageModel
from training.data import Block
from training.distributed import Ranks, without_sync
from training.guard import Guard, Signs, Verdict
from training.optimiser import clip_gradient, make_optimiser, set_rate
from training.options.train import TrainOptions
from training.passes import Figures, Objective, Part, Pass, Plan
from training.schedule import Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What a step did, on all ranks together.

    Attributes:
        loss: mean nll of the block, in nats per token.
        tokens: scored ones.
        nfe_forward: calls of f.
        nfe_backward: products with Jᵀ; 0 where there is no backward solve.
        residual: mean over the tokens of the residual at the forward solution; while pretraining,
            of the relative change that the last application made.
        residual_backward: of the backward solve; None where there is none.
        unconverged_forward: share of the tokens above the forward solver's tolerance; None while
            pretraining.
        unconverged_backward: likewise.
        jac_loss: the Jacobian's estimate, None where it was not drawn.
        spectral_radius: mean of the streams' estimates, None where it was not looked at.
        grad_norm: before clipping.
        lr: learning rate.
        skipped: whether the parameters stayed.
    """

    loss: float
    tokens: int
    nfe_forward: float
    nfe_backward: float
    residual: float
    residual_backward: float | None
    unconverged_forward: float | None
    unconverged_backward: float | None
    jac_loss: float | None
    spectral_radius: float | None
    grad_norm: float
    lr: float
    skipped: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A step that was taken.

    Attributes:
        report: what it did.
        verdict: what the guard says to it.
        memory: for the next block; emptied where it would do harm.
        stop: whether any rank was asked to stop.
    """

    report: StepReport
    verdict: Verdict
    memory: Memory
    stop: bool


class Stepper:
    """Holds the model, what moves it, and the source of random numbers."""

    def __init__(
        self,
        model: DEQLanguageModel,
        options: TrainOptions,
        *,
        generator: torch.Generator,
        ranks: Ranks,
    ) -> None:
        self.model = model
        self.options = options
        self.generator = generator
        self.optimiser = make_optimiser(model.parameters(), options.optimiser)
        self.schedule = Schedule(options.optimiser)
        self.guard = Guard(options.guard)
        self._ranks = ranks
        # A softmax tail has no gradient on a rank where no target is in it.
        unused = bool(model.config.cutoffs)
        self._objective = ranks.wrap(Objective(model, options), unused=unused)

    def step(self, step: int, block: Block, memory: Memory, *, stop: bool = False) -> Taken:
        """Trains on a block.

        Args:
            step: number of steps before this one.
            block: to train on, this rank's streams.
            memory: of the blocks before.
            stop: whether this rank is asked to stop; all ranks are told.
        """
        plan = self._plan(step)
        lr = self.schedule.rate(step)
        set_rate(self.optimiser, lr)
        self.optimiser.zero_grad(set_to_none=True)
        own, remembered = self._accumulate(plan, block, memory)
        norm = float(clip_gradient(self.model.parameters(), self.options.optimiser.clip))
        rows = self._ranks.exchange([*own.to_list(), float(stop)])
        figures = Figures.joined(Figures.from_list(row[:-1]) for row in rows)
        verdict = self.guard.judge(_signs(plan, figures, grad_norm=norm))
        if verdict.applies:
            self.optimiser.step()
            self.model.clip_norms()
        if not verdict.applies or figures.memory_failed:
            remembered = self.model.empty_memory(len(block.tokens))
        return Taken(
            report=_report(plan, figures, grad_norm=norm, lr=lr, skipped=not verdict.applies),
            verdict=verdict,
            memory=remembered,
            stop=any(row[-1] for row in rows),
        )

    def _plan(self, step: int) -> Plan:
        equilibrium = self.options.equilibrium
        every, weight = equilibrium.spectral_radius_every, equilibrium.jac_weight(step)
        draw = torch.rand((), generator=self.generator, device=self.generator.device)
        drawn = weight > 0 and float(draw) < equilibrium.jac_loss_freq
        return Plan(
            solved=step >= equilibrium.pretrain_steps,
            jac_weight=weight if drawn else None,
            radius=every > 0 and (step + 1) % every == 0,
        )

    def _accumulate(self, plan: Plan, block: Block, memory: Memory) -> tuple[Figures, Memory]:
        """Adds up the gradients of all parts; they are exchanged once, with the last."""
        parts = self._parts(block, memory, self._draws(plan, block, memory))
        done: list[tuple[Figures, Memory]] = []
        for part in parts[:-1]:
            with without_sync(self._objective):
                done.append(self._backward(plan, part))
        done.append(self._backward(plan, parts[-1]))
        remembered = Memory(
            torch.cat([memory.z_hist for _, memory in done]),
            torch.cat([memory.u_hist for _, memory in done]),
        )
        return Figures.joined(figures for figures, _ in done), remembered

    def _draws(self, plan: Plan, block: Block, memory: Memory) -> Draws:
        """This rank's share of the random numbers that every rank draws for all."""
        streams = self.options.data.batch_size
        draws = self.model.draw(
            streams=streams,
            tgt_len=block.tokens.shape[1],
            mem_len=memory.length,
            generator=self.generator,
            jacobian=plan.jac_weight is not None,
            spectral=plan.radius,
        )
        share = self._ranks.share(streams)
        return draws.part(share.start, share.stop)

    def _parts(self, block: Block, memory: Memory, draws: Draws) -> list[Part]:
        chunks, device = self.options.optimiser.batch_chunks, self.model.device
        streams = len(block.tokens)
        bounds = [streams * i // chunks for i in range(chunks + 1)]
        return [
            Part(
                tokens=block.tokens[begin:end].to(device),
                targets=block.targets[begin:end].to(device),
                memory=Memory(memory.z_hist[begin:end], memory.u_hist[begin:end]),
                draws=draws.part(begin, end),
                share=(end - begin) / streams,
            )
            for begin, end in pairwise(bounds)
        ]

    def _backward(self, plan: Plan, part: Part) -> tuple[Figures, Memory]:
        loss: Tensor
        done: Pass
        loss, done = self._objective(plan, part)
        loss.backward()
        return done.after_backward(), done.memory


def _signs(plan: Plan, figures: Figures, *, grad_norm: float) -> Signs:
    return Signs(
        loss=figures.loss / figures.tokens,
        grad_norm=grad_norm,
        residual=figures.residual / figures.tokens,
        solved=plan.solved,
        backward_failed=figures.backward_failed > 0,
    )


def _report(
    plan: Plan, figures: Figures, *, grad_norm: float, lr: float, skipped: bool
) -> StepReport:
    tokens = figures.tokens
    backward = figures.nfe_backward > 0
    return StepReport(
        loss=figures.loss / tokens,
        tokens=int(tokens),
        nfe_forward=figures.nfe_forward,
        nfe_backward=figures.nfe_backward,
        residual=figures.residual / tokens,
        residual_backward=figures.residual_backward / tokens if backward else None,
        unconverged_forward=figures.unconverged / tokens if plan.solved else None,
        unconverged_backward=figures.unconverged_backward / tokens if backward else None,
        jac_loss=None if plan.jac_weight is None else figures.jac_loss / tokens,
        spectral_radius=figures.spectral_radius / tokens if plan.radius else None,
        grad_norm=grad_norm,
        lr=lr,
        skipped=skipped,
    )
