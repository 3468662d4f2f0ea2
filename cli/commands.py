"""The table of subcommands: where each one lives, and what it is for in one line."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One subcommand of ``deqlm``."""

    target: str
    """``"module:function"``; the function takes (argv, prog) and returns the exit code."""
    summary: str
    """One line for ``deqlm --help``."""


COMMANDS: dict[str, Command] = {
    "serve": Command(
        target="server.__main__:main",
        summary="serve one or more checkpoints over gRPC",
    ),
    "score": Command(
        target="client.commands.score:main",
        summary="log-probability of every token of a text, and its perplexity",
    ),
    "generate": Command(
        target="client.commands.generate:main",
        summary="continue a text, streamed as it is made",
    ),
    "session": Command(
        target="client.commands.session:main",
        summary="create, inspect, list, fork and delete sessions",
    ),
    "tokenize": Command(
        target="client.commands.tokenize:main",
        summary="show a text's tokens, or the text of token ids",
    ),
    "info": Command(
        target="client.commands.info:main",
        summary="tell what models a server has loaded, and their limits",
    ),
    "health": Command(
        target="client.commands.health:main",
        summary="tell by the exit code whether a server answers calls",
    ),
    "top": Command(
        target="client.commands.top:main",
        summary="watch what a server does: requests, tokens, calls of f, memory",
    ),
    "check": Command(
        target="client.commands.check:main",
        summary="look whether everything in a server adds up",
    ),
    "loadtest": Command(
        target="loadtest.command:main",
        summary="send a server more and more requests, and tell what it bears",
    ),
    "profile": Command(
        target="client.commands.profile:main",
        summary="have a server write a profile of its next steps",
    ),
    "token": Command(
        target="server.security.token_command:main",
        summary="make tokens with which clients show a server who they are",
    ),
    "prepare": Command(
        target="training.prepare.cli:main",
        summary="make tokens of WikiText-103, PTB or any text, to train on",
    ),
    "train": Command(
        target="training.cli:train_main",
        summary="train a model on a text file",
    ),
    "eval": Command(
        target="training.cli:eval_main",
        summary="perplexity of a checkpoint on a text file",
    ),
    "compare": Command(
        target="training.compare:main",
        summary="models side by side: perplexity, calls to each tolerance, stiffness",
    ),
    "calibrate": Command(
        target="training.calibrate:main",
        summary="fit first states that save calls of f, beside a checkpoint",
    ),
    "report": Command(
        target="training.report.command:main",
        summary="one HTML page with the curves of training runs",
    ),
    "convert": Command(
        target="training.convert:main",
        summary="convert between the published .pth layout and the native folder",
    ),
}
