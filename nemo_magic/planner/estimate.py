"""The plan of a configuration: memory of each device, seconds of a step, cost of the run. Allocates no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from nemo_magic.actors.config import NATIVE, TRT_LLM, VLLM, ActorConfig
from nemo_magic.config.adapters import shares_base
from nemo_magic.config.parallelism import Parallelism
from nemo_magic.config.schema import MagicConfig
from nemo_magic.config.validation import batch, layout, models
from nemo_magic.game.episode import Role
from nemo_magic.game.schedule import learning_rounds
from nemo_magic.model_config import ModelConfig, PeftConfig
from nemo_magic.planner import memory, seconds
from nemo_magic.planner.memory import GIB, BytesByPart, EngineMemory, Layout, Precision, References
from nemo_magic.planner.shapes import Shapes, measure, total_parameters

ADAPTED_DECODING = 1.25
"""How much longer a native decode step takes with adapters on (docs/adapters.md)."""

Vocabularies = Mapping[Role, int]
"""Number of ids of each local role's tokenizer."""


@dataclass(frozen=True)
class Plan:
    """``parameters``: of each role's whole model, of which ``trainable`` learn. ``memory``: moment → part → bytes on
    the fullest device; ``host``: part → bytes on a node. ``available``, ``host_available``: bytes of either that may be
    used. ``seconds``: part → seconds of a step, the mean over the run's phases; ``per_role``: the same while a role
    learns. ``checkpoint``: bytes of one. Hours are of the whole run, validations and checkpoints included. ``lengths``:
    mean tokens of a local role's (prompt, response), no longer than its limits."""

    world: Parallelism
    micro_batch_size: int
    microbatches: int
    recompute: str | None
    parameters: Mapping[Role, int]
    trainable: Mapping[Role, int]
    memory: Mapping[str, BytesByPart]
    available: float
    host: BytesByPart
    host_available: float
    fits: bool
    checkpoint: float
    checkpoint_seconds: float
    lengths: Mapping[Role, tuple[int, int]]
    seconds: Mapping[str, float]
    per_role: Mapping[Role, Mapping[str, float]]
    steps: int
    hours: float
    kilowatt_hours: float

    @property
    def needed(self) -> float:
        """Bytes on the fullest device in the moment with most."""
        return max(sum(parts.values()) for parts in self.memory.values())

    @property
    def step_seconds(self) -> float:
        """Mean seconds of a step."""
        return sum(self.seconds.values())

    @property
    def gpu_hours(self) -> float:
        """Hours of the run × its ranks."""
        return self.hours * self.world.world


def plan_of(cfg: MagicConfig, vocabularies: Vocabularies) -> Plan:
    """The plan of a valid configuration of ``nemo-magic train``."""
    return PlanEstimate(cfg, vocabularies).plan()


def with_layout(cfg: MagicConfig, tp: int, pp: int, micro_batch_size: int, recompute: str | None) -> MagicConfig:
    """``cfg`` at another layout and another recomputation of activations (``None``, ``selective``, ``full``)."""
    full = recompute == "full"
    model = replace(
        cfg.model,
        activations_checkpoint_granularity=recompute,
        activations_checkpoint_method="uniform" if full else None,
        activations_checkpoint_num_layers=1 if full else None,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        micro_batch_size=micro_batch_size,
        global_batch_size=None,
    )
    return replace(cfg, model=model)


def _learners(cfg: MagicConfig) -> list[Role]:
    return [role for role in Role if learning_rounds(cfg.game.schedule, role, cfg.game.max_steps) > 0]


class PlanEstimate:
    """The arithmetic of a plan: memory for the longest rows, seconds for rows of mean length."""

    def __init__(self, cfg: MagicConfig, vocabularies: Vocabularies) -> None:
        self.cfg, self.hardware, self.vocabularies = cfg, cfg.hardware, vocabularies
        self.roles = roles = {role: model for role, model in models(cfg).items() if role in vocabularies}
        self.world = world = layout(cfg, roles)
        step = batch(cfg, roles)
        self.rows, self.microbatches, self.updates = step.micro_batch_size, step.microbatches, step.updates
        self.half = cfg.trainer.precision == "bf16"
        model = next(iter(roles.values()))
        self.precision: Precision = memory.PRECISIONS[cfg.backend](model, self.half)
        devices = cfg.trainer.devices
        self.links = seconds.Links(tp_within=world.tp <= devices, dp_within=world.world <= devices)
        self.adapts = any(one.peft.is_lora for one in roles.values())
        local = [Role.DEFENDER] if cfg.game.self_play else list(roles)
        tokens = max(self._widest(role) for role in local)
        self.layout = Layout(
            world.tp, world.pp, world.dp, self.rows, tokens, self.microbatches, shares_base(cfg, roles)
        )  # fmt: skip
        self.widest = {str(role): self.shapes(role, self._widest(role)) for role in local}

    def plan(self) -> Plan:
        """All figures together."""
        cfg, hardware, game = self.cfg, self.hardware, self.cfg.game
        per_role = {role: self.step(role) for role in _learners(cfg)}
        share = {role: learning_rounds(game.schedule, role, game.max_steps) for role in per_role}
        total = sum(share.values())
        names = dict.fromkeys(name for parts in per_role.values() for name in parts)
        mean = {name: sum(share[r] * per_role[r].get(name, 0.0) for r in per_role) / total for name in names}
        steps = min(game.max_steps, game.early_stop.at_step or game.max_steps)
        saved = memory.checkpoint(self.widest, self.layout, self.precision, self.references)
        hours = (steps * sum(mean.values()) + steps // game.val_check_interval * self.validation()) / 3600
        return Plan(
            world=self.world,
            micro_batch_size=self.rows,
            microbatches=self.microbatches,
            recompute=cfg.model.activations_checkpoint_granularity,
            parameters={role: total_parameters(model, self.vocabularies[role]) for role, model in self.roles.items()},
            trainable={role: self._trainable(role, model) for role, model in self.roles.items()},
            memory=self.moments(),
            available=self.available,
            host=self.host(),
            host_available=self.host_available,
            fits=self.fits,
            checkpoint=saved,
            checkpoint_seconds=saved / (hardware.storage_gb_s * seconds.GIGA),
            lengths={role: self._mean(role) for role in self.roles},
            seconds=mean,
            per_role=per_role,
            steps=steps,
            hours=hours,
            kilowatt_hours=hours * cfg.trainer.num_nodes * hardware.node_kilowatts,
        )

    def _trainable(self, role: Role, model: ModelConfig) -> int:
        whole, base = (
            total_parameters(one, self.vocabularies[role]) for one in (model, replace(model, peft=PeftConfig()))
        )
        return whole - base if model.peft.is_lora else whole

    @cached_property
    def mean(self) -> dict[Role, Shapes]:
        """Each role's shapes for rows of mean length."""
        return {role: self.shapes(role, sum(self._mean(role))) for role in self.roles}

    # --- memory

    @property
    def fits(self) -> bool:
        """Whether every moment fits into the devices, and the host parts into the hosts."""
        needed = max(sum(parts.values()) for parts in self.moments().values())
        return needed <= self.available and sum(self.host().values()) <= self.host_available

    @property
    def available(self) -> float:
        """Bytes of a device without what is reserved and the slack."""
        hardware = self.hardware
        return (hardware.memory_gib * (1 - hardware.slack) - hardware.reserved_gib) * GIB

    @property
    def host_available(self) -> float:
        """Bytes of a node's memory without a tenth, which is the system's."""
        return self.hardware.host_memory_gib * GIB * 0.9

    @property
    def references(self) -> References:
        """The roles' reference policies. Of adapters they are their base, or a copy of theirs on the device."""
        if self.cfg.grpo.kl_beta == 0:
            return References()
        learners = [role for role in _learners(self.cfg) if role in self.roles and not self.roles[role].peft.is_lora]
        moves = self.cfg.grpo.reference_every is not None
        return References(
            tuple(str(role) for role in learners if str(role) in self.widest),
            4 if moves else self.precision.weight,  # in float32: actors.reference
            moves,
        )

    def host(self) -> BytesByPart:
        """Part → bytes on a node."""
        devices = self.cfg.trainer.devices
        parts = dict(memory.host(self.widest, self.layout, self.precision, self.references, devices))
        if self.adapts and self.cfg.generation.engine == TRT_LLM:
            # What adapters are merged into for an engine, kept to be put back (actors.merging).
            weights = memory.resident(self.widest, 0, self.layout, self.precision)["weights"]
            parts["original of merged weights"] = devices * weights
        return parts

    def moments(self) -> dict[str, BytesByPart]:
        """Moment of a step → part → bytes on the fullest device; of several learners, the one with most."""
        engine, kv = self.engine(), max(self.kv_bytes(role) for role in self.roles)
        moments = {}
        learning = [
            memory.training(self.widest, role, self.layout, self.precision, self.cfg.grpo.entropy_bonus > 0)
            for role in self.widest
            if role in _learners(self.cfg) or self.cfg.game.self_play
        ]
        moments["learning"] = max(learning, key=lambda parts: sum(parts.values()))
        moments["generating"] = memory.generating(
            self.widest, self.layout, self.precision, engine, kv, self.cfg.generation.batch_size
        )
        if self.layout.shares_base:
            moments["starting"] = memory.starting(self.widest, self.layout, self.precision)
        if engine is not None:
            moments["refitting"] = memory.refitting(self.widest, self.layout, self.precision, engine)
            if self.adapts and engine.reserved is None:
                moments["refitting"] = {**moments["refitting"], "weight being merged": self._merged_in_fp32()}
            if not engine.unloaded:
                moments["learning"] = {**moments["learning"], "engine": moments["refitting"]["engine"]}
        return moments

    def _merged_in_fp32(self) -> float:
        """Bytes of the largest linear layer's shard and of what its adapter adds, both in fp32."""
        largest = max(2 * model.ffn_hidden_size * model.hidden_size for model in self.roles.values())
        return 8.0 * largest / self.world.tp

    def engine(self) -> EngineMemory | None:
        """The engine of a rank, or None where the actors decode themselves."""
        options = self.cfg.generation
        if options.engine == NATIVE:
            return None
        limits = {role: self.cfg.actors.of(role).length_params for role in self.roles}
        rooms = [limits[role].prompt_room(model.encoder_seq_length) for role, model in self.roles.items()]
        if options.engine == VLLM:
            return EngineMemory(
                options.batch_size,
                max(rooms),
                max(limit.max_length for limit in limits.values()),
                reshard=True,
                unloaded=True,
                reserved=options.vllm.gpu_memory_utilization * self.hardware.memory_gib * memory.GIB,
            )
        return EngineMemory(
            options.batch_size,
            options.trt_llm.max_input_len or max(rooms),
            max(limit.max_length for limit in limits.values()),
            options.trt_llm.reshard,
            options.trt_llm.unload_engine_train,
        )

    def kv_bytes(self, role: Role) -> float:
        """Keys and values of one token in all layers, on a tensor-parallel rank."""
        model = self.roles[role]
        width = model.kv_channels or model.hidden_size // model.num_attention_heads
        groups = (model.num_query_groups or model.num_attention_heads) / self.world.tp
        return 2.0 * model.num_layers * groups * width * (2 if self.half else 4)

    # --- seconds

    def step(self, learner: Role) -> dict[str, float]:
        """Part → seconds of a step in which ``learner`` learns."""
        cfg, game, hardware = self.cfg, self.cfg.game, self.hardware
        rows = game.batch_size * game.group_size * game.max_turns
        parts: dict[str, float] = {}
        refits = 0.0
        for role in Role:
            if role not in self.roles:
                continue  # a server's seconds are not known
            prefetch_steps, to_generate = 1, rows
            if role is Role.ATTACKER and learner is Role.DEFENDER:
                prefetch_steps = (
                    1
                    if game.self_play
                    else min(game.attack_prefetch_steps or 10**9, game.schedule.phase_steps(learner))
                )
                to_generate = game.batch_size * game.max_turns * prefetch_steps
            parts[f"generate_{role}"] = self.generation(role, to_generate) / prefetch_steps
            refits += game.max_turns / prefetch_steps if prefetch_steps > 1 or not game.self_play else 0
        if cfg.generation.engine != NATIVE:
            refits = 1.0 if game.self_play else refits
            size = self.mean[learner].rank_parameters * self.precision.weight
            merges = self.roles[learner].peft.is_lora and cfg.generation.engine == TRT_LLM
            merge = seconds.merge(size / self.world.pp, hardware) if merges else 0.0
            parts["refit"] = refits * (seconds.refit(size, hardware) + merge)
        shapes, microbatches = self.mean[learner], self.microbatches * self.updates * game.max_turns
        has_reference, tp = cfg.grpo.kl_beta > 0, self.world.tp
        forward_passes = int(cfg.grpo.needs_old_logprobs) + int(has_reference)
        largest = max(shapes.trainable(stage) for stage in range(shapes.pp))
        parts["logprobs"] = forward_passes * seconds.passes(shapes, hardware, tp, microbatches, False, self.links)
        if has_reference and not self.roles[learner].peft.is_lora:
            parts["logprobs"] += seconds.swap(largest * (self.precision.weight + self.references.weight), hardware)
        hidden = parts["logprobs"]
        parts["judge_wait"] = max(0.0, game.batch_size * game.group_size / cfg.plan.judge_items_per_second - hidden)
        parts["update"] = seconds.passes(shapes, hardware, tp, microbatches, True, self.links)
        state = largest * (self.precision.shared / self.world.dp + self.precision.own)
        parts["optimizer"] = self.updates * seconds.optimizer_step(
            largest, self.precision.gradient, state, self.world.dp, hardware, self.links
        )
        if len(_learners(cfg)) > 1 and len(self.widest) > 1:
            parts["switch"] = seconds.swap(state, hardware) / game.schedule.phase_steps(learner)
        return parts

    def generation(self, role: Role, rows: int) -> float:
        """Seconds to generate ``rows`` responses of ``role`` over all ranks."""
        options, hardware, shapes = self.cfg.generation, self.hardware, self.mean[role]
        prompt, response = self._mean(role)
        native, engine = options.engine == NATIVE, self.engine()
        resharded = engine is not None and engine.reshard
        at_once = options.batch_size
        if engine is not None and engine.reserved is not None:
            # Rows take as many blocks of the cache as they are long.
            free = engine.reserved - shapes.rank_parameters * self.precision.weight
            at_once = max(1, min(at_once, int(free / ((prompt + response) * self.kv_bytes(role)))))
        engines = self.world.dp * (self.world.pp if resharded else 1)
        # Without an engine Python launches every layer.
        slower = ADAPTED_DECODING if self.roles[role].peft.is_lora else 1.0
        launched = replace(hardware, decode_layer_us=slower * hardware.layer_floor_us) if native else hardware
        per_token = shapes.layers * shapes.layer.forward + shapes.first.forward + shapes.last.forward
        pp = 1 if resharded else self.world.pp
        return seconds.decoding(
            rows=-(-rows // engines),
            at_once=at_once,
            refilled=options.engine == VLLM,
            prompt=prompt,
            response=response,
            longest=max(response, self.cfg.plan.longest * self._actor(role).length_params.max_length),
            weight_bytes=shapes.rank_parameters * self.precision.weight / pp,
            kv_bytes=self.kv_bytes(role) / pp,
            layers=shapes.layers,
            pp=pp,
            forward_flops_per_token=per_token / (self.rows * (prompt + response)),
            hardware=launched,
        )

    def validation(self) -> float:
        """Seconds of one validation."""
        return sum(self.generation(role, self.cfg.game.num_val_samples) for role in self.roles)

    # --- lengths

    def shapes(self, role: Role, tokens: int) -> Shapes:
        """Shapes of ``role``'s microbatches of rows of ``tokens``."""
        world, dtype = self.world, torch.bfloat16 if self.half else torch.float32
        one = measure(self.roles[role], self.vocabularies[role], world.tp, world.pp, 1, tokens, dtype)
        return one.times(self.rows)

    def _actor(self, role: Role) -> ActorConfig:
        return self.cfg.actors.of(role)

    def _widest(self, role: Role) -> int:
        """Tokens of the longest row."""
        limits, total = self._actor(role).length_params, self.roles[role].encoder_seq_length
        return min(total, limits.prompt_room(total) + limits.max_length)

    def _mean(self, role: Role) -> tuple[int, int]:
        """(prompt, response) in tokens, no longer than the role's limits."""
        limits = self._actor(role).length_params
        prompt, response = self.cfg.plan.lengths()[role]
        room = limits.prompt_room(self.roles[role].encoder_seq_length)
        return min(prompt, room), min(response, limits.max_length)
