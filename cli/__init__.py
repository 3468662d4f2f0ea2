"""The console command ``deqlm``: finds a subcommand and hands over, importing nothing else."""
