"""Model presets of conf/model/ as Hydra composes them, without a run around them."""

from __future__ import annotations

from typing import Any

import yaml

from nemo_magic.config.composition import conf_dir


def model_preset(name: str) -> dict[str, Any]:
    """The keys of ``conf/model/NAME.yaml``, over those of the files that its ``defaults`` name."""
    return _read(f"model/{name}")


def _read(name: str) -> dict[str, Any]:
    own = yaml.safe_load((conf_dir() / f"{name}.yaml").read_text())
    keys: dict[str, Any] = {}
    for default in own.pop("defaults", ["_self_"]):
        base = default.removesuffix("@_here_")
        path = base[1:] if base.startswith("/") else f"{name.rpartition('/')[0]}/{base}"
        keys = _merge(keys, own if base == "_self_" else _read(path))
    return keys


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {key: _merge(below[key], above[key]) for key in below.keys() & above.keys() if isinstance(below[key], dict)}
    return below | above | both
