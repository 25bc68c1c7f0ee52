"""Checks of a configuration as a whole, before any model is built; messages have the numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nemo_magic.config.adapters import adapter_faults, missing_bases, sharing_problems
from nemo_magic.config.backend import SPLIT_ON_GPUS, backend_problems
from nemo_magic.config.engines import engine_problems
from nemo_magic.config.errors import ConfigError
from nemo_magic.config.evaluation import evaluated_roles, evaluation_problems
from nemo_magic.config.keys import renamed_metric_problems
from nemo_magic.config.parallelism import Parallelism
from nemo_magic.config.roles import huggingface_problems, remote_problems, serving_problems
from nemo_magic.config.schema import MagicConfig, optimizer_steps, role_model
from nemo_magic.game.episode import Role
from nemo_magic.judge.guards import refuse_unanswerable
from nemo_magic.model_config import ModelConfig

_APEX_OPTIMIZERS = ("distributed_fused_adam", "megatron_fused_adam", "fused_adam")
# NeMo keeps the process groups and the microbatch calculator once per process, for both roles.
_SHARED = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "micro_batch_size")

_TRAINING, _VALIDATION = "train_rollouts/", "val_rollouts/"
# Metrics of rollouts (docs/metrics.md) → the verdict's field that they need.
_JUDGED = {"useful": "helpful", "intent_preserved": "intent_preserved"}


@dataclass(frozen=True, slots=True)
class Batch:
    """One optimizer step in numbers, equal for both roles.

    ``rows`` (responses) over all ranks, which is NeMo's global batch size; ``rows_per_rank`` of them on a data-parallel
    rank, in ``microbatches`` forward passes of up to ``micro_batch_size``. ``updates``: optimizer steps per rollout.
    """

    rows: int
    rows_per_rank: int
    microbatches: int
    micro_batch_size: int
    updates: int


Models = dict[Role, ModelConfig]


def models(cfg: MagicConfig, command: str = "train") -> Models:
    """The model of every role that ``nemo-magic <command>`` builds, derived keys filled in."""
    if command == "sft":
        role = Role(cfg.sft.model_role)
        return {role: role_model(cfg, role, cfg.sft.max_steps)}
    if command == "serve":
        role = Role(cfg.serve.role)
        return {role: role_model(cfg, role, 1)}
    if command == "evaluate":
        return {role: role_model(cfg, role, 1) for role in evaluated_roles(cfg) if cfg.actors.of(role).is_megatron}
    return {role: role_model(cfg, role) for role in Role}


def layout(cfg: MagicConfig, roles: Models) -> Parallelism:
    """How the ranks share the work. Raises ConfigError where they do not divide."""
    model = next(iter(roles.values()))
    tp, pp = model.tensor_model_parallel_size, model.pipeline_model_parallel_size
    return Parallelism.of(cfg.trainer.num_nodes, cfg.trainer.devices, tp, pp)


def batch(cfg: MagicConfig, roles: Models, command: str = "train") -> Batch:
    """Rows and microbatches of an optimizer step, for a configuration that is valid."""
    updates = cfg.grpo.minibatches if command == "train" else 1
    rows = cfg.game.batch_size * cfg.game.group_size // updates if command == "train" else cfg.sft.batch_size
    per_rank = rows // layout(cfg, roles).dp
    micro = next(iter(roles.values())).micro_batch_size
    return Batch(rows, per_rank, -(-per_rank // micro), micro, updates)


def validate(cfg: MagicConfig, command: str = "train") -> None:
    """Refuse what ``nemo-magic <command>`` cannot run. ``plan`` is checked as ``train`` is, except for the judge.

    Raises:
        ConfigError: with one line for every thing that is wrong.
    """
    judged, planned = command in ("train", "evaluate"), command == "plan"
    if planned:
        command = "train"
    roles = models(cfg, command)
    faults = {role: list(_faults(cfg, role, model, command)) for role, model in roles.items()}
    problems = list(dict.fromkeys(_named(text, role, faults) for role, texts in faults.items() for text in texts))
    problems += _unequal(roles)
    problems += dict.fromkeys(backend_problems(cfg, roles, planned))
    problems += sharing_problems(cfg, roles, command)
    problems += [] if planned else missing_bases(cfg, roles)
    if not problems and roles:
        # Only now is there a layout to divide by.
        problems += _batches(cfg, roles, command)
    if command == "evaluate":
        problems += evaluation_problems(cfg)
    else:
        problems += serving_problems(cfg) if command == "serve" else remote_problems(cfg, command)
        problems += huggingface_problems(cfg, roles)
    if command == "train":
        problems += renamed_metric_problems(cfg)
        problems += _metrics(cfg)
        problems += _pool(cfg)
    if command in ("train", "evaluate"):
        problems += engine_problems(cfg, roles)
    if command == "sft" and cfg.sft.pool is None:
        problems.append("sft.pool is null: name the file of rows to learn from")
    if command == "sft" and cfg.sft.role == "both" and cfg.sft.defender_pool is None:
        problems.append("sft.defender_pool is null: with sft.role=both name the file of chats to learn from")
    if command == "train" and cfg.game.self_play:
        problems += _self_play(cfg)
    if cfg.rewards.format_defender > 0 and not cfg.game.defender_cot:
        problems.append(
            f"rewards.format_defender={cfg.rewards.format_defender} is paid for tags that only game.defender_cot=true "
            "asks for: set that, or rewards.format_defender=0"
        )
    if judged and not (cfg.judge.urls or cfg.judge.launch):
        problems.append("judge.urls is empty and judge.launch=false: name a running judge, or let the run start one")
    if judged and cfg.judge.launch:
        try:
            fields = (
                cfg.eval.fields() if command == "evaluate" else cfg.rewards.needs() | set(cfg.game.extra_verdict_fields)
            )
            refuse_unanswerable(cfg.judge.guard, cfg.judge.guard_config, fields)
        except ValueError as error:
            problems.append(str(error) if "judge.guard" in str(error) else f"judge.guard={cfg.judge.guard}: {error}")
    if problems:
        raise ConfigError("\n".join(problems))


def _faults(cfg: MagicConfig, role: Role, model: ModelConfig, command: str) -> Iterator[str]:
    yield from _shapes(model)
    yield from _lengths(cfg, role, model)
    yield from _schedule(cfg, role, model, command)
    yield from _lane(cfg, model)
    yield from adapter_faults(cfg, role, model)


def _named(text: str, role: Role, faults: dict[Role, list[str]]) -> str:
    """A fault that all roles have is of the shared model; any other one is named with its role."""
    return text if role in text or all(text in texts for texts in faults.values()) else f"{role}: {text}"


def _unequal(roles: Models) -> Iterator[str]:
    for key in _SHARED:
        values = {role: getattr(model, key) for role, model in roles.items()}
        if len(set(values.values())) > 1:
            each = ", ".join(f"{value} for the {role}" for role, value in values.items())
            yield f"model.{key} is {each}: both roles live in one world, set it once under model"


def _batches(cfg: MagicConfig, roles: Models, command: str) -> Iterator[str]:
    dp = layout(cfg, roles).dp
    if command in ("evaluate", "serve"):
        return  # any number of cases is shared out
    ranks = f"{dp} data-parallel ranks"
    seeds, group_size, minibatches = cfg.game.batch_size, cfg.game.group_size, cfg.grpo.minibatches
    key, count = ("sft.batch_size", cfg.sft.batch_size) if command == "sft" else ("game.batch_size", seeds)
    if count % dp:
        yield f"{key}={count} is not divisible by {ranks}: try {_multiple(count, dp)}"
        return
    if command == "train" and seeds // dp % minibatches:
        yield (
            f"grpo.minibatches={minibatches} does not divide the {seeds // dp} groups of a rank (game.batch_size="
            f"{seeds} over {ranks}), and a group is never split: try "
            f"game.batch_size={_multiple(seeds, dp * minibatches)}"
        )
        return
    rows = batch(cfg, roles, command).rows
    sizes = {model.global_batch_size for model in roles.values()} - {None, rows}
    for size in sorted(size for size in sizes if size is not None):
        source = f"game.batch_size={seeds} × game.group_size={group_size} / grpo.minibatches={minibatches} = {rows}"
        yield (
            f"model.global_batch_size={size} is not {source if command == 'train' else f'sft.batch_size={rows}'}: "
            "leave it null, it is derived"
        )


def _shapes(model: ModelConfig) -> Iterator[str]:
    tp, pp = model.tensor_model_parallel_size, model.pipeline_model_parallel_size
    for key in (
        "tensor_model_parallel_size",
        "pipeline_model_parallel_size",
        "num_layers",
        "hidden_size",
        "ffn_hidden_size",
        "num_attention_heads",
        "encoder_seq_length",
        "micro_batch_size",
    ):
        if getattr(model, key) < 1:
            yield f"model.{key}={getattr(model, key)} must be at least 1"
            return
    if model.num_layers % pp:
        yield f"model.num_layers={model.num_layers} is not divisible by model.pipeline_model_parallel_size={pp}"
    split = ["num_attention_heads", "ffn_hidden_size", "make_vocab_size_divisible_by"]
    if model.num_query_groups is not None:
        split.append("num_query_groups")
        if model.num_query_groups < 1 or model.num_attention_heads % model.num_query_groups:
            yield (
                f"model.num_attention_heads={model.num_attention_heads} is not divisible by "
                f"model.num_query_groups={model.num_query_groups}"
            )
    if model.num_moe_experts is not None:
        yield from _experts(model)
        split += [] if model.moe_ffn_hidden_size is None else ["moe_ffn_hidden_size"]
    for key in split:
        if getattr(model, key) % tp:
            yield f"model.{key}={getattr(model, key)} is not divisible by model.tensor_model_parallel_size={tp}"
    if model.kv_channels is None and model.hidden_size % model.num_attention_heads:
        yield (
            f"model.hidden_size={model.hidden_size} is not divisible by model.num_attention_heads="
            f"{model.num_attention_heads}: change one of them, or set model.kv_channels"
        )
    if model.virtual_pipeline_model_parallel_size is not None:
        yield (
            f"model.virtual_pipeline_model_parallel_size={model.virtual_pipeline_model_parallel_size}: NeMo-Aligner's "
            "actors have no interleaved pipeline, leave it null"
        )


def _experts(model: ModelConfig) -> Iterator[str]:
    topk, experts = model.moe_router_topk, model.num_moe_experts
    if experts is not None and topk > experts:
        yield f"model.moe_router_topk={topk} is more than model.num_moe_experts={experts}"
    if topk == 1 and not model.moe_router_pre_softmax:
        yield (
            "model.moe_router_topk=1 with model.moe_router_pre_softmax=false: the one expert would always weigh 1, and "
            "the router learn nothing; set moe_router_pre_softmax=true"
        )


def _lengths(cfg: MagicConfig, role: Role, model: ModelConfig) -> Iterator[str]:
    total, positions = model.encoder_seq_length, model.max_position_embeddings
    if positions is not None and total > positions:
        yield f"model.encoder_seq_length={total} exceeds model.max_position_embeddings={positions}"
    if cfg.actors.of(role).is_remote:
        return  # only its server knows what fits its model
    limits = cfg.actors.of(role).length_params
    prompt = limits.max_prompt_length or 1
    if prompt + limits.max_length > total:
        yield (
            f"actors.{role}.length_params: a prompt of {prompt} (max_prompt_length) and a response of "
            f"{limits.max_length} (max_length) tokens are {prompt + limits.max_length}, more than "
            f"model.encoder_seq_length={total}: with this prompt max_length may be at most {total - prompt}"
        )


def _schedule(cfg: MagicConfig, role: Role, model: ModelConfig, command: str) -> Iterator[str]:
    sched = model.optim.sched
    learns = command == "sft" or (command == "train" and optimizer_steps(cfg, role) > 0)
    fixed = sched.warmup_steps + sched.constant_steps
    # NeMo divides by the steps between warm-up and the constant end. A run that ends within its warm-up is only short.
    if learns and sched.constant_steps > 0 and sched.max_steps is not None and fixed >= sched.max_steps:
        yield (
            f"the {role} takes {sched.max_steps} optimizer steps (model.optim.sched.max_steps), and "
            f"model.optim.sched.warmup_steps={sched.warmup_steps} + constant_steps={sched.constant_steps} leave none "
            f"of them for the rest: their sum may be at most {sched.max_steps - 1}"
        )


def _self_play(cfg: MagicConfig) -> Iterator[str]:
    """One set of weights for both roles has one source and one temperature."""
    attacker, defender = cfg.actors.attacker, cfg.actors.defender
    if attacker.is_remote or defender.is_remote:
        yield "game.self_play=true: both roles are one local model, set actors.<role>.remote.urls=[]"
    if attacker.restore_from_path is not None:
        yield (
            f"game.self_play=true: the weights are actors.defender.restore_from_path, set "
            f"actors.attacker.restore_from_path=null, which is {attacker.restore_from_path}"
        )
    if attacker.sampling_params.temperature != defender.sampling_params.temperature:
        yield (
            f"game.self_play=true: one policy is learned at one temperature, but actors.attacker.sampling_params."
            f"temperature={attacker.sampling_params.temperature} and actors.defender.sampling_params.temperature="
            f"{defender.sampling_params.temperature}: set them equal"
        )
    if cfg.game.max_turns > 1 and cfg.game.crossplay.enabled:
        yield (
            f"game.self_play=true with game.max_turns={cfg.game.max_turns}: an older attacker and an older defender "
            "cannot take turns in one model, set game.crossplay.enabled=false"
        )


def _pool(cfg: MagicConfig) -> Iterator[str]:
    """Snapshots of earlier phases exist of a role that learns, where each role has its own weights."""
    pool, learners = cfg.game.pool, cfg.game.schedule.learners()
    if cfg.game.self_play:
        if pool.draw != "latest":
            yield f"game.self_play=true: one model has no opponent of its own, set game.pool.draw={pool.draw} to latest"
        if pool.max_disk_gib is not None:
            yield (
                f"game.self_play=true with game.pool.max_disk_gib={pool.max_disk_gib}: what one model was is not "
                "thinned out, set it to null"
            )
    elif pool.draw != "latest" and len(learners) < len(Role):
        frozen = learners[0].opponent
        why = "a server plays it" if cfg.actors.of(frozen).is_remote else f"game.schedule.train_roles=[{learners[0]}]"
        yield (
            f"game.pool.draw={pool.draw}: the {frozen} does not learn ({why}), so there is one of it to draw: set "
            "game.pool.draw=latest"
        )


def _metrics(cfg: MagicConfig) -> Iterator[str]:
    """A metric that ends a phase or a run has to be measured; one that never comes would end none."""
    game, switch = cfg.game, cfg.game.schedule.metric
    metrics = {"game.early_stop.metric": game.early_stop.metric}
    if game.schedule.by == "metric":
        metrics["game.schedule.metric.name"] = switch.name
        validations = -(-switch.max_steps // game.val_check_interval)
        if switch.name.startswith(_VALIDATION) and validations < switch.window:
            yield (
                f"game.schedule.metric.name={switch.name} is measured every game.val_check_interval="
                f"{game.val_check_interval} rounds, at most {validations} times in a phase of "
                f"game.schedule.metric.max_steps={switch.max_steps}: that never fills "
                f"game.schedule.metric.window={switch.window}"
            )
    fields = cfg.rewards.needs() | set(game.extra_verdict_fields)
    for key, name in metrics.items():
        prefix, _, figure = (name or "").rpartition("/")
        needed = _JUDGED.get(figure) if f"{prefix}/" in (_TRAINING, _VALIDATION) else None
        if needed is not None and needed not in fields:
            yield (
                f"{key}={name} needs the verdict's field {needed}, which nothing asks for: add it to "
                "game.extra_verdict_fields"
            )


def _lane(cfg: MagicConfig, model: ModelConfig) -> Iterator[str]:
    """Options that exist on CUDA only, or on CPU only."""
    if cfg.trainer.accelerator != "cpu":
        if model.optim.name == "cpu_fused_adam":
            yield "model.optim.name=cpu_fused_adam exists where trainer.accelerator=cpu: use distributed_fused_adam"
        return
    if model.optim.name in _APEX_OPTIMIZERS:
        yield f"model.optim.name={model.optim.name} needs a GPU, and trainer.accelerator=cpu: use cpu_fused_adam"
    for key in ("transformer_engine", "use_flash_attention", *SPLIT_ON_GPUS[cfg.backend]):
        if getattr(model, key):
            yield f"model.{key}=true needs a GPU, and trainer.accelerator=cpu: set it to false"


def _multiple(value: int, of: int) -> str:
    """The multiples of ``of`` around ``value``."""
    below = value // of * of
    return f"{below} or {below + of}" if below else str(of)
