"""The learning rate of every step."""

import math

from training.options.optimiser import OptimiserOptions


def learning_rate(step: int, options: OptimiserOptions) -> float:
    """Of step 0, 1, …: a linear rise from near zero, then half a cosine down to ``min_lr``."""
    if step < options.warmup_steps:
        return options.lr * (step + 1) / options.warmup_steps
    span = max(1, options.max_steps - options.warmup_steps)
    done = min(1.0, (step - options.warmup_steps) / span)
    share = 0.5 * (1 + math.cos(math.pi * done))
    return options.min_lr + (options.lr - options.min_lr) * share
