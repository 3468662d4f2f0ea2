"""Nothing that comes from outside can make objects or run code by being read."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("deq_model", "server", "client", "training", "loadtest", "cli", "scripts", "benchmarks")
CODE = frozenset({"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"})
"""Modules whose readers run what they read."""
ALLOWED = {"training/convert.py": {"pickle"}}
"""Names the exception that torch's restricted reader raises, and no more."""


def breaches(code: str, *, allowed: frozenset[str] = frozenset()) -> Iterator[str]:
    """What in some code reads pickles, or may."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").partition(".")[0]}
        else:
            names = set()
        yield from sorted(names & CODE - allowed)
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("pickle."):
            if ast.unparse(node) != "pickle.UnpicklingError":
                yield ast.unparse(node)
        if isinstance(node, ast.Call):
            yield from _of_call(node)


def _of_call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if name == "torch.load" and given.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    if name in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False":
        yield "numpy.load with allow_pickle"
    if name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"):
        if name != "yaml.load" or given.get("Loader") != "_Loader":
            yield f"{name} without the safe loader"
    if name in ("eval", "exec"):
        yield name


def sources() -> list[Path]:
    found = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return sorted(path.relative_to(ROOT) for path in found)


@pytest.mark.parametrize("path", sources(), ids=str)
def test_nothing_unpickles(path: Path) -> None:
    allowed = frozenset(ALLOWED.get(path.as_posix(), set()))
    assert list(breaches((ROOT / path).read_text(encoding="utf-8"), allowed=allowed)) == []


def test_the_one_loader_of_yaml_is_a_safe_one() -> None:
    import yaml

    from cli.yaml_file import _Loader

    assert issubclass(_Loader, yaml.SafeLoader)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import pickle", ["pickle"]),
        ("from pickle import loads", ["pickle"]),
        ("import json, marshal", ["marshal"]),
        ("torch.load(p)", ["torch.load without weights_only=True"]),
        ("torch.load(p, weights_only=False)", ["torch.load without weights_only=True"]),
        ("torch.load(p, weights_only=True)", []),
        ("np.load(p)", []),
        ("np.load(p, allow_pickle=True)", ["numpy.load with allow_pickle"]),
        ("yaml.load(t, Loader=yaml.Loader)", ["yaml.load without the safe loader"]),
        ("eval('1')", ["eval"]),
        ("model.eval()", []),
    ],
)
def test_the_rules_tell_right_from_wrong(code: str, expected: list[str]) -> None:
    assert list(breaches(code)) == expected


def test_what_is_allowed_may_only_be_named() -> None:
    code = "import pickle\ntry:\n    pass\nexcept pickle.UnpicklingError:\n    pickle.loads(b'')"
    assert list(breaches(code, allowed=frozenset({"pickle"}))) == ["pickle.loads"]
