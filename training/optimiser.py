"""The rule that moves the parameters, from its options."""

from collections.abc import Iterable

import torch
from torch.nn import Parameter
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from training.options.optimiser import OptimiserOptions


def make_optimiser(parameters: Iterable[Parameter], options: OptimiserOptions) -> Optimizer:
    """The optimiser of torch that the options name."""
    lr, decay = options.lr, options.weight_decay
    match options.method:
        case "adam" | "adamw":
            kind = Adam if options.method == "adam" else AdamW
            betas = (options.beta1, options.beta2)
            return kind(parameters, lr=lr, betas=betas, eps=options.eps, weight_decay=decay)
        case "sgd":
            return SGD(parameters, lr=lr, momentum=options.momentum, weight_decay=decay)
        case "adagrad":
            return Adagrad(parameters, lr=lr, eps=options.eps, weight_decay=decay)
        case "rmsprop":
            return RMSprop(
                parameters,
                lr=lr,
                alpha=options.beta2,
                eps=options.eps,
                momentum=options.momentum,
                weight_decay=decay,
            )


def set_rate(optimiser: Optimizer, lr: float) -> None:
    """Sets the learning rate of the next step."""
    for group in optimiser.param_groups:
        group["lr"] = lr


def clip_gradient(parameters: Iterable[Parameter], bound: float) -> torch.Tensor:
    """Scales the gradient down to the norm ``bound``, 0 for no bound.

    Returns:
        A scalar, its norm before that.
    """
    return torch.nn.utils.clip_grad_norm_(parameters, bound or torch.inf)
