"""Everything is in pyproject.toml but one thing: conf/ lies beside the package and is installed inside it."""

from pathlib import Path
from shutil import copytree, rmtree

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConf(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # a checkout finds its own conf/
            target = Path(self.build_lib) / "nemo_magic" / "conf"
            rmtree(target, ignore_errors=True)
            copytree("conf", target)


setup(cmdclass={"build_py": BuildWithConf})
