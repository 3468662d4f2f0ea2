"""Kernels that should be there and are not make tests fail: nobody reads what is skipped."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels import are_owed

ROOT = Path(__file__).resolve().parents[2]
WITHOUT = """
import sys
import pytest
from deq_model.native import library
library._library = lambda: None
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""
TESTS = [
    "tests/deq_model/test_solvers_fused.py::test_the_kernel_of_a_cpu_does_what_the_operations_do",
    "tests/deq_model/test_kernels.py::test_they_are_there_where_they_could_be_built",
]


def test_they_are_there_where_they_could_be_built():
    assert not are_owed(), "CI is set and there is a C compiler, but the kernels are missing"


@pytest.mark.parametrize(
    ("ci", "compiler", "word"),
    [("1", True, "2 failed"), ("1", False, "1 skipped"), ("", True, "1 skipped")],
)
def test_without_them_tests_fail_only_where_they_are_owed(ci, compiler, word, tmp_path):
    cc = tmp_path / "cc"
    if compiler:
        shutil.copy(shutil.which("true"), cc)
    environment = os.environ | {"CI": ci, "CC": str(cc)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *TESTS],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert word in done.stdout, done.stdout + done.stderr
    assert done.returncode == int("failed" in word)
