"""Whether a run begins or goes on, decided before anything is built. Imports neither torch nor NeMo."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nemo_magic.config import ConfigError, MagicConfig
from nemo_magic.config.secrets import masked
from nemo_magic.runtime.checkpoint_paths import COMMITTED, FOLDER, STATE, committed_checkpoints, is_checkpoint

_LAYOUT = (
    "name",
    "trainer.",
    "backend",
    "model.tensor_model_parallel_size",
    "model.pipeline_model_parallel_size",
    "model.sequence_parallel",
    "model.vocab_size",
    "model.micro_batch_size",
    "model.activations_checkpoint",
)
_BESIDE_THE_GAME = (
    *_LAYOUT,
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
"""Keys that a resumed game may set otherwise: what they change is not what the game is."""
_OF_A_WARM_UP = ("seed", "sft.", "model.", "game.prompts.", "game.max_turns")
_BESIDE_THE_WARM_UP = (*_LAYOUT, "sft.val_", "sft.num_val_samples")
"""Keys that a resumed warm-up may not set otherwise, with those of its role; and those of them that it may."""
_KIND = {"train": "game", "sft": "warm-up"}


@dataclass(frozen=True)
class Resume:
    """``checkpoint``: a folder to go on from, None for a new run. ``newest``: it is the newest committed one of the
    run's own folder, which may turn out to be damaged."""

    checkpoint: Path | None = None
    newest: bool = False


def decide(cfg: MagicConfig, source: str, command: str) -> Resume:
    """``auto``: the newest checkpoint of the run's folder, if there is one; ``never``: a new run; else a checkpoint's
    folder, whatever its settings. ``command``: train or sft.

    Raises:
        ConfigError: there is no such checkpoint, it is of the other command or of another role's warm-up, or the run's
            folder holds another run.
    """
    if source == "never":
        return Resume()
    own = committed_checkpoints(Path(cfg.exp_manager.explicit_log_dir) / FOLDER)
    if source != "auto":
        path = Path(source).resolve()
        if not (path / COMMITTED).is_file() or not is_checkpoint(path):
            raise ConfigError(
                f"--resume {source}: no committed checkpoint there; give auto, never, or a folder such as "
                f"{cfg.exp_manager.explicit_log_dir}/checkpoints/step_000015"
            )
        if own and path.parent != own[0].resolve().parent:
            raise ConfigError(
                f"--resume {source}: {cfg.exp_manager.explicit_log_dir} has checkpoints of its own, up to "
                f"{own[0].name}: go on from there (--resume auto), or give this run another name (name=...)"
            )
        try:
            state = _saved_state(path)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"--resume {source}: its {STATE} cannot be read ({error})") from error
        _refuse_another_kind(path, state, cfg, command)
        return Resume(path)
    if not own:
        return Resume()
    try:
        state = _saved_state(own[0])
    except (OSError, ValueError, KeyError):
        return Resume(own[0], newest=True)  # damaged; its turn comes when checksums are read
    _refuse_another_kind(own[0], state, cfg, command)
    if differing := changed(state["config"], cfg, command):
        listed = "\n".join(f"  {key}: {before!r} before, {now!r} now" for key, before, now in differing[:12])
        raise ConfigError(
            f"{cfg.exp_manager.explicit_log_dir} holds a run with other settings:\n{listed}\n"
            "give this one another name (name=...), set the old one aside (--resume never), or go on from a checkpoint "
            f"of it all the same (--resume {own[0]})"
        )
    return Resume(own[0], newest=True)


def changed(saved: Mapping[str, Any], cfg: MagicConfig, command: str) -> list[tuple[str, Any, Any]]:
    """(dotted key, saved value, present value) of settings that make ``cfg`` another run of ``command`` than the one
    whose configuration was ``saved``."""
    return list(
        differences(_filled(saved, asdict(MagicConfig())), masked(cfg), may_differ(command, cfg.sft.model_role))
    )


def _saved_state(checkpoint: Path) -> Mapping[str, Any]:
    """What a checkpoint's run was, as far as it is decided on; raises ValueError or KeyError where it is damaged."""
    state: Mapping[str, Any] = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    return {"command": state.get("command", "train"), "config": state["config"]}


def _refuse_another_kind(checkpoint: Path, state: Mapping[str, Any], cfg: MagicConfig, command: str) -> None:
    if state["command"] != command:
        raise ConfigError(
            f"{checkpoint} is of a {_KIND[state['command']]}, and this is a {_KIND[command]}: choose another name "
            "(name=...), or set it aside (--resume never)"
        )
    if command == "sft" and (role := state["config"]["sft"]["role"]) != cfg.sft.role:
        raise ConfigError(
            f"{checkpoint} is of sft.role={role}, and this is sft.role={cfg.sft.role}: choose another name (name=...), "
            "or set it aside (--resume never)"
        )


def _filled(saved: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """``saved``, with the defaults of settings that did not exist when it was saved."""
    filled = {**defaults, **saved}
    for key in saved.keys() & defaults.keys():
        if isinstance(saved[key], Mapping) and isinstance(defaults[key], Mapping):
            filled[key] = _filled(saved[key], defaults[key])
    return filled


def may_differ(command: str, role: str = "") -> Callable[[str], bool]:
    """Whether a resumed run of ``command`` may set a key otherwise; ``role``: whose warm-up it is."""
    if command == "train":
        return lambda key: key.startswith(_BESIDE_THE_GAME)
    learned = (*_OF_A_WARM_UP, f"actors.{role}.model.", f"actors.{role}.restore_from_path")
    return lambda key: not key.startswith(learned) or key.startswith(_BESIDE_THE_WARM_UP)


def differences(
    saved: Mapping[str, Any], now: Mapping[str, Any], may_differ: Callable[[str], bool], above: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, saved value, present value) of settings that are not the same, and may not differ."""
    for key in sorted(saved.keys() | now.keys()):
        path, before, after = f"{above}{key}", saved.get(key), now.get(key)
        if before == after:
            continue
        # A role's own keys of its model may be there on one side only.
        before, after = ({} if one is None and isinstance(other, Mapping) else one
                         for one, other in ((before, after), (after, before)))  # fmt: skip
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differences(before, after, may_differ, f"{path}.")
        elif not may_differ(path):
            yield path, before, after


def start_weights(cfg: MagicConfig, checkpoint: Path | None) -> dict[str, Path]:
    """Policy name → the weights that the run began with, where it goes on from a checkpoint."""
    if checkpoint is None:
        return {}
    starts = checkpoint.parent.parent.glob("snapshots/*/start")
    return {path.parent.name: path for path in starts if (path / "metadata.json").is_file()}
