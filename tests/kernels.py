"""Tests of the kernels in C: they are skipped where none can be, and fail where they are owed."""

import os
import shlex
import shutil
import sysconfig

import pytest

from deq_model.int8_feed_forward import has_int8
from deq_model.native.library import find


def are_owed() -> bool:
    """Whether they are missing though they could have been built, where that must be noticed."""
    named = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    compiler = shlex.split(named)[0]
    return bool(os.environ.get("CI") and shutil.which(compiler)) and find("attend") is None


needs_kernels = pytest.mark.skipif(
    find("attend") is None and not are_owed(), reason="needs the kernels in C"
)
needs_int8 = pytest.mark.skipif(
    not has_int8("cpu") and not are_owed(), reason="needs a CPU with AVX-512 VNNI, and the kernels"
)
