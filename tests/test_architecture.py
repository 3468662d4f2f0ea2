"""Imports point one way, and what must start quickly imports nothing heavy."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("deq_model", "server", "client", "training", "loadtest", "cli")
OURS = {*PACKAGES, "deqlm"}

GRPC = {"grpc", "grpc_health", "grpc_reflection", "grpc_status", "google"}
LEARNING = {"torch", "triton", "numpy", "safetensors", "sentencepiece"}

# The longest prefix that matches a module decides. `ours`: which of our packages it may import.
# `forbidden` and `only` speak of other people's packages; the standard library is always allowed.
RULES: dict[str, dict[str, set[str]]] = {
    "deq_model": {"ours": {"deq_model"}, "only": LEARNING},
    "server.engine": {"ours": {"deq_model", "server.engine"}, "forbidden": GRPC},
    "server.engine.scheduler": {"ours": {"server.engine"}, "only": set()},
    "server.engine.slots": {"ours": {"server.engine"}, "only": set()},
    "server.store": {
        "ours": {"server.store", "server.engine.results", "server.engine.snapshots"}
        | {"server.engine.solve"},
        "only": {"redis"},
    },
    "server": {"ours": {"deq_model", "server", "deqlm", "cli"}},
    "training": {"ours": {"deq_model", "training", "cli"}, "forbidden": GRPC},
    "client": {"ours": {"client", "deqlm", "cli"}, "forbidden": LEARNING},
    "loadtest": {"ours": {"client", "loadtest", "deqlm", "cli"}, "forbidden": LEARNING},
    "cli": {"ours": {"cli"}, "forbidden": LEARNING | GRPC},
}


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(nodes: Iterator[ast.AST], path: Path) -> Iterator[str]:
    """Full names of the modules that the nodes import; ``path`` resolves relative imports."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = path.parts[: len(path.parts) - node.level] if node.level else ()
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield source
            # `from server import engine` imports a module as well.
            yield from (f"{source}.{alias.name}" for alias in node.names)


def breach(path: Path, code: str) -> list[str]:
    """What the module at ``path`` (relative to the root) imports against the rules."""
    module = module_name(path)
    prefix = max((name for name in RULES if is_within(module, name)), key=len)
    rule = RULES[prefix]
    names = set(imported(ast.walk(ast.parse(code)), path))
    return sorted(name for name in names if not is_allowed(name, rule, names))


def is_allowed(name: str, rule: dict[str, set[str]], names: set[str]) -> bool:
    top = name.partition(".")[0]
    if top in OURS:
        # A bare `from server import engine` shows as `server` too: its longer name decides.
        is_prefix = any(other.startswith(name + ".") for other in names)
        return is_prefix or any(is_within(name, package) for package in rule["ours"])
    if top in sys.stdlib_module_names:
        return True
    return top in rule["only"] if "only" in rule else top not in rule.get("forbidden", set())


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: no function bodies, no TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from at_import(child)


def heavy_at_import(path: Path, code: str) -> list[str]:
    names = imported(at_import(ast.parse(code)), path)
    return sorted({name for name in names if name.partition(".")[0] not in sys.stdlib_module_names})


def sources() -> list[Path]:
    found = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return sorted(path.relative_to(ROOT) for path in found)


@pytest.mark.parametrize("path", sources(), ids=str)
def test_imports_point_one_way(path: Path) -> None:
    assert breach(path, (ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", [p for p in sources() if p.name == "__init__.py"], ids=str)
def test_package_files_are_light(path: Path) -> None:
    assert heavy_at_import(path, (ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "code", "expected"),
    [
        ("deq_model/a.py", "import torch.nn, json\nfrom . import b", []),
        ("deq_model/a.py", "import grpc", ["grpc"]),
        ("deq_model/a.py", "from server.engine import x", ["server.engine.x"]),
        ("server/engine/a.py", "from deq_model.b import c\nimport torch", []),
        ("server/engine/a.py", "from .. import edge", ["server.edge"]),
        ("server/engine/a.py", "from server import engine", []),
        ("server/engine/a.py", "def f():\n  import google.protobuf", ["google.protobuf"]),
        ("server/engine/scheduler.py", "import torch", ["torch"]),
        ("server/engine/scheduler/a.py", "import numpy", ["numpy"]),
        ("server/edge.py", "import client.sync", ["client.sync"]),
        ("server/edge.py", "import grpc, torch\nfrom server.engine import x", []),
        ("client/a.py", "import grpc, rich\nfrom deqlm.v1 import scoring_pb2", []),
        ("client/a.py", "import deq_model", ["deq_model"]),
        ("training/a.py", "import client, grpc", ["client", "grpc"]),
        ("loadtest/a.py", "import server", ["server"]),
        ("cli/a.py", "import torch", ["torch"]),
    ],
)
def test_the_rules_tell_right_from_wrong(path: str, code: str, expected: list[str]) -> None:
    assert breach(Path(path), code) == expected


def test_what_runs_at_import_is_told_from_what_does_not() -> None:
    code = "\n".join(
        [
            "import json",
            "from typing import TYPE_CHECKING",
            "if TYPE_CHECKING:\n    import torch",
            "def f():\n    import numpy",
            "try:\n    import grpc\nexcept ImportError:\n    pass",
            "from .sync import Client",
        ]
    )
    found = heavy_at_import(Path("client/__init__.py"), code)
    assert found == ["client.sync", "client.sync.Client", "grpc"]


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after running the code."""
    report = "import sys; print('\\n' + ' '.join(sys.modules))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")])}
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"],
        cwd=ROOT,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


LIGHT = [path for path in sources() if path.parts[0] == "client"] + [
    path
    for path in sources()
    if module_name(path) in ("server.engine.scheduler", "server.engine.slots")
    or is_within(module_name(path), "server.store")
]


def test_light_modules_load_nothing_heavy() -> None:
    """All at once, as each fresh interpreter costs time; the names tell who is to blame."""
    names = [module_name(path) for path in LIGHT if path.name != "__main__.py"]
    loaded = modules_after("\n".join(f"import {name}" for name in names))
    assert loaded & (LEARNING | {"deq_model", "training", "loadtest"}) == set(), names


def test_reading_a_checkpoint_loads_no_symbolic_mathematics() -> None:
    """torch imports it for tensors without storage, and a server starts a second later for it."""
    folder = ROOT / "models" / "shakespeare-ift"
    loaded = modules_after(
        "import torch\nfrom pathlib import Path\nfrom deq_model.checkpoint import load_checkpoint\n"
        f"load_checkpoint(Path({str(folder)!r}), device=torch.device('cpu'))"
    )
    assert "torch" in loaded
    assert "sympy" not in loaded


def test_the_load_test_loads_nothing_of_learning() -> None:
    found = [path for path in sources() if path.parts[0] == "loadtest"]
    loaded = modules_after("\n".join(f"import {module_name(path)}" for path in found))
    assert "loadtest" in loaded
    assert loaded & (LEARNING | {"deq_model", "training", "server"}) == set()


def test_help_loads_neither_torch_nor_grpc() -> None:
    loaded = modules_after("from cli.__main__ import main; main(['--help'])")
    assert "cli" in loaded
    assert loaded & (LEARNING | GRPC | OURS) == {"cli"}
