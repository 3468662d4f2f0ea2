"""Training, evaluation and conversion of deep-equilibrium language models."""
