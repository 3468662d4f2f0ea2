"""Profiles of the engine on demand: recorded, sampled, and written whole or not at all."""
