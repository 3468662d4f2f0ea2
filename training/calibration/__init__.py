"""Fitting a map to start solves from: ``deqlm calibrate``."""
