"""The card of a checkpoint that a run has made."""

import json

from training.options.train import TrainOptions
from training.validation import Measurement, solver


def run_card(options: TrainOptions, *, step: int, seconds: float, validation: Measurement) -> str:
    """Markdown: what was trained, on what, for how long, and how well it does."""
    return "\n".join(
        [
            "# A deep-equilibrium language model",
            "",
            f"Trained by `deqlm train` for {step} of {options.optimiser.max_steps} steps "
            f"({seconds / 60:.0f} minutes) on `{_text(options, 'train')}`.",
            "",
            f"Validation perplexity per token: {validation.perplexity:.2f} on the first "
            f"{validation.scored_tokens} scored tokens of `{_text(options, 'valid')}` "
            f"(tolerance {solver(options).tol:g}, {validation.nfe:.1f} calls of f a block).",
            "",
            "```json",
            json.dumps(options.to_dict(), indent=1),
            "```",
            "",
        ]
    )


def _text(options: TrainOptions, split: str) -> str:
    """How the card calls a text."""
    if options.data.prepared is not None:
        return f"{options.data.prepared.name}/{split}"
    return str(getattr(options.data, split).name)
