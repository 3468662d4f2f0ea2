"""Figures of what a run or an evaluation has measured. matplotlib is loaded when one is drawn."""
