"""Every option of a training run, typed once: flags, ``--help`` and YAML come from here.

No import of torch: ``deqlm train --help`` is quick.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from deq_model.config import ModelConfig
from deq_model.solvers.options import Method, SolverOptions
from training.errors import OptionsError

TokenizerKind = Literal["sentencepiece", "word"]
EvalDtype = Literal["auto", "float32", "float64"]
_TOKEN_DEPTH = 12
_RESTART = SolverOptions().restart
MatmulDtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """What to train on.

    Attributes:
        train: text to train on, UTF-8, plain or .xz.
        valid: text to measure the perplexity on while training.
        tokenizer: file or folder of an existing tokenizer; unset trains or builds one.
        tokenizer_kind: what to make from the training text where tokenizer is unset.
        vocab_size: tokens of a new sentencepiece model; most words of a new word vocabulary, 0 for
            all.
        valid_tokens: most tokens of the validation text to use, 0 for all.
        batch_size: streams that a text is cut into, side by side.
    """

    train: Path
    valid: Path
    tokenizer: Path | None = None
    tokenizer_kind: TokenizerKind = "sentencepiece"
    vocab_size: int = 4096
    valid_tokens: int = 20_000
    batch_size: int = 16

    def __post_init__(self) -> None:
        _at_least(self, 1, "batch_size")
        _at_least(self, 0, "vocab_size", "valid_tokens")
        if self.tokenizer_kind == "sentencepiece" and self.vocab_size == 0:
            raise OptionsError("vocab_size must be at least 1 for sentencepiece, got 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """The architecture; the vocabulary's size comes from the tokenizer.

    Attributes:
        d_model: channels of a state.
        n_head: attention heads; must divide d_model.
        d_inner: hidden width of the feed-forward part of f.
        d_embed: width of the first embedding table, 0 for d_model.
        cutoffs: ascending first ids of the rarer vocabulary clusters; none for one flat table.
        div_val: each further cluster's table is narrower by this factor.
        tgt_len: tokens of a block.
        mem_len: tokens of memory before a block.
        local_size: attention span in tokens, 0 for 1000.
        pre_lnorm: normalise inputs of attention and feed-forward instead of their outputs.
        dropout: share of channels dropped, in [0, 1).
        dropatt: share of attention weights dropped, in [0, 1).
        tie_weights: use the embedding's tables for the output as well.
        init_std: standard deviation of the initial weights.
    """

    d_model: int = 256
    n_head: int = 4
    d_inner: int = 1024
    d_embed: int = 0
    cutoffs: tuple[int, ...] = ()
    div_val: int = 1
    tgt_len: int = 64
    mem_len: int = 64
    local_size: int = 0
    pre_lnorm: bool = False
    dropout: float = 0.0
    dropatt: float = 0.0
    tie_weights: bool = True
    init_std: float = 0.02

    def __post_init__(self) -> None:
        _at_least(self, 1, "n_head", "d_model")
        _at_least(self, 0, "init_std")
        if self.d_model % self.n_head:
            raise OptionsError(
                f"n_head must divide d_model = {self.d_model}, got n_head = {self.n_head}"
            )

    def config(self, *, n_token: int, recipe: str) -> ModelConfig:
        """The model's configuration. Raises ConfigError."""
        values = dataclasses.asdict(self)
        del values["init_std"]
        d_head = self.d_model // self.n_head
        return ModelConfig(**values, d_head=d_head, n_token=n_token, recipe=recipe)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimiserOptions:
    """Adam with a linear warm-up and a cosine.

    Attributes:
        lr: highest learning rate.
        min_lr: learning rate at the last step.
        warmup_steps: steps of the linear rise from zero.
        max_steps: steps of the run.
        beta1: Adam's memory of the gradient, in [0, 1).
        beta2: Adam's memory of its square, in [0, 1).
        eps: Adam's addition to the denominator.
        clip: largest norm of the gradient; longer ones are scaled down to it.
        max_skipped: stop after so many steps in a row without a finite loss and gradient.
    """

    lr: float = 1e-3
    min_lr: float = 0.0
    warmup_steps: int = 200
    max_steps: int = 5000
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip: float = 0.25
    max_skipped: int = 20

    def __post_init__(self) -> None:
        for name in ("lr", "eps", "clip"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise OptionsError(f"{name} must be a finite number above 0, got {value}")
        if not 0 <= self.min_lr <= self.lr:
            raise OptionsError(f"min_lr must be in [0, lr = {self.lr}], got {self.min_lr}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise OptionsError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        _at_least(self, 1, "max_steps", "max_skipped")
        _at_least(self, 0, "warmup_steps")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeOptions:
    """What makes the fixed point easy to find.

    Attributes:
        jac_loss_weight: weight of the estimate of the Jacobian's squared Frobenius norm.
        jac_loss_freq: share of the steps that add it, drawn at random, in [0, 1].
        pretrain_steps: first steps, which apply f a fixed number of times instead of solving.
        pretrain_depth: how many times.
        matmul_dtype: precision of the matrix products of f, in both passes.
    """

    jac_loss_weight: float = 0.0
    jac_loss_freq: float = 0.0
    pretrain_steps: int = 0
    pretrain_depth: int = 3
    matmul_dtype: MatmulDtype = "float32"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.jac_loss_weight) and self.jac_loss_weight >= 0):
            raise OptionsError(
                f"jac_loss_weight must be a finite number from 0, got {self.jac_loss_weight}"
            )
        if not 0 <= self.jac_loss_freq <= 1:
            raise OptionsError(f"jac_loss_freq must be in [0, 1], got {self.jac_loss_freq}")
        _at_least(self, 0, "pretrain_steps")
        _at_least(self, 1, "pretrain_depth")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How the run goes.

    Attributes:
        out: folder of everything the run writes.
        resume: go on from the newest state in out, if there is one.
        seed: of initial weights, dropout and the Jacobian's estimate.
        threads: CPU threads of one tensor operation, 0 for as many as there are cores.
        device: cpu, cuda, or cuda:N.
        eval_every: steps between measurements of the validation perplexity.
        save_every: steps between saved states.
        keep: how many saved states to keep.
        log_every: steps between lines of the log.
    """

    out: Path
    resume: bool = False
    seed: int = 0
    threads: int = 0
    device: str = "cpu"
    eval_every: int = 500
    save_every: int = 500
    keep: int = 2
    log_every: int = 20

    def __post_init__(self) -> None:
        _at_least(self, 1, "eval_every", "save_every", "keep", "log_every")
        _at_least(self, 0, "threads", "seed")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """A training run.

    Attributes:
        data: what to train on.
        run: how the run goes.
        model: the architecture.
        optimiser: Adam and its schedule.
        recipe: regularisation and pretraining.
        forward: solver of the fixed point.
        backward: solver of the gradient.
    """

    data: DataOptions
    run: RunOptions
    model: ModelOptions = field(default_factory=ModelOptions)
    optimiser: OptimiserOptions = field(default_factory=OptimiserOptions)
    recipe: RecipeOptions = field(default_factory=RecipeOptions)
    forward: SolverOptions = field(default_factory=SolverOptions)
    backward: SolverOptions = field(default_factory=SolverOptions)

    @classmethod
    def groups(cls) -> dict[str, type]:
        """The option classes by the prefix of their flags."""
        return {field.name: cast(type, field.type) for field in dataclasses.fields(cls)}

    def to_dict(self) -> dict[str, Any]:
        """Nested JSON-ready values."""
        values: dict[str, Any] = _plain(dataclasses.asdict(self))
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRun:
    """What ``deqlm eval`` does.

    Attributes:
        model: checkpoint folder.
        data: text to score, UTF-8, plain or .xz.
        mem_len: tokens of memory before a block; unset for the checkpoint's.
        tgt_len: tokens of a block; unset for the checkpoint's.
        batch_size: streams that the text is cut into, side by side.
        method: solver, broyden, anderson or picard.
        tol: tolerance on the relative residual.
        max_nfe: calls of f on a block before it is given up, or tried again.
        depth: past steps that the solver remembers; 0 for max_nfe with broyden and whole_block,
            as published, else 12.
        whole_block: solve each stream's block as one vector, as published, instead of token by
            token.
        retries: solve a stream's block that has not converged again from zeros, so many times at
            most, with twice the budget and the depth each time.
        dtype: of all numbers; auto is float64 where tol is under 1e-4, else float32.
        device: cpu, cuda, or cuda:N.
        threads: CPU threads of one tensor operation, 0 for as many as there are cores.
        max_blocks: stop after so many blocks, 0 for all.
        per_token: file to write the loss of every target to, nll (streams, positions), as .npz.
        json: print JSON instead of text.
    """

    model: Path
    data: Path
    mem_len: int | None = None
    tgt_len: int | None = None
    batch_size: int = 16
    method: Method = "broyden"
    tol: float = 1e-3
    max_nfe: int = 35
    depth: int = 0
    whole_block: bool = True
    retries: int = 2
    dtype: EvalDtype = "auto"
    device: str = "cpu"
    threads: int = 0
    max_blocks: int = 0
    per_token: Path | None = None
    json: bool = False

    def __post_init__(self) -> None:
        for name, bound in (("mem_len", 0), ("tgt_len", 1)):
            if getattr(self, name) is not None:
                _at_least(self, bound, name)
        _at_least(self, 1, "batch_size")
        _at_least(self, 0, "retries", "threads", "max_blocks", "depth")
        self.solver()

    def solver(self) -> SolverOptions:
        """Of the first try. Raises ConfigError.

        The published Broyden never restarts: on stiff blocks its residual climbs before it falls,
        and going back to an earlier state there ends at another fixed point, or at none.
        """
        published = self.whole_block and self.method == "broyden"
        return SolverOptions(
            method=self.method,
            tol=self.tol,
            max_nfe=self.max_nfe,
            depth=self.depth or (self.max_nfe if published else _TOKEN_DEPTH),
            restart=math.inf if published else _RESTART,
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def _at_least(options: object, bound: int, *names: str) -> None:
    for name in names:
        if getattr(options, name) < bound:
            raise OptionsError(f"{name} must be at least {bound}, got {getattr(options, name)}")
