"""The files and folders that a command will read: named before anything slow is imported, all that are missing at once.

Imports neither torch nor NeMo. Contents are left to the readers: a look here takes no time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_magic.actors.adapter_card import ADAPTER_CARD
from nemo_magic.config.errors import ConfigError
from nemo_magic.config.evaluation import evaluated_roles
from nemo_magic.config.schema import MagicConfig
from nemo_magic.config.validation import models
from nemo_magic.model_config import ModelConfig

_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_WEIGHTS_FILES = ("metadata.json", "model_config.yaml", "config.json")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Input:
    """``key`` of the configuration and the path it has. A folder has one of the files ``holds`` (patterns of
    glob); empty: it is a file.

    ``or_hub``: a name that is no path here may be one on the hub.
    """

    key: str
    path: str
    holds: tuple[str, ...] = ()
    or_hub: bool = False

    def problem(self) -> str | None:
        """What is missing, in words; None where it is there."""
        path, name = Path(self.path), f"{self.key}={self.path}"
        if path.is_dir() and self.holds:
            if any(True for pattern in self.holds for _ in path.glob(pattern)):
                return None
            return f"{name}: the folder has none of {', '.join(self.holds)}"
        if path.is_file() or (self.or_hub and self._may_be_on_hub()):
            return None
        if path.is_dir():
            return f"{name}: a folder, and it has to be a file"
        above = next(folder for folder in path.absolute().parents if folder.is_dir())
        missing = "" if above == path.absolute().parent else f" ({above} is there, and nothing of the rest)"
        return f"{name}: no such {'file or folder' if self.holds else 'file'}{missing}"

    def _may_be_on_hub(self) -> bool:
        if _HUB_NAME.fullmatch(self.path) is None:
            return False
        owner, _, name = self.path.rpartition("/")
        # What would be in a folder that is there is meant as a path.
        return bool(name) and not (owner and Path(owner).is_dir())


def inputs(cfg: MagicConfig, command: str, starts: bool = True) -> Iterator[Input]:
    """What ``nemo-magic <command>`` (train, sft, evaluate or serve) reads with a valid configuration.

    ``starts``: the weights that roles start from too, which a run that goes on does not need.
    """
    if command == "train":
        for split in ("train_files", "validation_files", "test_files"):
            yield from (Input(f"data.{split}", path) for path in getattr(cfg.data, split))
    if command == "sft":
        pools = {key: getattr(cfg.sft, key) for key in ("pool", "defender_pool", "val_pool")}
        yield from (Input(f"sft.{key}", path) for key, path in pools.items() if path is not None)
    if command == "evaluate":
        for name, task in cfg.eval.tasks_with_file.items():
            yield Input(f"eval.tasks.{name}.file", task.file or "")
        if cfg.eval.baseline is not None:
            yield Input("eval.baseline", cfg.eval.baseline, ("outcomes.json",))
        if cfg.eval.capability.results is not None:
            yield Input("eval.capability.results", cfg.eval.capability.results, ("**/results*.json",))
        for role in evaluated_roles(cfg):
            if (path := cfg.actors.of(role).hf.path) is not None:
                yield Input(f"actors.{role}.hf.path", path, ("config.json",))
    for role, model in models(cfg, command).items():
        options = cfg.actors.of(role)
        if options.is_remote or (cfg.game.self_play and command == "train" and role == "attacker"):
            continue
        yield from _tokenizer(model)
        peft = model.peft
        # The base of adapters is not in what a run saves.
        if options.restore_from_path is not None and (starts or peft.is_lora):
            yield Input(f"actors.{role}.restore_from_path", options.restore_from_path, _WEIGHTS_FILES)
        if peft.restore_from_path is not None and starts:
            yield Input("model.peft.restore_from_path", peft.restore_from_path, (ADAPTER_CARD,))
    if command in ("train", "evaluate") and cfg.judge.launch:
        yield from _guard("judge.guard_config", cfg.judge.guard_config)


def missing(cfg: MagicConfig, command: str, starts: bool = True) -> list[str]:
    """One line for everything of ``inputs`` that is not there."""
    absent = {text: one.path for one in inputs(cfg, command, starts) if (text := one.problem()) is not None}
    sandbox = Path(cfg.sandbox.folder)
    if any(sandbox in Path(path).parents for path in absent.values()):
        return [*absent, f"`nemo-magic sandbox` writes the files of sandbox.folder={sandbox}"]
    return list(absent)


def refuse_missing(cfg: MagicConfig, command: str, starts: bool = True) -> None:
    """Raise ConfigError, with a line for each, where anything of ``inputs`` is missing."""
    if problems := missing(cfg, command, starts):
        raise ConfigError("\n".join(problems))


def _guard(key: str, settings: Mapping[str, Any]) -> Iterator[Input]:
    """The models in this process and the sandbox's world, also of an ensemble's guards."""
    if settings.get("kind") == "transformers" and "path" in settings:
        yield Input(f"{key}.path", str(settings["path"]), ("config.json",), or_hub=True)
    if isinstance(settings.get("world"), str):
        yield Input(f"{key}.world", settings["world"])
    for name, inner in settings.items():
        if isinstance(inner, Mapping):
            yield from _guard(f"{key}.{name}", inner)


def _tokenizer(model: ModelConfig) -> Iterator[Input]:
    tokenizer = model.tokenizer
    if tokenizer.library == "huggingface" and tokenizer.type is not None:
        yield Input("model.tokenizer.type", tokenizer.type, _TOKENIZER_FILES, or_hub=True)
    for key in ("model", "vocab_file", "merge_file"):
        if (path := getattr(tokenizer, key)) is not None:
            yield Input(f"model.tokenizer.{key}", path)
