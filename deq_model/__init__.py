"""Deep-equilibrium language model: mathematics, checkpoints and tokenizers."""
