"""A run's resolved configuration and the versions of its software, in its folder."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import yaml
from omegaconf._utils import get_yaml_loader

import nemo_magic
from nemo_magic.config.schema import MagicConfig
from nemo_magic.config.secrets import masked
from nemo_magic.fsync_io import private_folder, replace_durably

CONFIG_FILE = "config.yaml"
VERSIONS_FILE = "versions.json"


def to_yaml(cfg: MagicConfig) -> str:
    """The configuration with every key, defaults included; a primary configuration that composes to the same again.

    Nothing secret is in it: see ``config/secrets.py``.
    """
    return yaml.dump(masked(cfg), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """Quotes texts that Hydra would read as numbers, of which it knows more spellings than YAML has."""

    yaml_implicit_resolvers = get_yaml_loader().yaml_implicit_resolvers


def save_resolved(cfg: MagicConfig, run_dir: str | Path) -> None:
    """Write ``config.yaml`` and ``versions.json`` to ``run_dir``, which is created; a reader sees whole files only.

    A folder that others can read is said, on stderr.
    """
    folder = Path(run_dir)
    if (open_to := private_folder(folder)) is not None:
        print(f"nemo-magic: {open_to}", file=sys.stderr, flush=True)
    replace_durably(folder / CONFIG_FILE, to_yaml(cfg))
    replace_durably(folder / VERSIONS_FILE, json.dumps(versions(), indent=2) + "\n")


def versions() -> dict[str, Any]:
    """Python, installed distributions, and the revision of the checkout the package runs from (null: not from one)."""
    packages = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    return {
        "nemo_magic": nemo_magic.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git": git_state(Path(nemo_magic.__file__).resolve().parents[1]),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }


def git_state(checkout: Path) -> dict[str, Any] | None:
    """``revision`` and whether the tree is ``dirty``; None where ``checkout`` is not itself a git work tree."""
    top = _git(checkout, "rev-parse", "--show-toplevel")
    # An installed package may lie in somebody else's repository, whose revision says nothing about it.
    if top is None or Path(top).resolve() != checkout:
        return None
    status = _git(checkout, "status", "--porcelain")
    return {
        "revision": _git(checkout, "rev-parse", "--verify", "HEAD"),
        "dirty": None if status is None else bool(status),
    }


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
