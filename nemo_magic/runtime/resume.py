"""Whether a run begins or goes on, decided before anything is built. Imports neither torch nor NeMo."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nemo_magic.config import ConfigError, MagicConfig
from nemo_magic.config.secrets import masked
from nemo_magic.runtime.checkpoint_paths import COMMITTED, FOLDER, STATE, committed_checkpoints

MAY_DIFFER = (
    "name",
    "trainer.",
    "backend",
    "model.tensor_model_parallel_size",
    "model.pipeline_model_parallel_size",
    "model.sequence_parallel",
    "model.vocab_size",
    "model.micro_batch_size",
    "model.activations_checkpoint",
    "model.peft.restore_from_path",
    "actors.share_base",
    "actors.attacker.model.peft.restore_from_path",
    "actors.defender.model.peft.restore_from_path",
    "actors.attacker.restore_from_path",
    "actors.defender.restore_from_path",
    "actors.attacker.trust_weights",
    "actors.defender.trust_weights",
    "actors.attacker.remote.",
    "actors.defender.remote.",
    "generation.",
    "game.max_steps",
    "game.max_epochs",
    "game.early_stop.",
    "game.val_check_interval",
    "game.num_val_samples",
    "game.crossplay.",
    "game.pool.max_host_gib",
    "game.strategy_sweep",
    "game.attack_prefetch_steps",
    "judge.",
    "alarms",
    "sft.",
    "eval",
    "analysis",
    "serve",
    "exp_manager.",
    "hardware.",
    "plan.",
)
"""Keys that a resumed run may set otherwise: what they change is not what the game is."""


@dataclass(frozen=True)
class Resume:
    """``checkpoint``: a folder to go on from, None for a new game. ``newest``: it is the newest committed one of the
    run's own folder, which may turn out to be damaged."""

    checkpoint: Path | None = None
    newest: bool = False


def decide(cfg: MagicConfig, source: str) -> Resume:
    """``auto``: the newest checkpoint of the run's folder, if there is one; ``never``: a new game; else a checkpoint's
    folder, whatever its settings.

    Raises:
        ConfigError: there is no such checkpoint, or the run's folder holds a run with other settings.
    """
    if source == "never":
        return Resume()
    if source != "auto":
        path = Path(source)
        if not (path / COMMITTED).is_file():
            raise ConfigError(
                f"--resume {source}: no committed checkpoint there; give auto, never, or a folder such as "
                f"{cfg.exp_manager.explicit_log_dir}/checkpoints/step_000015"
            )
        try:
            _saved_config(path)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"--resume {source}: its {STATE} cannot be read ({error})") from error
        return Resume(path)
    paths = committed_checkpoints(Path(cfg.exp_manager.explicit_log_dir) / FOLDER)
    if not paths:
        return Resume()
    try:
        saved = _saved_config(paths[0])
    except (OSError, ValueError, KeyError):
        return Resume(paths[0], newest=True)  # damaged; its turn comes when checksums are read
    differing = list(differences(_filled(saved, asdict(MagicConfig())), masked(cfg)))
    if differing:
        listed = "\n".join(f"  {key}: {before!r} before, {now!r} now" for key, before, now in differing[:12])
        raise ConfigError(
            f"{cfg.exp_manager.explicit_log_dir} holds a run with other settings:\n{listed}\n"
            "give this one another name (name=...), set the old one aside (--resume never), or go on from a checkpoint "
            f"of it all the same (--resume {paths[0]})"
        )
    return Resume(paths[0], newest=True)


def _saved_config(checkpoint: Path) -> Mapping[str, Any]:
    config: Mapping[str, Any] = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["config"]
    return config


def _filled(saved: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """``saved``, with the defaults of settings that did not exist when it was saved."""
    filled = {**defaults, **saved}
    for key in saved.keys() & defaults.keys():
        if isinstance(saved[key], Mapping) and isinstance(defaults[key], Mapping):
            filled[key] = _filled(saved[key], defaults[key])
    return filled


def differences(saved: Mapping[str, Any], now: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, saved value, present value) of settings that make it another game."""
    for key in sorted(saved.keys() | now.keys()):
        path, before, after = f"{above}{key}", saved.get(key), now.get(key)
        if before == after or any(path == may or path.startswith(may) for may in MAY_DIFFER):
            continue
        # A role's own keys of its model may be there on one side only.
        before, after = ({} if one is None and isinstance(other, Mapping) else one
                         for one, other in ((before, after), (after, before)))  # fmt: skip
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differences(before, after, f"{path}.")
        else:
            yield path, before, after


def start_weights(cfg: MagicConfig, checkpoint: Path | None) -> dict[str, Path]:
    """Policy name → the weights that the run began with, where it goes on from a checkpoint."""
    if checkpoint is None:
        return {}
    starts = checkpoint.parent.parent.glob("snapshots/*/start")
    return {path.parent.name: path for path in starts if (path / "metadata.json").is_file()}
