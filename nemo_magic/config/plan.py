"""What a configuration will do, in a few lines for people."""

from __future__ import annotations

from nemo_magic.config.schema import MagicConfig, optimizer_steps
from nemo_magic.config.validation import batch, layout, models
from nemo_magic.game.episode import Role
from nemo_magic.model_config import ModelConfig


def describe(cfg: MagicConfig, command: str = "train") -> str:
    """The plan of ``nemo-magic <command>`` for a valid configuration."""
    roles = models(cfg, command)
    world, step = layout(cfg, roles), batch(cfg, roles, command)
    lines = [
        f"{cfg.name}: nemo-magic {command} on {cfg.trainer.accelerator}, precision {cfg.trainer.precision}",
        f"world     {world.world} ranks ({cfg.trainer.num_nodes} × {cfg.trainer.devices}) = "
        f"TP {world.tp} × PP {world.pp} × DP {world.dp}",
        *(_game(cfg) if command == "train" else _sft(cfg)),
        f"update    {step.rows} rows: {step.rows_per_rank} on each data-parallel rank, as {step.microbatches} × "
        f"{step.micro_batch_size}; updates per rollout: {step.updates}",
        *(_role(cfg, role, model, command) for role, model in roles.items()),
        f"output    {cfg.exp_manager.explicit_log_dir}",
    ]
    return "\n".join(lines)


def _game(cfg: MagicConfig) -> list[str]:
    game, schedule = cfg.game, cfg.game.schedule
    first = Role(schedule.start)
    phases = " then ".join(f"{role} {schedule.phase_steps(role)}" for role in (first, first.opponent))
    return [
        f"game      {game.max_steps} steps, phases of steps: {phases}, and again; the {first} learns first",
        f"step      {game.batch_size} seeds × {game.group_size} samples",
        f"validate  {game.num_val_samples} seeds every {game.val_check_interval} steps",
        f"judge     {_judge(cfg)}",
    ]


def _sft(cfg: MagicConfig) -> list[str]:
    return [f"warm-up   {cfg.sft.role}, {cfg.sft.max_steps} steps of {cfg.sft.batch_size} rows of {cfg.sft.pool}"]


def _judge(cfg: MagicConfig) -> str:
    if cfg.judge.launch:
        return f"{cfg.judge.guard}, started with the run on {cfg.judge.server.host}"
    return (
        f"{cfg.judge.guard} at {', '.join(cfg.judge.urls)}"
        if cfg.judge.urls
        else "none: set judge.urls or judge.launch"
    )


def _role(cfg: MagicConfig, role: Role, model: ModelConfig, command: str) -> str:
    actor = cfg.actors.of(role)
    steps = cfg.sft.max_steps if command == "sft" else optimizer_steps(cfg, role)
    room = actor.length_params.prompt_room(model.encoder_seq_length)
    source = actor.restore_from_path or "random weights"
    return (
        f"{role:<10}{model.num_layers} layers × {model.hidden_size} from {source}; "
        f"{steps} updates at lr {model.optim.lr:g}; prompt ≤ {room}, response ≤ {actor.length_params.max_length} tokens"
    )
