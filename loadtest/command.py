"""The command ``deqlm loadtest``."""

import asyncio
import contextlib
import importlib.util
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cli.parser import Parser, Tall
from cli.read import Command, read
from client.commands._common import EXIT_OK, EXIT_RPC, EXIT_USAGE, say
from client.commands._connection import UsageError
from client.errors import InvalidArgument
from loadtest.objectives import Objectives
from loadtest.options import Load, Mix, Run, Size

if TYPE_CHECKING:
    from loadtest.settings import Settings

EXIT_MISSED: Final = 3
"""It was carried out, and the server did not keep to what it is held to, or counts differ."""

_HELP: Final = """\
usage: {prog} [run] [--config FILE] [--OPTION VALUE ...]
       {prog} report RUN [--objective.OPTION VALUE ...]
       {prog} compare BEFORE AFTER
       {prog} record [--OPTION VALUE ...]

  run      send requests, and tell what the server bears (the default)
  report   compute the figures of a run again, be it with other objectives
  compare  tell what got better or worse from one run to another
  record   stand between clients and a server, and record when requests arrive

`{prog} run --help` tells what it takes, and so on."""


def main(argv: list[str], prog: str) -> int:
    """Run the command; returns the exit code."""
    if importlib.util.find_spec("hdrh") is None:
        say(f"{prog}: needs the package hdrhistogram: pip install 'deqlm[loadtest]'")
        return EXIT_RPC
    name = argv[0] if argv and not argv[0].startswith("-") else "run"
    rest = argv[1:] if argv and name == argv[0] else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_HELP.format(prog=prog))
        return EXIT_OK if argv else EXIT_USAGE
    commands = {"run": _run, "report": _report, "compare": _compare, "record": _record}
    if name not in commands:
        say(f"{prog}: unknown command {name}; `{prog} --help` lists them")
        return EXIT_USAGE
    from loadtest.errors import LoadTestError
    from loadtest.records import RecordError

    try:
        return commands[name](rest, f"{prog} {name}")
    except (LoadTestError, RecordError) as error:
        say(f"{prog} {name}: {error}")
        return EXIT_RPC
    except (UsageError, InvalidArgument) as error:
        say(f"{prog} {name}: {error}")
        return EXIT_USAGE


def _run(argv: list[str], prog: str) -> int:
    from loadtest.settings import Settings

    command = Command(
        prog=prog,
        description="Send requests to a running server, at one rate after the other until past "
        "what it can bear, and tell how long they take. Exit code 0: objectives are kept and "
        "client and server agree; 3: not so; 1: it could not be carried out to its end; 2: an "
        "impossible option.",
        groups={"": Run, "load": Load, "mix": Mix, "size": Size, "objective": Objectives},
    )

    def build(groups: dict[str, Any]) -> Settings:
        settings = Settings(run=groups.pop(""), **groups)
        _check_files(settings)
        return settings

    settings = read(command, argv, build)
    out = _folder(settings.run.out)
    try:
        return asyncio.run(_conducted(settings, out, prog))
    except KeyboardInterrupt:
        if (out / "stages.jsonl").exists():
            report = f"{prog.removesuffix(' run')} report {out}"
            say(f"{prog}: interrupted; `{report}` tells what there is until then")
        raise


def _check_files(settings: "Settings") -> None:
    """Raises ValueError where a text or a trace cannot be used."""
    from loadtest.records import RecordError
    from loadtest.texts import Texts
    from loadtest.traces import read_trace

    Texts.of(settings.run.text)
    try:
        if settings.load.trace is not None:
            read_trace(settings.load.trace)
    except RecordError as error:
        raise ValueError(f"load.trace: {error}") from None


async def _conducted(settings: "Settings", out: Path, prog: str) -> int:
    from loadtest.conduct import conduct
    from loadtest.errors import LoadTestError

    code = EXIT_OK
    try:
        await conduct(settings, out, say)
    except LoadTestError as error:
        say(f"{prog}: {error}")
        code = EXIT_RPC
    if not (out / "stages.jsonl").exists():
        if settings.run.out is None:  # nobody asked for a folder with nothing in it
            with contextlib.suppress(OSError):
                out.rmdir()
        return code
    told = await asyncio.to_thread(_tell, out, settings.objective)
    return code or told


def _folder(given: Path | None) -> Path:
    """A folder that holds nothing yet. Raises UsageError."""
    out = given or Path(time.strftime("loadtest-%Y%m%d-%H%M%S"))
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise UsageError(f"out must be a new or empty folder, got {out}")
    except OSError as error:
        raise UsageError(f"out cannot be made at {out}: {error.strerror}") from None
    return out


def _report(argv: list[str], prog: str) -> int:
    from loadtest.results import Result

    folders, rest = _operands(argv, 1, "RUN", prog)
    result = Result.read(folders[0])
    command = Command(
        prog=prog,
        description="Compute the figures of a run from its records, and write its page again. "
        "Exit codes are those of the run.",
        groups={"objective": Objectives},
        defaults={"objective": result.settings.objective},
        operands="RUN",
    )
    objectives = read(command, rest, lambda groups: groups["objective"])
    return _tell(folders[0], objectives)


def _compare(argv: list[str], prog: str) -> int:
    from loadtest.compare import Tolerance, changes, differences, table_of, unlike
    from loadtest.figures import figures
    from loadtest.results import Result

    folders, rest = _operands(argv, 2, "BEFORE AFTER", prog)
    command = Command(
        prog=prog,
        description="Tell what got better or worse from one run to another, stage by stage. Both "
        "are held to the objectives of the second. Exit code 3: something got worse.",
        groups={"": Tolerance},
        operands="BEFORE AFTER",
    )
    chosen: Tolerance = read(command, rest, lambda groups: groups[""])
    before, after = map(Result.read, folders)
    objectives = after.settings.objective
    told = figures(before.swept, objectives), figures(after.swept, objectives)
    found = changes(*told, percentiles=chosen.percentiles)
    if not found:
        raise UsageError("the two runs have no stage in common")
    for name in ("server", "client", "settings"):
        for line in differences(before.about.get(name, {}), after.about.get(name, {}), name):
            if not line.startswith("settings.run.out: "):
                say(f"differs: {line}")
    for line in unlike(*told):
        say(f"differs: {line}")
    print(table_of(found, chosen.tolerance).text())
    worse = sum(one.verdict(chosen.tolerance) == "worse" for one in found)
    print(f"\n{worse} of {len(found)} figures are worse by more than {chosen.tolerance:.0%}")
    return EXIT_MISSED if worse else EXIT_OK


def _record(argv: list[str], prog: str) -> int:
    from loadtest.recorder import Recording, record

    command = Command(
        prog=prog,
        description="Stand between clients and a server, and record when requests arrive, of "
        "which kind and size; not what they say. Ends at an interrupt, or after --seconds.",
        groups={"": Recording},
    )
    options: Recording = read(command, argv, lambda groups: groups[""])
    return asyncio.run(record(options, say))


def _operands(
    argv: Sequence[str], count: int, names: str, prog: str
) -> tuple[list[Path], list[str]]:
    if not argv or argv[0] in ("-h", "--help"):
        parser = Parser(
            prog=prog, usage=f"{prog} {names} [--OPTION VALUE ...]", formatter_class=Tall
        )
        parser.print_help()
        raise SystemExit(EXIT_OK if argv else EXIT_USAGE)
    given = list(argv[:count])
    if len(given) < count or any(one.startswith("-") for one in given):
        told = " ".join(given)
        raise UsageError(f"{names} must be folders that runs have written, got {told}")
    return [Path(one) for one in given], list(argv[count:])


def _tell(folder: Path, objectives: Objectives) -> int:
    """Print and write what a run came to; the exit code."""
    from loadtest.figures import figures
    from loadtest.page.page import page
    from loadtest.results import Result
    from loadtest.summary import summary
    from loadtest.verdict import problems

    result = Result.read(folder)
    found = figures(result.stages, objectives)
    wrong = problems(result, found, objectives)
    _write(folder / "report.html", page(result, found, objectives, wrong))
    _write(folder / "figures.json", json.dumps([one.to_json() for one in found], indent=1) + "\n")
    print(summary(result, found, objectives))
    print(f"\npage: {folder / 'report.html'}")
    for problem in wrong:
        say(f"FAILED: {problem}")
    if result.ended_early:
        return EXIT_RPC
    return EXIT_MISSED if wrong else EXIT_OK


def _write(path: Path, text: str) -> None:
    """Whole or not at all: the page that was there before stays until then."""
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], "deqlm loadtest"))
