"""The runs, checkpoints and files that nemo-to-hf reads: where the weights are, and whose."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from nemo_magic.actors.adapter_card import AdapterCard, base_digest
from nemo_magic.actors.nemo_archive import WEIGHTS
from nemo_magic.convert import nemo_file
from nemo_magic.convert.hf_to_nemo import HF, TOKENIZER
from nemo_magic.convert.merged_checkpoint import MergedCheckpoint
from nemo_magic.convert.torch_dist import METADATA, Checkpoint
from nemo_magic.game.episode import Role
from nemo_magic.hf_format.errors import ConvertError
from nemo_magic.hf_format.families import MODEL
from nemo_magic.model_config import ModelConfig
from nemo_magic.runtime.checkpoint_paths import COMMITTED, FOLDER, SFT_WEIGHTS, SNAPSHOTS, STATE, committed_checkpoints

_RUN, _POLICIES = "config.yaml", "policies"


@dataclass(frozen=True)
class Source:
    """Weights, their model, its tokenizer (a folder or a name), and the folders that may hold the config.json that the
    model came with. Of adapters the weights are those of their base, merged with them."""

    weights: Checkpoint | MergedCheckpoint
    model: ModelConfig
    tokenizer: str
    config_folders: list[Path]


def open_source(
    source: Path, role: str | None, hf: Path | None, scratch: Path, trusted: bool = False, base: Path | None = None
) -> Source:
    """Find the weights of ``source`` and everything that is needed to convert them.

    Args:
        role: whose weights, where there are several.
        hf: the original Hugging Face folder, where its config.json is in none of the usual places.
        scratch: an empty folder, to which ``.nemo`` files are unpacked.
        trusted: pickles among the weights may run code.
        base: where the base of adapters is now; by default where it was when they were made.

    Raises:
        ConvertError: it cannot be read, or it is not clear whose weights are meant or of which model, or they are
            adapters on another base.
    """
    if not source.exists():
        raise ConvertError(f"{source}: no such file or folder")
    if source.is_file():
        model = nemo_file.unpack(source, scratch)
        inside = scratch / TOKENIZER
        tokenizer = str(inside) if inside.is_dir() else _tokenizer_name(model, str(source))
        weights = Checkpoint(scratch / WEIGHTS, trusted=trusted)
        return Source(weights, model, tokenizer, _config_folders(hf, scratch / HF))
    if (source / MODEL).is_file() and (source / METADATA).is_file():
        keys = yaml.safe_load((source / MODEL).read_text(encoding="utf-8"))
        model = nemo_file.model_from(keys, str(source / MODEL))
        weights = Checkpoint(source, trusted=trusted)
        return Source(weights, model, str(source / TOKENIZER), _config_folders(hf, source / HF))
    return _source_of_run(source, role, hf, scratch, trusted, base)


def _source_of_run(
    source: Path, role: str | None, hf: Path | None, scratch: Path, trusted: bool, base: Path | None
) -> Source:
    run = next((folder for folder in (source, *source.absolute().parents) if (folder / _RUN).is_file()), None)
    card = AdapterCard.read(source)
    if run is None and card is not None:
        # What hf-to-nemo made of PEFT's adapters: their model is the base's.
        below = open_source(base or Path(card.base), role, hf, scratch, trusted)
        merged = _merged(Checkpoint(source, trusted=trusted), card, below.model, scratch, trusted, base)
        return replace(below, weights=merged)
    if run is None:
        raise ConvertError(
            f"{source}: neither it nor a folder above it has {_RUN}, which says what model the weights are of; give a "
            "folder of a run, or what hf-to-nemo wrote"
        )
    cfg = yaml.safe_load((run / _RUN).read_text(encoding="utf-8"))
    folder = _weights_in(source)
    if folder.name == _POLICIES:
        prefixes = Checkpoint(folder, trusted=trusted).prefixes
        policy = _policy_name(folder, [prefix.removesuffix(".") for prefix in prefixes], role)
        weights = Checkpoint(folder, f"{policy}.", trusted)
        saved = json.loads((folder.parent / STATE).read_text(encoding="utf-8")).get("adapters", {}).get(policy)
        card = None if saved is None else AdapterCard.from_dict(saved)
    else:
        policy = _owner(folder, cfg, role)
        weights, card = Checkpoint(folder, trusted=trusted), AdapterCard.read(folder)
    # The single policy of self-play has the defender's model.
    role = policy if policy in tuple(Role) else "defender"
    actor: Mapping[str, Any] = cfg["actors"][role]
    own = actor.get("model") or {}
    model = nemo_file.model_from(cfg["model"] | {"tokenizer": cfg["model"]["tokenizer"] | own.get("tokenizer", {})},
                                 str(run / _RUN), own)  # fmt: skip
    tokenizer = _tokenizer_name(model, str(run / _RUN))
    # A warm-up starts from a converted folder, a game from a warm-up; both keep the tokenizer of that folder.
    folders = [Path(path) / HF for path in (actor.get("restore_from_path"), Path(tokenizer).parent) if path]
    checkpoint: Checkpoint | MergedCheckpoint = weights
    if card is not None:
        checkpoint = _merged(weights, card, model, scratch, trusted, base)
    return Source(checkpoint, model, tokenizer, _config_folders(hf, *folders))


def _merged(
    adapters: Checkpoint, card: AdapterCard, model: ModelConfig, scratch: Path, trusted: bool, base: Path | None
) -> MergedCheckpoint:
    path = base or Path(card.base)
    if not path.exists():
        raise ConvertError(f"{adapters.folder}: the base of these adapters was {path}: name where it is with --base")
    if (digest := base_digest(path)) != card.digest:
        raise ConvertError(
            f"{adapters.folder}: these adapters stand on {card.base} ({card.digest}), and {path} holds other weights "
            f"({digest}): name their base with --base"
        )
    folder = path
    if path.is_file():
        nemo_file.unpack(path, scratch)
        folder = scratch / WEIGHTS
    return MergedCheckpoint(Checkpoint(folder, trusted=trusted), adapters, card, model)


def _weights_in(source: Path) -> Path:
    """The Megatron checkpoint of ``source``: a run, one of its checkpoints, or the Megatron checkpoint itself."""
    if (source / METADATA).is_file():
        return source
    if (source / _POLICIES).is_dir():
        if not (source / COMMITTED).is_file():
            raise ConvertError(f"{source} has no {COMMITTED}: it was not finished, or is damaged")
        return source / _POLICIES
    if (source / SFT_WEIGHTS / METADATA).is_file():
        return source / SFT_WEIGHTS
    newest = committed_checkpoints(source / FOLDER)
    if newest:
        return newest[0] / _POLICIES
    raise ConvertError(
        f"{source} holds no weights: there is neither {METADATA}, nor {_POLICIES}/ of a checkpoint, nor "
        f"{SFT_WEIGHTS}/, nor a finished checkpoint in {FOLDER}/"
    )


def _policy_name(folder: Path, policies: list[str], role: str | None) -> str:
    if len(policies) == 1 and (role is None or policies[0] not in tuple(Role)):
        return policies[0]
    if role is None:
        raise ConvertError(f"{folder} holds {' and '.join(policies)}: say which with --role")
    if role not in policies:
        raise ConvertError(f"{folder} holds {' and '.join(policies)}, and no {role}")
    return role


def _owner(folder: Path, cfg: Mapping[str, Any], role: str | None) -> str:
    """The role of these weights, by the folder of a snapshot or the configuration of a warm-up."""
    path = folder.absolute()
    owner = path.parent.name if path.parent.parent.name == SNAPSHOTS else str(cfg["sft"]["role"])
    if owner in tuple(Role) and role is not None and role != owner:
        raise ConvertError(f"{folder} is the {owner}'s, and not the {role}'s")
    return owner


def _config_folders(hf: Path | None, *folders: Path) -> list[Path]:
    if hf is not None:
        return [hf]
    return [folder for folder in dict.fromkeys(folders) if (folder / "config.json").is_file()]


def _tokenizer_name(model: ModelConfig, where: str) -> str:
    if model.tokenizer.library != "huggingface" or model.tokenizer.type is None:
        raise ConvertError(
            f"{where}: model.tokenizer.library={model.tokenizer.library}, type={model.tokenizer.type}: only tokenizers "
            "of Hugging Face can be written for it"
        )
    return model.tokenizer.type
