"""The guards, by name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, cast

from nemo_magic.judge.guards.base import Guard

# Modules are imported on demand: a guard's own dependencies are needed only by the server that runs it.
GUARDS: dict[str, str] = {
    "rules": "nemo_magic.judge.guards.rules:RulesGuard",
}


def build_guard(name: str, config: Mapping[str, Any]) -> Guard:
    """The guard ``name`` with its settings as keyword arguments.

    ``name`` is a key of GUARDS, or ``package.module:factory`` for a guard of your own. Raises ValueError for any other
    name or for settings that the guard does not take.
    """
    target = GUARDS.get(name, name)
    module, separator, factory = target.partition(":")
    if not separator:
        raise ValueError(f"judge.guard={name!r} must be one of: {', '.join(sorted(GUARDS))}; or package.module:factory")
    try:
        return cast(Guard, getattr(importlib.import_module(module), factory)(**config))
    except TypeError as error:
        raise ValueError(f"judge.guard_config={dict(config)} does not fit judge.guard={name!r}: {error}") from error
