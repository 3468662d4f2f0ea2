"""How the parameters move."""

from dataclasses import dataclass
from typing import Literal

from training.errors import OptionsError
from training.options.checks import at_least, not_negative, positive, share

OptimiserMethod = Literal["adam", "adamw", "sgd", "adagrad", "rmsprop"]
Schedule = Literal["cosine", "inverse_root", "plateau", "constant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimiserOptions:
    """The rule, and the learning rate of every step.

    Attributes:
        method: adam, adamw, sgd, adagrad or rmsprop, as torch.optim has them.
        lr: highest learning rate.
        min_lr: lowest learning rate: where the cosine ends, and where the plateau stops falling.
        schedule: what follows the warm-up: half a cosine down to min_lr at the last step; lr times
            the root of warmup_steps / step (inverse_root); a lower rate whenever the validation
            loss has stopped falling (plateau); or lr for good (constant).
        warmup_steps: steps of the linear rise from zero.
        plateau_factor: what the rate is multiplied by at a plateau, in (0, 1).
        plateau_patience: measurements without a lower validation loss that make a plateau.
        max_steps: steps of the run.
        weight_decay: of every parameter; AdamW takes it off the parameters, the others add it to
            the gradient.
        momentum: of sgd and rmsprop, in [0, 1).
        beta1: Adam's memory of the gradient, in [0, 1).
        beta2: Adam's memory of its square, in [0, 1); that of rmsprop likewise.
        eps: addition to the denominator of all but sgd.
        clip: largest norm of the gradient; longer ones are scaled down to it; 0 for no bound.
        batch_chunks: parts that a rank's streams are computed in, one after the other, their
            gradients added up: less memory for the same step.
    """

    method: OptimiserMethod = "adam"
    lr: float = 1e-3
    min_lr: float = 0.0
    schedule: Schedule = "cosine"
    warmup_steps: int = 200
    plateau_factor: float = 0.5
    plateau_patience: int = 2
    max_steps: int = 5000
    weight_decay: float = 0.0
    momentum: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip: float = 0.25
    batch_chunks: int = 1

    def __post_init__(self) -> None:
        positive(self, "lr", "eps")
        not_negative(self, "weight_decay", "clip")
        share(self, "momentum", "beta1", "beta2")
        if not 0 <= self.min_lr <= self.lr:
            raise OptionsError(f"min_lr must be in [0, lr = {self.lr}], got {self.min_lr}")
        if not 0 < self.plateau_factor < 1:
            raise OptionsError(f"plateau_factor must be in (0, 1), got {self.plateau_factor}")
        at_least(self, 1, "max_steps", "plateau_patience", "batch_chunks")
        at_least(self, 0, "warmup_steps")
