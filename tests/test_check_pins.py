"""docker/check_pins.py and docker/checkout.sh: what is missing, floats, or was not built as pinned does not pass."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PINS = dict(
    re.findall(r"^ARG (\w+)=(\S+)$", (ROOT / "Dockerfile").read_text().partition("# --- not pins")[0], re.MULTILINE)
)
_spec = importlib.util.spec_from_file_location("check_pins", ROOT / "docker" / "check_pins.py")
assert _spec is not None
assert _spec.loader is not None
check = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(check)
GPU = check.requirements((ROOT / "requirements" / "gpu.txt").read_text())


@pytest.fixture
def environment(tmp_path: Path) -> Callable[..., list[str]]:
    """A folder of installed distributions and one of commits, all as pinned but for what a test changes."""

    def make(versions: dict[str, str | None] | None = None, commits: dict[str, str | None] | None = None) -> list[str]:
        there = {check._normal(name): PINS[pin] for pin, name in check.VERSIONS.items()} | GPU
        there |= dict.fromkeys(check.PRESENT, "1.0")
        for name, version in (there | (versions or {})).items():
            if version is not None:
                folder = tmp_path / "site" / f"{name.replace('-', '_')}-{version}.dist-info"
                folder.mkdir(parents=True)
                needs = "Requires-Dist: numpy<2\nRequires-Dist: colored\n" if name == "tensorrt-llm" else ""
                (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        built = {name.lower(): PINS[f"{name}_COMMIT"].ljust(40, "0") for name in check.SOURCES}
        (tmp_path / "built").mkdir()
        for name, commit in (built | (commits or {})).items():
            if commit is not None:
                (tmp_path / "built" / f"{name}.commit").write_text(f"{commit}\n")
        return check.differing(PINS, GPU, tmp_path / "built", [str(tmp_path / "site")])

    return make


def test_an_image_as_pinned_passes(environment: Callable[..., list[str]]) -> None:
    assert environment({"torch": "2.4.0a0+3bcc3cddb5.nv24.7", "megatron-core": "0.10.0+d15cec5"}) == []


@pytest.mark.parametrize(
    ("name", "version", "said"),
    [
        ("protobuf", "6.33.6", "protobuf: 6.33.6 is installed, pinned 4.24.4"),
        ("pynvml", None, "pynvml: not installed, pinned 11.5.3"),
        ("megatron-core", "0.9.0", "megatron-core: 0.9.0 is installed, pinned 0.10.0"),
        ("tensorrt-llm", None, "tensorrt-llm: not installed, pinned 0.13.0"),
        ("transformer-engine", None, "transformer-engine: not installed"),
    ],
)
def test_a_wrong_or_missing_package_is_named(
    environment: Callable[..., list[str]], name: str, version: str | None, said: str
) -> None:
    assert environment({name: version}) == [said]


def test_a_library_built_from_another_commit_is_named(environment: Callable[..., list[str]]) -> None:
    problems = environment(commits={"te": "0" * 40, "apex": None})
    assert problems[0].startswith("apex: ")
    assert "nobody knows what was built" in problems[0]
    assert problems[1:] == [f"te: built from {'0' * 40}, pinned {PINS['TE_COMMIT']}"]


def test_what_tensorrt_llm_asks_for_and_nobody_brought_is_named(environment: Callable[..., list[str]]) -> None:
    assert "colored: not installed, tensorrt-llm needs it" in environment({"colored": None})


@pytest.mark.parametrize("name", check.NAMES)
def test_a_pin_that_is_missing_is_found_before_anything_is_built(name: str) -> None:
    assert check.inexact(PINS | {name: ""}) == [f"{name} is not set"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TE_COMMIT", "main"),
        ("NEMO_COMMIT", "633cb602"),
        ("TRTLLM_COMMIT", "201135e"),
        ("BASE_IMAGE", "nvcr.io/nvidia/pytorch:latest"),
        ("BASE_IMAGE", "nvcr.io/nvidia/pytorch"),
        ("NEMO_VERSION", "r2.1.0"),
    ],
)
def test_a_pin_that_floats_is_found_before_anything_is_built(name: str, value: str) -> None:
    (problem,) = check.inexact(PINS | {name: value})
    assert problem.startswith(f"{name}={value} ")


def test_a_base_image_may_be_given_by_its_digest() -> None:
    assert check.inexact(PINS | {"BASE_IMAGE": f"{PINS['BASE_IMAGE']}@sha256:{'0' * 64}"}) == []


def test_a_python_that_the_package_does_not_accept_is_said_before_anything_is_built() -> None:
    (problem,) = check.wrong_python('requires-python = ">=3.10,<3.13"\n', "3.9", "3.9.18")
    assert problem == "nemo-magic needs Python >=3.10,<3.13 (pyproject.toml), the base image has 3.9.18"
    (problem,) = check.wrong_python('requires-python = ">=3.10,<3.13"\n', "3.10", "3.12.3")
    assert problem == "the base image has Python 3.12.3, PYTHON_VERSION=3.10"


def test_a_lock_with_an_open_line_is_refused() -> None:
    with pytest.raises(ValueError, match="'numpy>=1.26' is not name==version"):
        check.requirements("# a lock\nwheel==0.45.0\nnumpy>=1.26\n")


def _command(folder: Path, *argv: str, **pins: str) -> subprocess.CompletedProcess[str]:
    for path in ("docker/check_pins.py", "requirements/gpu.txt", "pyproject.toml"):
        (folder / Path(path).name).write_bytes((ROOT / path).read_bytes())
    # The Python of this test stands in for the base image's.
    running = {"PYTHON_VERSION": "{}.{}".format(*sys.version_info)}
    command = [sys.executable, str(folder / "check_pins.py"), *argv]
    return subprocess.run(command, env=os.environ | PINS | running | pins, capture_output=True, text=True)


@pytest.mark.process
def test_the_first_step_of_a_build_writes_the_pins_down_or_fails(tmp_path: Path) -> None:
    done = _command(tmp_path, "sources", "--offline", APEX_COMMIT="")
    assert (done.returncode, done.stderr) == (1, "pin: APEX_COMMIT is not set\n")
    assert not (tmp_path / "pins.env").exists()
    done = _command(tmp_path, "sources", "--offline")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"TE_COMMIT={PINS['TE_COMMIT']}\n" in (tmp_path / "pins.env").read_text()


@pytest.mark.process
def test_the_last_step_of_a_build_fails_where_nothing_is_as_pinned(tmp_path: Path) -> None:
    _command(tmp_path, "sources", "--offline")
    done = _command(tmp_path, "installed", "--no-imports")
    assert done.returncode == 1
    assert "pin: tensorrt-llm: not installed, pinned 0.13.0\n" in done.stderr
    assert "pin: te: " in done.stderr


@pytest.mark.process
def test_a_module_that_cannot_be_imported_is_named_with_its_reason() -> None:
    assert check.unimportable(["json"]) == []
    (problem,) = check.unimportable(["no_such_module"])
    assert problem == "import no_such_module: status 1, ModuleNotFoundError: No module named 'no_such_module'"


@pytest.fixture
def repository(tmp_path: Path) -> tuple[str, str, str]:
    """A repository with two commits, the first of them tagged v1: its address and the two commits."""
    folder = tmp_path / "upstream"
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@localhost"]
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    commits = []
    for number in (1, 2):
        (folder / "file").write_text(f"{number}\n")
        subprocess.run([*git, "add", "file"], check=True)
        subprocess.run([*git, "commit", "--quiet", "-m", str(number)], check=True)
        head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
        commits.append(head.stdout.strip())
        if number == 1:
            subprocess.run([*git, "tag", "-a", "v1", "-m", "1"], check=True)
    for key in ("allowFilter", "allowAnySHA1InWant"):
        subprocess.run([*git, "config", f"uploadpack.{key}", "true"], check=True)
    return f"file://{folder}", commits[0], commits[1]


@pytest.mark.process
def test_a_commit_that_no_repository_has_is_found_before_anything_is_built(repository: tuple[str, str, str]) -> None:
    url, first, second = repository
    assert check.missing_commit(url, second) is None
    assert check.missing_commit(url, first[:7], "refs/tags/v1") is None
    assert check.missing_commit(url, "0" * 40).startswith(f"{url} has no {'0' * 40}: ")
    assert check.missing_commit(url, second, "refs/tags/v1") == f"{url}: refs/tags/v1 is {first}, not {second}"


@pytest.mark.process
def test_a_checkout_is_the_commit_and_writes_it_down(repository: tuple[str, str, str], tmp_path: Path) -> None:
    url, first, second = repository

    def checkout(name: str, *argv: str) -> subprocess.CompletedProcess[str]:
        command = [str(ROOT / "docker" / "checkout.sh"), name, str(tmp_path / name), url, *argv]
        return subprocess.run(
            command, env=os.environ | {"BUILT": str(tmp_path / "built")}, capture_output=True, text=True
        )

    assert checkout("commit", first).returncode == 0
    assert (tmp_path / "commit" / "file").read_text() == "1\n"
    assert (tmp_path / "built" / "commit.commit").read_text() == f"{first}\n"
    assert checkout("tag", first[:7], "refs/tags/v1").returncode == 0
    moved = checkout("moved", second[:7], "refs/tags/v1")
    assert moved.returncode == 1
    assert f"refs/tags/v1 is {first}, pinned {second[:7]}" in moved.stderr
    assert not (tmp_path / "built" / "moved.commit").exists()
