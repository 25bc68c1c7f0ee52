"""Options of the analysis of a run's attacks. Imports neither torch nor NeMo."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from annotated_types import Ge

from nemo_magic.config_checks import CheckedConfig, NonNegativeInt, OneOf, PositiveFloat, PositiveInt
from nemo_magic.net.endpoint import OpenAIEndpointConfig

TOKENIZERS = ("13a", "intl", "zh", "char", "none")
"""Tokenizers of sacrebleu that download nothing."""


@dataclass
class LabelsConfig(CheckedConfig):
    """The model that names the strategies of attacks outside the sandbox, which decodes them.

    ``model``: the model, with the keys that guards' models have (docs/judge.md): ``urls`` and ``model``
    of an OpenAI-compatible server, or ``kind: transformers`` and ``path``; empty: strategies are unknown.
    ``rubric``: the prompt, a file of ``conf/judge/rubric/`` without its ending, or the path of one of
    your own. ``max_tokens`` of its answer. Answers are saved every ``chunk_size`` attacks; a kill can cost that
    many. ``check``: it also labels so many rows of the attack pool, whose strategies are known, and its agreement with
    them is reported.
    """

    KEY: ClassVar[str] = "analysis.labels"

    model: dict[str, Any] = field(default_factory=dict)
    rubric: str = "strategies"
    max_tokens: PositiveInt = 64
    chunk_size: PositiveInt = 64
    check: NonNegativeInt = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rubric:
            raise ValueError("analysis.labels.rubric is empty: name a file of conf/judge/rubric, or the path of one")


@dataclass
class SelfBleuConfig(CheckedConfig):
    """Self-BLEU of samples of exactly ``size`` attacks, so that it is comparable between steps and runs: at least
    two, for an attack is compared to others.

    At most ``samples`` disjoint samples are drawn from a stretch of steps, and averaged. ``tokenize``: sacrebleu's name
    of how texts become words.
    """

    KEY: ClassVar[str] = "analysis.self_bleu"

    size: Annotated[int, Ge(2)] = 8
    samples: PositiveInt = 8
    tokenize: Annotated[str, OneOf(*TOKENIZERS)] = "13a"


@dataclass
class EmbeddingConfig(OpenAIEndpointConfig):
    """An OpenAI-compatible server that embeds texts; without ``urls`` nothing is embedded.

    The keys of OpenAIEndpointConfig and these: ``revision`` of the model's weights, which no server tells.
    ``reply_model``: what the server calls the model in its replies, where that is not ``model``. ``max_texts``: attacks
    of a stretch of steps that are embedded, at least two: pairs are compared. ``batch_size`` texts go into a request.
    """

    KEY: ClassVar[str] = "analysis.embedding"
    ROUTES: ClassVar[tuple[str, ...]] = ("/embeddings",)

    max_concurrency: PositiveInt = 4
    give_up_after: PositiveFloat = 120.0
    revision: str = "unpinned"
    reply_model: str | None = None
    max_texts: Annotated[int, Ge(2)] = 64
    batch_size: PositiveInt = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.urls and not self.model:
            raise ValueError(f"{self.KEY}.urls={list(self.urls)}: {self.KEY}.model has to be given, its name there")


@dataclass
class AnalysisConfig(CheckedConfig):
    """``nemo-magic analyse``: the attacks in the conversations that a run saved.

    ``max_conversations``: read at most so many, of evenly spaced steps, the first and the last included. ``bins``: at
    most so many stretches of steps. ``pool``: the attack pool that combinations are new against; null
    looks for the one the attacker was warmed up on (``sft.pool`` of the warm-up beside
    ``actors.attacker.restore_from_path``).
    """

    KEY: ClassVar[str] = "analysis"

    max_conversations: PositiveInt = 2000
    bins: PositiveInt = 24
    pool: str | None = None
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    self_bleu: SelfBleuConfig = field(default_factory=SelfBleuConfig)
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
