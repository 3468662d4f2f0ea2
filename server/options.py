"""The command line, environment and file of ``deqlm serve``, read into a ``ServerConfig``."""

from collections.abc import Sequence

from cli.read import Command, read
from server.config import ServerConfig

ENV_PREFIX = "DEQLM"

_DESCRIPTION = (
    "Serve deep-equilibrium language models over gRPC. A flag goes before the environment variable "
    "beside it, that before the file, that before the default. Without --model the bundled "
    "checkpoint is served; DEQLM_MODEL takes several with commas between them."
)


def parse_config(argv: Sequence[str], prog: str) -> ServerConfig:
    """The configuration that arguments and environment ask for.

    Raises:
        SystemExit: usage errors and impossible values (2), ``--help`` (0).
    """
    command = Command(
        prog=prog, description=_DESCRIPTION, groups={"": ServerConfig}, environment=ENV_PREFIX
    )
    config: ServerConfig = read(command, argv, lambda made: made[""])
    return config
