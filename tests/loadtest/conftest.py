"""Fixtures of the load test's tests."""

from collections.abc import Callable

import pytest

from loadtest.command import main

Deqlm = Callable[..., tuple[int, str, str]]


@pytest.fixture
def loadtest(capsys: pytest.CaptureFixture[str]) -> Deqlm:
    """Run ``deqlm loadtest ...``: exit code, standard output and error."""

    def run(*argv: object) -> tuple[int, str, str]:
        try:
            code = main([str(one) for one in argv], "deqlm loadtest")
        except SystemExit as end:
            code = int(end.code or 0)
        told = capsys.readouterr()
        return code, told.out, told.err

    return run
