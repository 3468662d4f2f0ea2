"""Where an option's value comes from, and what is said of one that cannot be."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.read import Command, read


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What drives.

    Attributes:
        power: in kilowatts, as the
            maker says.
        gears: number of gears.
        turbo: whether there is one.
    """

    power: float
    gears: int = 5
    turbo: bool = False

    def __post_init__(self) -> None:
        if self.gears < 1:
            raise ValueError(f"gears must be at least 1, got {self.gears}")
        if self.turbo and self.power < 10:
            raise ValueError(f"a turbo needs 10 kW, got {self.power}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """What one sees: 100 % of it.

    Attributes:
        doors: numbers of doors to choose from.
        paint_name: colour.
    """

    doors: tuple[int, ...] = (3, 5)
    paint_name: str = "red"


@pytest.fixture
def command(tmp_path: Path) -> Command:
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    (recipes / "small.yaml").write_text("engine: {power: 30, gears: 3}\nbody: {doors: [2]}\n")
    (recipes / "large.yaml").write_text("engine: {power: 300}\n")
    return Command(
        prog="car",
        description="Makes a car.",
        groups={"engine": Engine, "body": Body},
        headings={"body": "Around it"},
        defaults={"body": Body(paint_name="blue")},
        recipes=recipes,
        environment="CAR",
    )


def made(command: Command, *arguments: object) -> tuple[Engine, Body]:
    got = read(command, [str(argument) for argument in arguments], dict)
    return got["engine"], got["body"]


def refused(command: Command, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        made(command, *arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_defaults_recipe_files_environment_and_flags_in_this_order(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "1.yaml", tmp_path / "2.yaml"
    first.write_text("engine:\n  power: 41\n  gears: 41\nbody:\n")
    second.write_text("engine: {gears: 42}\n")
    assert made(command, "--engine.power", 7) == (Engine(power=7.0), Body(paint_name="blue"))
    flags: list[object] = ["--recipe", "small"]
    assert made(command, *flags) == (
        Engine(power=30.0, gears=3),
        Body(doors=(2,), paint_name="blue"),
    )
    flags += ["--config", first, "--config", second]
    assert made(command, *flags)[0] == Engine(power=41.0, gears=42)
    monkeypatch.setenv("CAR_ENGINE_GEARS", "50")
    assert made(command, *flags)[0] == Engine(power=41.0, gears=50)
    assert made(command, *flags, "--engine.gears=60")[0].gears == 60
    monkeypatch.setenv("CAR_CONFIG", str(first))
    assert made(command)[0] == Engine(power=41.0, gears=50)
    assert made(command, "--recipe=large", "--config", second)[0].power == 300


def test_spellings_of_flags(command: Command) -> None:
    power = ("--engine.power", "1e3")
    assert made(command, *power, "--body.paint_name=a_b")[1].paint_name == "a_b"
    assert made(command, *power, "--body.paint-name", "a_b")[1].paint_name == "a_b"
    assert made(command, *power, "--engine.turbo", "--engine.gears", 2)[0].turbo
    assert made(command, "--engine.turbo", *power)[0].turbo
    assert not made(command, *power, "--engine.turbo", "no")[0].turbo
    assert made(command, *power, "--body.doors", "[2,", "--body.doors", "4]")[1].doors == (2, 4)
    assert made(command, *power, "--body.doors=none")[1].doors == ()
    assert made(command, "--engine.power", "-1e-3")[0].power == -0.001


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "--engine.power is required: in kilowatts, as the maker says"),
        (["--engine.power", "much"], "--engine.power must be a number, got much"),
        (["--engine.power="], "--engine.power must be a number, got nothing"),
        (["--engine.power"], "--engine.power must have a value, got none"),
        (["--engine.power", "9", "--engine.gears", "0"], "engine.gears must be at least 1, got 0"),
        (["--engine.power", "9", "--engine.turbo"], "engine: a turbo needs 10 kW, got 9.0"),
        (["--engine.powr", "9"], "unknown option --engine.powr; did you mean --engine.power?"),
        (["--engine.pow", "9"], "unknown option --engine.pow; did you mean --engine.power?"),
        (["--gears", "2"], "unknown option --gears; did you mean --engine.gears?"),
        (["--paint_name", "a"], "unknown option --paint-name; did you mean --body.paint-name?"),
        (["--zzz"], "unknown option --zzz"),
        (["car"], "unexpected argument car"),
        (["--recipe", "huge"], "--recipe must be one of large, small, got huge"),
        (["--recipe", "../recipes/small"], "--recipe must be one of large, small, got ../reci"),
        (["--config", "no.yaml"], "cannot read no.yaml: No such file or directory"),
    ],
)
def test_usage_errors(
    command: Command, arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(command, capsys, *arguments)
    assert line.startswith(f"car: {problem}")
    assert line.endswith(" `car --help` tells what it takes")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"engin: {power: 1}", "unknown key engin in FILE; did you mean engine?"),
        (b"enginegears: {power: 1}", "unknown key enginegears in FILE; did you mean engine?"),
        (b"gears: 1", "unknown key gears in FILE; did you mean engine.gears?"),
        (
            b"engine: {gear: 3}",
            "unknown key engine.gear in FILE; did you mean engine.gears?",
        ),
        (b"engine: 3", "engine in FILE must hold keys and values, got 3"),
        (b"engine: {gears: 2.5}", "engine.gears in FILE must be a whole number, got 2.5"),
        (b"engine: {power: [1]}", "engine.power in FILE must be a number, got [1]"),
        (b"body: {doors: 3}", "body.doors in FILE must be whole numbers with commas between"),
        (b"body: {doors: [x]}", "body.doors in FILE must be whole numbers with commas between"),
        (b"[1, 2]", "FILE must hold keys and values, got [1, 2]"),
        (b"engine: [", "FILE is not YAML: line 1: expected the node content"),
        (b"engine:\n  gears: 1\n  gears: 2", "FILE is not YAML: line 3: key gears comes twice"),
        (b"? [1]\n: 2", "FILE is not YAML: line 1: found unhashable key"),
        (b"engine: !!python/name:os.getcwd", "FILE is not YAML: line 1: could not determine"),
        (b"engine: {gears: %s}" % (b"1" * 5000), "FILE is not YAML: line 1: '11111"),
        (b"engine:\n  gears: 2020-13-45", "FILE is not YAML: line 2: '2020-13-45' is no timestamp"),
        (b"engine: {gears: !!bool x}", "FILE is not YAML: line 1: 'x' is no bool"),
        (b"[" * 10_000, "FILE is not YAML: too many brackets within brackets"),
        (b"engine: 3\n---\nbody: 4", "FILE is not YAML: line 2: but found another document"),
        (b"a: \xff", "FILE is not UTF-8: invalid start byte at byte 3"),
    ],
)
def test_what_is_wrong_with_a_file(
    command: Command,
    tmp_path: Path,
    content: bytes,
    problem: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    line = refused(command, capsys, "--config", path, "--engine.power", 1)
    assert line.startswith(f"car: {problem.replace('FILE', str(path))}")


def test_aliases_that_stand_for_gigabytes_are_told_briefly(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bomb.yaml"
    lines = ["&a0 [x]", *(f"&a{i + 1} [{', '.join([f'*a{i}'] * 10)}]" for i in range(12))]
    path.write_text(f"engine: {{power: [{', '.join(lines)}]}}\n")
    line = refused(command, capsys, "--config", path)
    assert line.startswith(f"car: engine.power in {path} must be a number, got [['x'], [[")
    assert len(line) < 2000


def test_a_file_with_a_mark_and_line_ends_of_windows(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xef\xbb\xbfengine:\r\n  power: 12\r\n")
    assert made(command, "--config", path)[0].power == 12


def test_a_bad_environment_variable(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CAR_ENGINE_GEARS", "abc")
    line = refused(command, capsys, "--engine.power", 1)
    assert line.startswith("car: CAR_ENGINE_GEARS must be a whole number, got abc;")


def test_what_build_refuses(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    def build(groups: object) -> None:
        raise ValueError("power must go with doors")

    with pytest.raises(SystemExit):
        read(command, ["--engine.power", "1"], build)
    assert capsys.readouterr().err.startswith("car: power must go with doors; `")


def test_what_is_printed_can_be_fed_back(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--engine.power", "inf", "--body.doors", "7,8"]
    with pytest.raises(SystemExit) as stopped:
        made(command, *flags, "--print-config")
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "  doors: [7, 8]\n" in printed
    path = tmp_path / "printed.yaml"
    path.write_text(printed)
    assert made(command, "--config", path) == made(command, *flags)


def test_what_is_missing_is_left_out_of_what_is_printed(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        made(command, "--print-config")
    assert "power" not in capsys.readouterr().out


def test_help(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stopped:
        made(command, "--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    words = " ".join(text.split())
    assert words.startswith("usage: car [--recipe NAME] [--config FILE] [--GROUP.OPTION VALUE ...]")
    for expected in (
        "engine: what drives:",
        "body: around it:",
        "--engine.power X in kilowatts, as the maker says "
        "(required; environment: CAR_ENGINE_POWER)",
        "--engine.turbo [true|false] whether there is one (default: false; ",
        "--body.doors N,... numbers of doors to choose from (default: 3,5; ",
        "--body.paint-name TEXT colour (default: blue; ",
        "packaged options: large, small",
    ):
        assert expected in words


def test_help_breaks_no_name_at_its_hyphens(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"a-long-name-of-a-recipe-{i}" for i in range(9)]
    for name in names:
        (tmp_path / "recipes" / f"{name}.yaml").write_text("")
    with pytest.raises(SystemExit):
        made(command, "--help")
    words = capsys.readouterr().out.replace(",", "").split()
    assert set(names) <= set(words)
