"""Build steps of the package: gRPC stubs, and the kernels in C where there is a compiler."""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

# A build front end does not put the project's folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from scripts.gen_protos import generate


class BuildWithStubs(build_py):
    """``build_py`` that first generates what ``proto/`` describes."""

    def run(self) -> None:
        """Generate the stubs, then collect the modules."""
        generate()
        super().run()


KERNELS = Extension(
    "deq_model.native.kernels",
    sources=[f"deq_model/native/{name}.c" for name in ("attention", "broyden", "feed_forward")],
    depends=["deq_model/native/common.h"],
    extra_compile_args=["-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"],
    extra_link_args=["-fopenmp"],
    optional=True,  # without a compiler, or OpenMP, torch does what they would
)

setup(cmdclass={"build_py": BuildWithStubs}, ext_modules=[KERNELS])
