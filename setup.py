"""Everything is in pyproject.toml but one thing: conf/ lies beside the package and is installed inside it."""

from pathlib import Path
from shutil import copytree, rmtree

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConf(build_py):
    """Build the package with a copy of conf/ in it."""

    def run(self) -> None:
        """Copy conf/ into the build, unless the installation is a checkout, which finds its own."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "nemo_magic" / "conf"
            rmtree(target, ignore_errors=True)
            copytree("conf", target)


setup(cmdclass={"build_py": BuildWithConf})
