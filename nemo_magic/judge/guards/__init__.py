"""The guards, by name."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any, cast

from nemo_magic.judge.guards.base import Guard
from nemo_magic.judge.protocol import Ask

# Modules are imported on demand: a guard's own dependencies are needed only by the server that runs it.
GUARDS: dict[str, str] = {
    "ensemble": "nemo_magic.judge.guards.ensemble:Ensemble",
    "harmbench": "nemo_magic.judge.guards.harmbench:HarmBench",
    "llamaguard": "nemo_magic.judge.guards.llamaguard:LlamaGuard",
    "qwen3guard": "nemo_magic.judge.guards.qwen3guard:Qwen3Guard",
    "rubric": "nemo_magic.judge.guards.rubric:Rubric",
    "rules": "nemo_magic.sandbox.rules_guard:RulesGuard",
    "wildguard": "nemo_magic.judge.guards.wildguard:WildGuard",
}


def build_guard(name: str, config: Mapping[str, Any]) -> Guard:
    """The guard ``name`` with its settings as keyword arguments.

    ``name`` is a key of GUARDS, or ``package.module:factory`` for a guard of your own. Raises ValueError for any other
    name or for settings that the guard does not take.
    """
    try:
        return cast(Guard, _factory(name)(**config))
    except TypeError as error:
        raise ValueError(f"judge.guard_config={dict(config)} does not fit judge.guard={name!r}: {error}") from error


def answers_of(name: str, config: Mapping[str, Any]) -> frozenset[Ask]:
    """The fields that ``build_guard(name, config)`` could tell, without building it.

    All of them for a factory that does not say (``answers_of``). Raises ValueError for a name that is no guard's.
    """
    known = getattr(_factory(name), "answers_of", None)
    return frozenset(Ask) if known is None else cast(frozenset[Ask], known(config))


def refuse_unanswerable(name: str, config: Mapping[str, Any], fields: Iterable[str]) -> None:
    """Raises ValueError if the guard can never tell one of ``fields``: every sample would be unknown."""
    answers = answers_of(name, config)
    if never := sorted(set(fields) - answers):
        raise ValueError(
            f"judge.guard={name} never answers {', '.join(never)}, which the run asks for; it answers "
            f"{', '.join(sorted(answers))}. judge.guard=ensemble adds a guard that does, e.g. rubric"
        )


def _factory(name: str) -> Any:
    module, separator, factory = GUARDS.get(name, name).partition(":")
    if not separator:
        raise ValueError(f"judge.guard={name!r} must be one of: {', '.join(sorted(GUARDS))}; or package.module:factory")
    return getattr(importlib.import_module(module), factory)
