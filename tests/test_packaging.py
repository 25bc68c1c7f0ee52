"""What is shipped: a wheel that finds its configurations wherever it is installed, and a lock without holes."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from zipfile import ZipFile

import pytest
import tomllib

from nemo_magic.actors.builder import MEGATRON_CORE
from nemo_magic.cli import EXTRAS

ROOT = Path(__file__).resolve().parents[1]


def names(requirements: str) -> dict[str, str]:
    """Distribution → version specifier of a requirements file."""
    lines = [
        line for line in (ROOT / "requirements" / requirements).read_text().splitlines() if line[:1] not in ("", "#")
    ]
    found = (re.fullmatch(r"([\w.-]+)(.*)", line) for line in lines)
    return {re.sub(r"[-_.]+", "-", m[1]).lower(): m[2] for m in found if m}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built aside and without a network."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in ("nemo_magic", "conf"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    target = tmp_path_factory.mktemp("wheel")
    command = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(target)]
    done = subprocess.run([sys.executable, "-m", "pip", *command, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = target.glob("nemo_magic-*.whl")
    return path


@pytest.mark.process
def test_the_wheel_holds_every_configuration_and_every_module(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    conf = {f"nemo_magic/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    code = {str(path.relative_to(ROOT)) for path in (ROOT / "nemo_magic").rglob("*.py")}
    assert conf
    page = {str(path.relative_to(ROOT)) for path in (ROOT / "nemo_magic" / "report" / "page").iterdir()}
    assert {Path(name).suffix for name in page} == {".html", ".css", ".js"}
    assert conf | code | page | {"nemo_magic/py.typed"} <= inside
    assert not [name for name in inside if name.startswith(("tests/", "conf/"))]


@pytest.mark.process
def test_the_installed_wheel_finds_its_configurations_anywhere(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "site-packages"
    with ZipFile(wheel) as archive:
        archive.extractall(installed)
    # Somebody else's conf/ beside the package is not taken for ours.
    (installed / "conf").mkdir()
    (installed / "conf" / "magic.yaml").write_text("not: ours\n")
    done = subprocess.run(
        [sys.executable, "-m", "nemo_magic.cli", "train", "-cn", "magic_sandbox", "seed=7", "--dry-run"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "seed: 7\n" in done.stdout


@pytest.mark.process
def test_the_command_is_installed_under_its_name(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        (entry,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert "nemo-magic = nemo_magic.cli:main" in archive.read(entry).decode()


WITH_THE_STACK = {"torch", "nemo", "nemo_aligner", "megatron", "lightning", "apex", "tensorrt_llm", "mpi4py", "vllm"}
"""Packages of the container, or of `make`, that only the extra `cuda` brings, or none."""


def declared(*extras: str) -> set[str]:
    """The distributions that pyproject.toml names, those of ``extras`` included, by normal names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    return {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", line)[0]).lower() for line in lines}  # type: ignore[index]


def imported() -> set[str]:
    """The top-level packages that are not Python's and that nemo_magic imports anywhere, inside of functions too."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "nemo_magic").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names) - {"nemo_magic"}


@pytest.mark.slow
def test_everything_that_is_imported_is_declared() -> None:
    distributions = packages_distributions() | {"async_timeout": ["async-timeout"]}  # of Python 3.10 only
    missing = {
        module
        for module in imported() - WITH_THE_STACK
        if not {re.sub(r"[-_.]+", "-", name).lower() for name in distributions[module]}
        & declared("train", "judge", "report", "analysis")
    }
    assert missing == set()


@pytest.mark.process
def test_a_configuration_is_checked_and_a_judge_is_asked_without_any_extra() -> None:
    extras = declared("train", "judge", "report", "analysis", "cuda") - declared()
    modules = {name for name, owners in packages_distributions().items() if {o.lower() for o in owners} & extras}
    blocked = sorted((modules | {"torch", "nemo", "megatron", "lightning", "vllm"}) - {"nemo_magic"})
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({blocked}))\n"
        "from nemo_magic import cli\n"
        "import nemo_magic.evaluation.runner, nemo_magic.judge.client\n"
        "sys.exit(cli.main(['train', '-cn', 'magic_sandbox', '--dry-run']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.process
def test_a_command_whose_extra_is_not_installed_names_it_in_a_line() -> None:
    code = (
        "import sys; sys.modules['fastapi'] = None; from nemo_magic import cli;"
        "sys.exit(cli.main(['judge', '-cn', 'magic_sandbox']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("nemo-magic judge: ")
    assert done.stderr.endswith(": pip install 'nemo-magic[judge]'\n")


def test_the_extra_cuda_has_the_versions_that_the_tests_of_both_lanes_run() -> None:
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["cuda"]
    pins = dict(line.split("==") for line in extra if "==" in line)
    makefile = (ROOT / "Makefile").read_text()
    made = dict(re.findall(r"^(CORE|TORCH|VLLM) := (.+)$", makefile, re.MULTILINE))
    assert made["CORE"] == f"megatron-core=={pins['megatron-core']}"
    assert made["TORCH"] == f"torch=={pins['torch']}"
    assert made["VLLM"].partition("+")[0] == pins["vllm"]
    assert [line for line in extra if "==" not in line] == ["nemo-magic[train]", "einops"]
    assert MEGATRON_CORE["megatron"] == tuple(map(int, pins["megatron-core"].split(".")[:2]))
    # Its own wheel, and those of the others, are for this Python.
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"] == ">=3.10,<3.13"


def test_every_extra_that_a_message_names_brings_the_module() -> None:
    owners = packages_distributions()
    for module, extra in EXTRAS.items():
        assert {name.lower() for name in owners[module]} & {name.replace("-", "_") for name in declared(extra)}


@pytest.mark.parametrize("part", ["cpu", "dev"])
def test_the_lock_pins_everything_that_is_asked_for(part: str) -> None:
    locked = names(f"{part}.txt")
    assert set(names(f"{part}.in")) <= set(locked)
    assert [name for name, version in locked.items() if not re.fullmatch(r"==[\w.+!]+", version)] == []


def test_a_pin_that_is_asked_for_is_the_pin_of_the_lock() -> None:
    locked = names("cpu.txt")
    asked = {name: version for name, version in names("cpu.in").items() if version.startswith("==")}
    assert asked == {name: locked[name] for name in asked}
