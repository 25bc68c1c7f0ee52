"""A few lines that describe what a run will do."""

from __future__ import annotations

from nemo_magic.config.schema import GameConfig, MagicConfig, optimizer_steps
from nemo_magic.config.validation import batch, layout, models
from nemo_magic.game.episode import Role
from nemo_magic.game.schedule import ScheduleConfig
from nemo_magic.model_config import ModelConfig


def describe(cfg: MagicConfig, command: str = "train") -> str:
    """What ``nemo-magic <command>`` will do with a valid configuration, line by line."""
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
    game = cfg.game
    epochs = "" if game.max_epochs is None else f", at most {game.max_epochs} × the training seeds"
    return [
        f"game      {game.max_steps} steps{epochs}{_early_stop(game)}; {_phases(game.schedule)}",
        f"step      {game.batch_size} seeds × {game.group_size} samples, against {_opponents(game)}",
        f"validate  {game.num_val_samples} seeds every {game.val_check_interval} steps",
        f"judge     {_judge(cfg)}",
    ]


def _phases(schedule: ScheduleConfig) -> str:
    learners, switch = schedule.learners(), schedule.metric
    who = f"the {learners[0]} learns first" if len(learners) > 1 else f"only the {learners[0]} learns"
    if schedule.by == "steps":
        phases = " then ".join(f"{role} {schedule.phase_steps(role)}" for role in learners)
        return f"phases of steps: {phases}, and again; {who}"
    bounds = {Role.DEFENDER: f"≤ {switch.low:g}", Role.ATTACKER: f"≥ {switch.high:g}"}
    ends = ", ".join(f"{role} until {bounds[role]}" for role in learners)
    return (
        f"phases of {switch.min_steps} to {switch.max_steps} steps by the mean of the last {switch.window} "
        f"{switch.name}: {ends}; {who}"
    )


def _opponents(game: GameConfig) -> str:
    pool = game.pool
    if pool.draw == "latest":
        return "the opponent as it is"
    kinds = ", ".join(f"{share:g} {name}" for name, share in pool.shares().items() if share)
    return f"{pool.opponents} of the opponent's selves a phase, {kinds if pool.draw == 'mixture' else pool.draw}"


def _early_stop(game: GameConfig) -> str:
    stop = game.early_stop
    at = [f"at step {stop.at_step}"] if stop.at_step is not None and stop.at_step < game.max_steps else []
    if stop.metric is not None:
        bound = f"below {stop.below:g}" if stop.below is not None else f"above {stop.above:g}"
        at.append(f"when {stop.metric} is {bound}" + (f" {stop.patience} times" if stop.patience > 1 else ""))
    return f", early stop {' or '.join(at)}" if at else ""


def _sft(cfg: MagicConfig) -> list[str]:
    return [f"warm-up   {cfg.sft.role}, {cfg.sft.max_steps} steps of {cfg.sft.batch_size} rows of {cfg.sft.pool}"]


def _judge(cfg: MagicConfig) -> str:
    judge = cfg.judge
    if judge.launch:
        return f"{judge.guard}, started with the run on {judge.server.host}"
    if not judge.urls:
        return "none: set judge.urls or judge.launch"
    # The judge is another process: its own configuration names its guard.
    guard = (
        "any guard, all the same one (judge.expect is null)" if judge.expect is None else f"has to be {judge.expect}"
    )
    return f"at {', '.join(judge.urls)}: {guard}"


def _updates(cfg: MagicConfig, role: Role) -> str:
    game = cfg.game
    steps = optimizer_steps(cfg, role, min(game.max_steps, game.early_stop.at_step or game.max_steps))
    exact = game.schedule.by == "steps" and game.max_epochs is None and game.early_stop.metric is None
    return f"{steps} updates" if exact or not steps else f"at most {steps} updates"


def _role(cfg: MagicConfig, role: Role, model: ModelConfig, command: str) -> str:
    actor = cfg.actors.of(role)
    limits = f"response ≤ {actor.length_params.max_length} tokens"
    if actor.is_remote and command != "sft":
        return f"{role:<10}{actor.remote.model} at {', '.join(actor.remote.urls)}: a server plays it; {limits}"
    updates = f"{cfg.sft.max_steps} updates" if command == "sft" else _updates(cfg, role)
    room = actor.length_params.prompt_room(model.encoder_seq_length)
    source = actor.restore_from_path or "random weights"
    if model.peft.is_lora:
        start = f" from {model.peft.restore_from_path}" if model.peft.restore_from_path else ""
        source += f", frozen, with adapters of dimension {model.peft.lora_tuning.adapter_dim}{start}"
    experts = f", {model.moe_router_topk} of {model.num_moe_experts} experts," if model.num_moe_experts else ""
    return (
        f"{role:<10}{model.num_layers} layers × {model.hidden_size}{experts} from {source}; "
        f"{updates} at lr {model.optim.lr:g}; prompt ≤ {room}, {limits}"
    )
