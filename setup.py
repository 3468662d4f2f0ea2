"""Build step of the package: the gRPC stubs are generated before the modules are collected."""

import sys
from pathlib import Path

from setuptools import setup
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


setup(cmdclass={"build_py": BuildWithStubs})
