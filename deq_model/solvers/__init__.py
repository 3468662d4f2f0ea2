"""Fixed-point solvers as steps: ``propose`` a z, ``observe`` f(z), row by row."""
