"""Build steps of the package: gRPC stubs, kernels in C where there is a compiler, what it is of."""

import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

# A build front end does not put the project's folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from cli.build import revision_of
from scripts.gen_protos import generate

ROOT = Path(__file__).resolve().parent


class BuildPackage(build_py):
    """``build_py`` with what is not in the source tree as it has to be in the package."""

    def run(self) -> None:
        """Generate the stubs, collect the modules, add revision and bundled checkpoints."""
        generate()
        super().run()
        if self.editable_mode:  # the source tree has both
            return
        note_revision(Path(self.build_lib, "cli"))
        bundled = Path(self.build_lib, "server", "bundled")
        shutil.rmtree(bundled, ignore_errors=True)
        shutil.copytree(ROOT / "models", bundled)


class SourcesWithRevision(sdist):
    """``sdist`` that notes the revision, as git does not go with the sources."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Copy the sources, then add it."""
        super().make_release_tree(base_dir, files)
        note_revision(Path(base_dir, "cli"))


def note_revision(package: Path) -> None:
    """Write the file that ``cli.build`` reads; DEQLM_REVISION names it where git is not there."""
    revision = os.environ.get("DEQLM_REVISION") or revision_of(ROOT / "cli")
    (package / "revision.txt").write_text(revision + "\n", encoding="ascii")


KERNELS = Extension(
    "deq_model.native.kernels",
    sources=[f"deq_model/native/{name}.c" for name in ("attention", "broyden", "feed_forward")],
    depends=["deq_model/native/common.h"],
    extra_compile_args=["-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"],
    extra_link_args=["-fopenmp"],
    optional=True,  # without a compiler, or OpenMP, torch does what they would
)

setup(cmdclass={"build_py": BuildPackage, "sdist": SourcesWithRevision}, ext_modules=[KERNELS])
