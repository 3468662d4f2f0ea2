"""The card of a checkpoint that a run has made."""

import json

from training.evaluation import Evaluation
from training.options import TrainOptions


def run_card(options: TrainOptions, *, step: int, seconds: float, validation: Evaluation) -> str:
    """Markdown: what was trained, on what, for how long, and how well it does."""
    return "\n".join(
        [
            "# A deep-equilibrium language model",
            "",
            f"Trained by `deqlm train` for {step} of {options.optimiser.max_steps} steps "
            f"({seconds / 60:.0f} minutes) on `{options.data.train.name}`.",
            "",
            f"Validation perplexity per token: {validation.perplexity:.2f} on the first "
            f"{validation.scored_tokens} scored tokens of `{options.data.valid.name}` "
            f"(tolerance {options.forward.tol:g}, {validation.nfe:.1f} calls of f a block).",
            "",
            "```json",
            json.dumps(options.to_dict(), indent=1),
            "```",
            "",
        ]
    )
