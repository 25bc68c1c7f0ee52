"""Hydra composes files and overrides; the schema says which keys exist; the result is a checked ``MagicConfig``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_magic.config.errors import ConfigError, concise
from nemo_magic.config.keys import is_known, unknown_key_message, unknown_keys
from nemo_magic.config.locate_files import with_files
from nemo_magic.config.schema import MagicConfig
from nemo_magic.config.secrets import mark_environment
from nemo_magic.config.text_keys import SCHEME, TextKeepingSource, marked_override, with_types
from nemo_magic.config.validation import validate
from nemo_magic.data.errors import DataError
from nemo_magic.judge.guards import is_own, search_modules


def conf_dir() -> Path:
    """The configurations that come with the package: beside it in a checkout, inside it when installed."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parent / "conf"
    # site-packages may hold somebody else's conf/; a checkout is known by its pyproject.toml.
    if (package.parent / "pyproject.toml").is_file() and (checkout / "magic.yaml").is_file():
        return checkout
    if (package / "conf" / "magic.yaml").is_file():
        return package / "conf"
    raise ConfigError(f"conf/ is neither in {package} nor beside it: the installation is incomplete")


def compose(
    config_name: str, overrides: Sequence[str] = (), config_dir: str | None = None, command: str = "train"
) -> MagicConfig:
    """Compose and check a configuration.

    Args:
        config_name: a primary configuration, e.g. ``magic_sandbox``.
        overrides: as Hydra writes them: ``game.schedule.freq=5``, ``game=paper``, ``+cluster=slurm``. Every key of the
            schema can be set, whether or not a file mentions it.
        config_dir: a folder of the user's own, searched before the package's; its groups add to the package's. Where
            ``config_name`` is the package's, so are all files of its names. The module of a guard of the user's own
            (``judge.guard=module:Class``) is looked for there as well, and in the working directory.
        command: what will run. ``train``, ``sft``, ``evaluate``, ``serve`` and ``plan`` are checked as a whole, other
            commands by types only. For ``plan`` and ``capability`` files and servers may stay open (``???``).

    Raises:
        ConfigError: for anything that cannot be run.
    """
    folders_of_user = [] if config_dir is None else [Path(config_dir).expanduser().resolve()]
    if not all(folder.is_dir() for folder in folders_of_user):
        raise ConfigError(f"--config-dir {config_dir}: no such folder")
    folders = _primary_first(config_name, [*folders_of_user, conf_dir()])
    try:
        hydra_overrides = _parse(overrides, _groups(folders))
        with _hydra_at(folders[0]):
            search = [f'hydra.searchpath=["{SCHEME}://{folders[-1]}"]'] if len(folders) > 1 else []
            composed = hydra.compose(config_name, [*search, *hydra_overrides])
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"{config_name}: {concise(error)}") from error
    cfg = _typed(composed, complete=command not in ("plan", "capability"), unread=_unread(composed, command))
    if command == "evaluate":
        try:
            cfg = replace(cfg, eval=with_files(cfg.eval))
        except DataError as error:
            raise ConfigError(str(error)) from error
    if is_own(cfg.judge.guard, cfg.judge.guard_config):
        search_modules([*folders_of_user, Path.cwd()])
    if command in ("train", "sft", "plan", "evaluate", "serve"):
        validate(cfg, command)
    return cfg


@contextmanager
def _hydra_at(folder: Path) -> Iterator[None]:
    """Hydra with ``folder`` as its main one. Its own ``initialize_config_dir`` knows files only as it reads them."""
    SourcesRegistry.instance().register(TextKeepingSource)
    with hydra.initialize_config_dir(str(folder), version_base="1.3"):
        GlobalHydra.instance().clear()
        Hydra.create_main_hydra2("app", create_config_search_path(f"{SCHEME}://{folder}"))
        yield


def _primary_first(config_name: str, folders: Sequence[Path]) -> list[Path]:
    """Hydra looks for the primary file in one folder only, and in that folder first for everything else."""
    name = f"{config_name.removesuffix('.yaml')}.yaml"
    having = [folder for folder in folders if (folder / name).is_file()]
    if not having:
        known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
        looked = " or ".join(str(folder) for folder in folders)
        raise ConfigError(f"--config-name {config_name}: no such file in {looked}; there are: {', '.join(known)}")
    first, others = having[0], [folder for folder in folders if folder != having[0]]
    for folder in others if first != folders[0] else []:
        hidden = sorted(str(path) for path in folder.rglob("*.yaml") if (first / path.relative_to(folder)).is_file())
        if hidden:
            raise ConfigError(
                f"--config-name {config_name} is the package's, and so would be {', '.join(hidden)}: give files of "
                "your own other names, or a primary file of your own (defaults: [magic, _self_]) beside them"
            )
    return [first, *others]


def _groups(folders: Sequence[Path]) -> set[str]:
    """Hydra's groups: the folders below conf/, e.g. ``game``."""
    return {path.parent.relative_to(folder).as_posix() for folder in folders for path in folder.rglob("*.yaml")}


def _parse(overrides: Sequence[str], groups: set[str]) -> list[str]:
    """Overrides in the form that Hydra takes. Raises ConfigError for one whose key or group does not exist.

    Hydra wants a ``+`` where no file mentions a key. Here the schema says which keys there are: each of them can be
    set without ``+``, and ``+`` does not make a key valid.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    unknown = [o.key_or_group for o in parsed if o.key_or_group not in groups and not is_known(o.key_or_group)]
    if unknown:
        raise ConfigError("\n".join(unknown_key_message(key) for key in unknown))
    for override in parsed:
        if override.is_sweep_override():
            raise ConfigError(
                f"{override.input_line}: a run takes one value; write a list as [a,b], start a run per value"
            )
    return [
        _forced(override) if override.key_or_group not in groups else str(override.input_line) for override in parsed
    ]


def _forced(override: Override) -> str:
    line = str(override.input_line)
    return line if override.is_delete() else f"++{marked_override(line.lstrip('+'))}"


def _unread(composed: DictConfig, command: str) -> tuple[str, ...]:
    """Prefixes of keys that a command never reads: a warm-up has no seeds, no judge and one role's weights."""
    if command == "evaluate":
        # An evaluation can have the configuration of a game; without an attacker it needs no weights of one.
        tasks = OmegaConf.select(composed, "eval.tasks", default={}).values()
        attacked = any(task.get("attacker") == "rewrite" for task in tasks)
        return ("data.", "sft.") if attacked else ("data.", "sft.", "actors.attacker.")
    if command == "serve":
        role = OmegaConf.select(composed, "serve.role", default=MagicConfig().serve.role)
        return ("data.", "sft.", "judge.", "eval.", "actors.defender." if role == "attacker" else "actors.attacker.")
    if command != "sft":
        return ()
    role = OmegaConf.select(composed, "sft.role", default=MagicConfig().sft.role)
    return ("data.", "judge.", "actors.defender." if role == "attacker" else "actors.attacker.")


def _typed(composed: DictConfig, complete: bool = True, unread: tuple[str, ...] = ()) -> MagicConfig:
    raw: Any = with_types(OmegaConf.to_container(composed, resolve=False), MagicConfig)
    unknown = unknown_keys(raw)
    if unknown:
        raise ConfigError("\n".join(unknown_key_message(path) for path in unknown))
    if complete and (missing := sorted(key for key in _missing(raw) if not key.startswith(unread))):
        # Checked before the merge: there ??? keeps the schema's default.
        raise ConfigError("\n".join(f"{path} has to be given" for path in missing))
    try:
        merged = OmegaConf.merge(_schema(), raw)
        cfg = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(concise(error)) from error
    assert isinstance(cfg, MagicConfig)
    written: Any = OmegaConf.to_container(merged, resolve=False)
    mark_environment(cfg, written)
    return cfg


@cache
def _schema() -> DictConfig:
    """What a merge copies: made once, since it takes longer than the merge."""
    schema: DictConfig = OmegaConf.structured(MagicConfig)
    return schema


def _missing(config: Mapping[Any, Any], above: str = "") -> Iterator[str]:
    for key, value in config.items():
        if value == "???":
            yield f"{above}{key}"
        elif isinstance(value, Mapping):
            yield from _missing(value, f"{above}{key}.")
