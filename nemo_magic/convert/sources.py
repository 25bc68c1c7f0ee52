"""What weights there are, and whose: the runs, checkpoints and files that nemo-to-hf reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nemo_magic.convert import nemo_file
from nemo_magic.convert.errors import ConvertError
from nemo_magic.convert.families import MODEL
from nemo_magic.convert.hf_to_nemo import HF, TOKENIZER
from nemo_magic.convert.torch_dist import METADATA, Checkpoint
from nemo_magic.model_config import ModelConfig
from nemo_magic.runtime.checkpoint_paths import COMMITTED, FOLDER, committed_checkpoints

_RUN, _PLAYERS, _SNAPSHOTS, _WEIGHTS = "config.yaml", "players", "snapshots", "weights"
ROLES = ("attacker", "defender")


@dataclass(frozen=True)
class Source:
    """Weights, the model they are of, and what is known of its life at Hugging Face.

    ``tokenizer``: a folder or a name. ``published``: folders that may hold the config.json it came with.
    """

    weights: Checkpoint
    model: ModelConfig
    tokenizer: str
    published: list[Path]


def open_source(source: Path, role: str | None, hf: Path | None, scratch: Path) -> Source:
    """Find out what ``source`` is.

    Args:
        role: whose weights, where there are several.
        hf: the original Hugging Face folder, for a config.json that is not found by itself.
        scratch: an empty folder, to which ``.nemo`` files are unpacked.

    Raises:
        ConvertError: when it is nothing that can be read, or does not say whose weights or of which model.
    """
    if not source.exists():
        raise ConvertError(f"{source}: no such file or folder")
    if source.is_file():
        model = nemo_file.unpack(source, scratch)
        inside = scratch / TOKENIZER
        tokenizer = str(inside) if inside.is_dir() else _named(model, str(source))
        return Source(Checkpoint(scratch / nemo_file.WEIGHTS), model, tokenizer, _published(hf, scratch / HF))
    if (source / MODEL).is_file() and (source / METADATA).is_file():
        keys = yaml.safe_load((source / MODEL).read_text(encoding="utf-8"))
        model = nemo_file.model_from(keys, str(source / MODEL))
        return Source(Checkpoint(source), model, str(source / TOKENIZER), _published(hf, source / HF))
    return _of_a_run(source, role, hf)


def _of_a_run(source: Path, role: str | None, hf: Path | None) -> Source:
    run = next((folder for folder in (source, *source.absolute().parents) if (folder / _RUN).is_file()), None)
    if run is None:
        raise ConvertError(
            f"{source}: neither it nor a folder above it has {_RUN}, which says what model the weights are of; give a "
            "folder of a run, or what hf-to-nemo wrote"
        )
    cfg = yaml.safe_load((run / _RUN).read_text(encoding="utf-8"))
    folder = _weights_in(source)
    if folder.name == _PLAYERS:
        prefixes = Checkpoint(folder).prefixes
        player = _player(folder, [prefix.removesuffix(".") for prefix in prefixes], role)
        weights = Checkpoint(folder, f"{player}.")
    else:
        player = _owner(folder, cfg, role)
        weights = Checkpoint(folder)
    # The one player of self-play has the defender's model.
    role = player if player in ROLES else "defender"
    actor: Mapping[str, Any] = cfg["actors"][role]
    own = actor.get("model") or {}
    model = nemo_file.model_from(cfg["model"] | {"tokenizer": cfg["model"]["tokenizer"] | own.get("tokenizer", {})},
                                 str(run / _RUN), own)  # fmt: skip
    tokenizer = _named(model, str(run / _RUN))
    # A warm-up starts from a converted folder, a game from a warm-up; the tokenizer is that of the folder all along.
    places = [Path(path) / HF for path in (actor.get("restore_from_path"), Path(tokenizer).parent) if path]
    return Source(weights, model, tokenizer, _published(hf, *places))


def _weights_in(source: Path) -> Path:
    """The folder of a Megatron checkpoint that is meant by a run, one of its checkpoints, or itself."""
    if (source / METADATA).is_file():
        return source
    if (source / _PLAYERS).is_dir():
        if not (source / COMMITTED).is_file():
            raise ConvertError(f"{source} has no {COMMITTED}: it was not finished, or is damaged")
        return source / _PLAYERS
    if (source / _WEIGHTS / METADATA).is_file():
        return source / _WEIGHTS
    newest = committed_checkpoints(source / FOLDER)
    if newest:
        return newest[0] / _PLAYERS
    raise ConvertError(
        f"{source} holds no weights: there is neither {METADATA}, nor {_PLAYERS}/ of a checkpoint, nor {_WEIGHTS}/, "
        f"nor a finished checkpoint in {FOLDER}/"
    )


def _player(folder: Path, players: list[str], role: str | None) -> str:
    if len(players) == 1 and (role is None or players[0] not in ROLES):
        return players[0]
    if role is None:
        raise ConvertError(f"{folder} holds {' and '.join(players)}: say which with --role")
    if role not in players:
        raise ConvertError(f"{folder} holds {' and '.join(players)}, and no {role}")
    return role


def _owner(folder: Path, cfg: Mapping[str, Any], role: str | None) -> str:
    """Whose weights these are: a snapshot's folder says it, and so does the configuration of a warm-up."""
    path = folder.absolute()
    owner = path.parent.name if path.parent.parent.name == _SNAPSHOTS else str(cfg["sft"]["role"])
    if owner in ROLES and role is not None and role != owner:
        raise ConvertError(f"{folder} is the {owner}'s, and not the {role}'s")
    return owner


def _published(given: Path | None, *places: Path) -> list[Path]:
    if given is not None:
        return [given]
    return [place for place in dict.fromkeys(places) if (place / "config.json").is_file()]


def _named(model: ModelConfig, where: str) -> str:
    if model.tokenizer.library != "huggingface" or model.tokenizer.type is None:
        raise ConvertError(
            f"{where}: model.tokenizer.library={model.tokenizer.library}, type={model.tokenizer.type}: only tokenizers "
            "of Hugging Face can be written for it"
        )
    return model.tokenizer.type
