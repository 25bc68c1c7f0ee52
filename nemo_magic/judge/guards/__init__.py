"""The guards, by name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
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
    name, for a module or factory that is not there, and for settings that the guard does not take.
    """
    try:
        return cast(Guard, _factory(name)(**config))
    except TypeError as error:
        raise ValueError(f"judge.guard_config={dict(config)} does not fit judge.guard={name!r}: {error}") from error


def is_own(name: str, config: Mapping[str, Any]) -> bool:
    """Whether the guard, or a member of an ensemble, is a class in a module of the user's own."""
    if name in GUARDS:
        members = config.get("guards") if name == "ensemble" else None
        settings = members.items() if isinstance(members, Mapping) else ()
        return any(is_own(str(own.get("guard", member)), own) for member, own in settings if isinstance(own, Mapping))
    return ":" in name


def search_modules(folders: Iterable[Path]) -> None:
    """Look for guards' modules in ``folders`` too, after wherever Python looks: no file there hides an installed
    module. The server that a run starts looks where the run does."""
    sys.path += [str(folder) for folder in folders if str(folder) not in sys.path]


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
    try:
        imported = importlib.import_module(module)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name in (module, module.partition(".")[0]):
            raise ValueError(
                f"judge.guard={name!r}: there is no module {error.name} in {', '.join(_own_folders())}, nor is one "
                "installed; put it into the folder of -cd or into the working directory"
            ) from error
        raise ValueError(f"judge.guard={name!r}: {module} cannot be imported: {error}") from error
    if not hasattr(imported, factory):
        raise ValueError(f"judge.guard={name!r}: {imported.__file__ or next(iter(imported.__path__))} has no {factory}")
    return getattr(imported, factory)


def _own_folders() -> list[str]:
    """Where Python looks for modules, but for its own library and what is installed."""
    own = (str(Path(folder).resolve()) for folder in sys.path)
    return [folder for folder in own if not folder.startswith((sys.prefix, sys.base_prefix))]
