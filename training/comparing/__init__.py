"""Parts of ``deqlm compare``: traces of solves, figures, tables, the picture."""
