"""Checks that the pins are exact, that they exist, and that the installed versions match them.

    check_pins.py sources     first step of a build: every pin is set and exact, every commit and package exists
    check_pins.py installed   last step of a build, and any time later: commits, versions and imports against the pins

Source pins are the build arguments of the Dockerfile, package pins are requirements/gpu.txt. Runs on the base image's
Python (3.10) with only `packaging` and the standard library.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import Distribution, distributions
from pathlib import Path

SOURCES = {
    "APEX": "https://github.com/NVIDIA/apex.git",
    "TE": "https://github.com/NVIDIA/TransformerEngine.git",
    "TRTLLM": "https://github.com/NVIDIA/TensorRT-LLM.git",
    "NEMO": "https://github.com/NVIDIA/NeMo.git",
    "NEMO_FIX": "https://github.com/NVIDIA/NeMo.git",
    "NEMO_FIX_UPSTREAM": "https://github.com/NVIDIA/NeMo.git",
    "MEGATRON": "https://github.com/NVIDIA/Megatron-LM.git",
    "ALIGNER": "https://github.com/NVIDIA/NeMo-Aligner.git",
}
"""Repository of each pin ``<name>_COMMIT``."""

VERSIONS = {
    "NEMO_VERSION": "nemo-toolkit",
    "MEGATRON_VERSION": "megatron-core",
    "ALIGNER_VERSION": "nemo-aligner",
    "TRTLLM_VERSION": "tensorrt-llm",
    "MAGIC_VERSION": "nemo-magic",
}
"""Pinned version, and the distribution that reports it."""

BASE = ("BASE_IMAGE", "PYTHON_VERSION")
NAMES = (*BASE, *(f"{name}_COMMIT" for name in SOURCES), *VERSIONS)

IMPORTS = (
    "torch",
    "apex",
    "amp_C",
    "fused_layer_norm_cuda",
    "distributed_adam_cuda",
    "megatron.core",
    "megatron.core.datasets.helpers_cpp",
    "nemo.collections.nlp",
    "nemo_aligner",
    "pytriton.client",
    "nemo_magic.cli",
)
"""Modules that import without a GPU. transformer_engine and tensorrt_llm load the driver: only presence is checked."""

PRESENT = ("apex", "transformer-engine", "tensorrt", "torch")
"""Distributions without a pinned version: only their presence is checked."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_VERSION = re.compile(r"\d+(\.\d+)+([.\w+]*)")
_IMAGE = re.compile(r"[\w./-]+:(?P<tag>[\w][\w.-]*)(@sha256:[0-9a-f]{64})?")
_REQUIREMENT = re.compile(r"([A-Za-z0-9][\w.-]*)==([\w.+!]+)")


def inexact(pins: Mapping[str, str]) -> list[str]:
    """Problems of the pins: missing or floating (an empty value, a branch, `latest`, a short commit)."""
    problems = [f"{name} is not set" for name in NAMES if not pins.get(name)]
    for name, value in pins.items():
        if not value or name not in NAMES:
            continue
        if name.endswith("_COMMIT"):
            if not _COMMIT.fullmatch(value):
                problems.append(f"{name}={value} is not a commit of 40 hexadecimal digits")
        elif name.endswith("_VERSION") and not _VERSION.fullmatch(value):
            problems.append(f"{name}={value} is not a version")
        elif name == "BASE_IMAGE":
            image = _IMAGE.fullmatch(value)
            if image is None or not re.search(r"\d", image["tag"]):
                problems.append(f"{name}={value} does not name a release: image:tag or image:tag@sha256:digest")
    return problems


def requirements(text: str) -> dict[str, str]:
    """Distribution → version of a lock; ValueError for a line that is not ``name==version``."""
    versions = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        match = _REQUIREMENT.fullmatch(line.strip())
        if match is None:
            raise ValueError(f"{line!r} is not name==version")
        versions[_normal(match[1])] = match[2]
    return versions


def wrong_python(pyproject: str, wanted: str, running: str) -> list[str]:
    """Problems with the base image's Python: not the pinned version, or not supported by our package."""
    from packaging.specifiers import SpecifierSet

    problems = []
    if running.split(".")[:2] != wanted.split(".")[:2]:
        problems.append(f"the base image has Python {running}, PYTHON_VERSION={wanted}")
    match = re.search(r'^requires-python = "(.+)"$', pyproject, re.MULTILINE)
    if match is None:
        problems.append("pyproject.toml has no requires-python")
    elif running not in SpecifierSet(match[1]):
        problems.append(f"nemo-magic needs Python {match[1]} (pyproject.toml), the base image has {running}")
    return problems


def missing_commit(url: str, commit: str, ref: str | None = None) -> str | None:
    """The problem if ``url`` does not have ``ref`` (default: the commit). Fetches only the commit object."""
    with tempfile.TemporaryDirectory() as folder:
        git = ["git", "-C", folder]
        subprocess.run([*git, "init", "--quiet"], check=True)
        fetch = [*git, "fetch", "--quiet", "--depth=1", "--filter=tree:0", url, ref or commit]
        done = subprocess.run(fetch, capture_output=True, text=True)
        if done.returncode:
            return f"{url} has no {ref or commit}: {done.stderr.strip().splitlines()[-1:]}"
        parsed = [*git, "rev-parse", "FETCH_HEAD^{commit}"]
        head = subprocess.run(parsed, capture_output=True, text=True, check=True).stdout.strip()
    return None if head.startswith(commit) else f"{url}: {ref} is {head}, not {commit}"


def differing(
    pins: Mapping[str, str], locked: Mapping[str, str], built: Path, path: Sequence[str] | None = None
) -> list[str]:
    """Differences between installed and pinned versions.

    Args:
        built: the folder of ``<name>.commit`` files that checkout.sh wrote while building.
        path: where to look for distributions; None: ``sys.path``.
    """
    installed = list(distributions(path=list(path)) if path is not None else distributions())
    versions = _versions(installed)
    problems = []
    for name in SOURCES:
        if name == "NEMO_FIX_UPSTREAM":
            continue  # only marks where the fix begins
        file, pin = built / f"{name.lower()}.commit", pins.get(f"{name}_COMMIT", "")
        commit = file.read_text().strip() if file.is_file() else None
        if commit is None:
            problems.append(f"{name.lower()}: {file} is missing, so nobody knows what was built")
        elif not pin or not commit.startswith(pin):
            problems.append(f"{name.lower()}: built from {commit}, pinned {pin or 'nothing'}")
    wanted = {_normal(name): pins.get(pin, "") for pin, name in VERSIONS.items()} | dict(locked)
    for name, version in wanted.items():
        if name not in versions:
            problems.append(f"{name}: not installed, pinned {version or 'nothing'}")
        elif not _same(versions[name], version):
            problems.append(f"{name}: {versions[name]} is installed, pinned {version or 'nothing'}")
    problems += [f"{name}: not installed" for name in PRESENT if name not in versions]
    problems += [
        f"{name}: not installed, tensorrt-llm needs it"
        for name in sorted(_requirement_names(installed, "tensorrt-llm") - set(versions))
    ]
    return problems


def unimportable(modules: Iterable[str]) -> list[str]:
    """Modules that fail to import, each in a separate process: some conflict, and an import may crash."""
    problems = []
    for module in modules:
        done = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            problems.append(f"import {module}: status {done.returncode}, {last}")
    return problems


def main(argv: Sequence[str] | None = None) -> int:
    """Print one line per problem. Exit status: 0 everything is as pinned, 1 something is not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sources", "installed"])
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="pins.env, gpu.txt, built/")
    parser.add_argument("--offline", action="store_true", help="sources: contact no repository and no package index")
    parser.add_argument("--no-imports", action="store_true", help="installed: versions only")
    args = parser.parse_args(argv)
    problems = _sources(args) if args.what == "sources" else _installed(args)
    for problem in problems:
        print(f"pin: {problem}", file=sys.stderr)
    print(f"check_pins {args.what}: {f'{len(problems)} wrong' if problems else 'all as pinned'}")
    return 1 if problems else 0


def _sources(args: argparse.Namespace) -> list[str]:
    pins = {name: os.environ.get(name, "") for name in NAMES}
    problems = inexact(pins)
    if problems:
        return problems  # later checks would repeat it
    pyproject, running = (args.folder / "pyproject.toml").read_text(), "{}.{}.{}".format(*sys.version_info[:3])
    problems = wrong_python(pyproject, pins["PYTHON_VERSION"], running)
    try:
        requirements((args.folder / "gpu.txt").read_text())
    except ValueError as error:
        problems.append(f"gpu.txt: {error}")
    if not args.offline and not problems:
        for name, url in SOURCES.items():
            ref = f"refs/tags/v{pins['TRTLLM_VERSION']}" if name == "TRTLLM" else None
            problem = missing_commit(url, pins[f"{name}_COMMIT"], ref)
            problems += [problem] if problem else []
        lock = str(args.folder / "gpu.txt")
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--dry-run", "--quiet", "-r", lock]
        # The lock replaces the base image's own constraints.
        done = subprocess.run(pip, env=os.environ | {"PIP_CONSTRAINT": lock}, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
            problems += [f"gpu.txt: pip: {line}" for line in errors]
    if not problems:
        (args.folder / "pins.env").write_text("".join(f"{name}={value}\n" for name, value in pins.items()))
    return problems


def _installed(args: argparse.Namespace) -> list[str]:
    text = (args.folder / "pins.env").read_text()
    pins = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    locked = requirements((args.folder / "gpu.txt").read_text())
    problems = inexact(pins) + differing(pins, locked, args.folder / "built")
    return problems + ([] if args.no_imports else unimportable(IMPORTS))


def _versions(installed: Iterable[Distribution]) -> dict[str, str]:
    versions: dict[str, str] = {}
    for distribution in installed:
        name = distribution.metadata["Name"]
        if name:  # a partly removed package has none
            versions.setdefault(_normal(name), distribution.version)
    return versions


def _requirement_names(installed: Iterable[Distribution], name: str) -> set[str]:
    """Names of a distribution's requirements. Its wheel is installed without them; the lock pins their versions."""
    requirement_lines = [
        line for one in installed if _normal(one.metadata["Name"] or "") == name for line in one.requires or []
    ]
    matches = (re.match(r"[A-Za-z0-9][\w.-]*", line) for line in requirement_lines if "extra ==" not in line)
    return {_normal(match[0]) for match in matches if match}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _same(installed: str, pinned: str) -> bool:
    return installed == pinned or installed.split("+")[0] == pinned


if __name__ == "__main__":
    sys.exit(main())
