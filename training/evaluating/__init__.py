"""Parts of an evaluation: protocols, statistics, curves, what is printed and written."""
