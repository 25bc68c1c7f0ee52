"""The schema: every key a run can set, composed of what each package defines about itself."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, cast

from annotated_types import Ge
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_magic.actors.config import ActorConfig, GenerationConfig
from nemo_magic.config.analysis import AnalysisConfig
from nemo_magic.config.errors import ConfigError, concise
from nemo_magic.config.eval_config import EvalConfig
from nemo_magic.config.experiment import ExpManagerConfig, SFTConfig
from nemo_magic.config.hardware import HardwareConfig, PlanConfig
from nemo_magic.config.serving import ServeConfig
from nemo_magic.config_checks import CheckedConfig, Fraction, OneOf, PositiveFloat32, PositiveInt
from nemo_magic.data.seeds import DataConfig
from nemo_magic.game.alarms import AlarmsConfig
from nemo_magic.game.episode import VERDICT_FIELDS, Role
from nemo_magic.game.pool import PoolConfig
from nemo_magic.game.prompts import PromptConfig
from nemo_magic.game.rewards import RewardConfig
from nemo_magic.game.schedule import ScheduleConfig, learning_rounds
from nemo_magic.game.stopping import EarlyStopConfig
from nemo_magic.judge.config import JudgeConfig
from nemo_magic.model_config import ADAPTER_LR, LR, ModelConfig
from nemo_magic.rl.config import GRPOConfig
from nemo_magic.sandbox.world import SandboxConfig


@dataclass
class TrainerConfig(CheckedConfig):
    """The machines; NeMo's own key names. ``devices`` counts ranks per node, one GPU or one CPU process each."""

    KEY: ClassVar[str] = "trainer"

    num_nodes: int = 1
    devices: int = 1
    accelerator: Annotated[str, OneOf("gpu", "cpu")] = "gpu"
    precision: Annotated[str, OneOf("bf16", "32")] = "bf16"
    gradient_clip_val: PositiveFloat32 = 1.0


@dataclass
class ActorsConfig:
    """The two roles' actors.

    ``share_base``: both roles are adapters (``model.peft``) of weights that are in memory once; null means where both
    start from the same ``restore_from_path``.
    """

    share_base: bool | None = None
    attacker: ActorConfig = field(default_factory=ActorConfig)
    defender: ActorConfig = field(default_factory=ActorConfig)

    def of(self, role: Role | str) -> ActorConfig:
        """The configuration of ``role``."""
        return self.attacker if Role(role) is Role.ATTACKER else self.defender


@dataclass
class CrossPlayConfig(CheckedConfig):
    """At the end of a run, every saved attacker against every saved defender on ``num_seeds`` held-out harmful seeds,
    and at most as many benign ones; where there are fewer harmful ones, with several attacks on each.

    ``sample_defender``: defenders answer as in training instead of at temperature 0.
    """

    KEY: ClassVar[str] = "game.crossplay"

    enabled: bool = True
    num_seeds: PositiveInt = 64
    sample_defender: bool = False


@dataclass
class GameConfig(CheckedConfig):
    """Phase 2 (Algorithm 1). ``batch_size`` seeds a step over all ranks, each with ``group_size`` samples (G): at least
    two, for a group of one has no spread to learn from.

    ``max_steps`` rounds in all, or as many as show the training seeds ``max_epochs`` times where these are fewer; the
    run may end before that by ``early_stop``. Every ``val_check_interval`` rounds the pair plays ``num_val_samples``
    held-out seeds at temperature 0. ``max_turns``: exchanges in an episode. ``attack_prefetch_steps``: steps of a
    defender phase whose attacks are written at once; null means the whole phase (in self-play always one step).
    ``self_play``: one set of weights plays both roles, the defender's with the defender's ``model``; of
    ``actors.attacker`` only lengths and sampling are read. It is kept where a phase ends with a validation, for its
    phases may be a single round. ``defender_cot``: the defender reasons in tags before it answers, and only its answer
    is shown to anybody. ``max_unplayed_share``: more of a step's games than that not played, because a model cannot
    read even the first message or a server gave no answer, end the run; attacks that were cut off are not among them
    (docs/method.md). ``raw_prompt_fraction``: share of a defender
    phase's seeds that are shown as they are, so that the defender does not forget plain requests, which no attacker
    writes. ``extra_verdict_fields``: verdict fields to ask for the record, beside those the rewards need.
    ``strategy_sweep``: ``sandbox`` ends the run with the defender against every strategy of the sandbox.
    """

    KEY: ClassVar[str] = "game"

    max_turns: PositiveInt = 1
    attack_prefetch_steps: PositiveInt | None = None
    self_play: bool = False
    defender_cot: bool = False
    batch_size: PositiveInt = 64
    group_size: Annotated[int, Ge(2)] = 4
    max_steps: PositiveInt = 300
    max_epochs: PositiveInt | None = None
    early_stop: EarlyStopConfig = field(default_factory=EarlyStopConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    val_check_interval: PositiveInt = 15
    num_val_samples: PositiveInt = 256
    crossplay: CrossPlayConfig = field(default_factory=CrossPlayConfig)
    raw_prompt_fraction: Fraction = 0.0
    max_unplayed_share: Fraction = 0.1
    extra_verdict_fields: list[str] = field(default_factory=list)
    strategy_sweep: Annotated[str, OneOf("sandbox")] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.extra_verdict_fields:
            if name not in VERDICT_FIELDS:
                raise ValueError(f"game.extra_verdict_fields={name!r} must be one of: {', '.join(VERDICT_FIELDS)}")


@dataclass
class MagicConfig(CheckedConfig):
    """Everything a run can set. ``name`` names the run and, by default, its folder. ``backend``: whose models learn
    (docs/backends.md)."""

    name: str = MISSING
    seed: int = 1234
    backend: Annotated[str, OneOf("nemo_aligner", "megatron")] = "nemo_aligner"
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    actors: ActorsConfig = field(default_factory=ActorsConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    game: GameConfig = field(default_factory=GameConfig)
    rewards: RewardConfig = field(default_factory=RewardConfig)
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    alarms: AlarmsConfig = field(default_factory=AlarmsConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    data: DataConfig = field(default_factory=DataConfig)
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    exp_manager: ExpManagerConfig = field(default_factory=ExpManagerConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)


def optimizer_steps(cfg: MagicConfig, role: Role | str, rounds: int | None = None) -> int:
    """How often ``role`` takes an optimizer step in ``rounds`` rounds of ``nemo-magic train``.

    ``rounds``: by default ``game.max_steps``, as if no epoch and no early stop ended the run before. Exact where phases
    go by steps; an upper bound, which a run can reach, where they go by a metric.
    """
    rounds = cfg.game.max_steps if rounds is None else rounds
    return learning_rounds(cfg.game.schedule, role, rounds) * cfg.grpo.minibatches


def role_model(cfg: MagicConfig, role: Role | str, steps: int | None = None) -> ModelConfig:
    """``model`` with the role's own keys laid over it, and with its derived keys filled in.

    ``max_position_embeddings``, ``optim.lr``, ``optim.sched.min_lr`` and ``optim.sched.max_steps`` are numbers in the
    result.
    ``steps``: optimizer steps that the role will take; by default those of ``nemo-magic train``. Raises ConfigError for
    values that no model can have.
    """
    own = cfg.actors.of(role).model
    model = cfg.model
    try:
        if own:
            merged = OmegaConf.merge(OmegaConf.structured(model), own)
            model = cast(ModelConfig, OmegaConf.to_object(merged))
        optim = replace(model.optim, lr=model.optim.lr or (ADAPTER_LR if model.peft.is_lora else LR))
    except (OmegaConfBaseException, ValueError) as error:
        text = concise(error, "model.")
        raise ConfigError(f"actors.{role}.{text}" if text.startswith("model.") else text) from error
    if steps is None:
        steps = optimizer_steps(cfg, role)
    sched = optim.sched
    sched = replace(
        sched,
        min_lr=optim.lr if sched.min_lr is None else sched.min_lr,
        # A role that never learns has a schedule too, and a schedule has a length.
        max_steps=max(1, steps) if sched.max_steps is None else sched.max_steps,
    )
    positions = model.max_position_embeddings
    return replace(
        model,
        optim=replace(optim, sched=sched),
        max_position_embeddings=model.encoder_seq_length if positions is None else positions,
    )
