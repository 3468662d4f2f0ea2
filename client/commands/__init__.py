"""Console commands built on the client; each module has `main(argv, prog) -> exit code`."""
