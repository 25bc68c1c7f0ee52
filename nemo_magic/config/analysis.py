"""Options of the analysis of a run's attacks. Imports neither torch nor NeMo."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from nemo_magic.net.endpoint import OpenAIEndpointConfig

TOKENIZERS = ("13a", "intl", "zh", "char", "none")
"""Tokenizers of sacrebleu that download nothing."""


@dataclass
class LabelsConfig:
    """The model that names the strategies of attacks outside the sandbox, which decodes them.

    ``model``: the model, with the keys that guards' models have (docs/judge.md): ``urls`` and ``model``
    of an OpenAI-compatible server, or ``kind: transformers`` and ``path``; empty: strategies are unknown.
    ``rubric``: the prompt, a file of ``conf/judge/rubric/`` without its ending, or the path of one of
    your own. ``max_tokens`` of its answer. Answers are saved every ``chunk_size`` attacks; a kill can cost that
    many. ``check``: it also labels so many rows of the attack pool, whose strategies are known, and its agreement with
    them is reported.
    """

    model: dict[str, Any] = field(default_factory=dict)
    rubric: str = "strategies"
    max_tokens: int = 64
    chunk_size: int = 64
    check: int = 0

    def __post_init__(self) -> None:
        for key in ("max_tokens", "chunk_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"analysis.labels.{key}={getattr(self, key)} must be at least 1")
        if self.check < 0:
            raise ValueError(f"analysis.labels.check={self.check} must be at least 0")
        if not self.rubric:
            raise ValueError("analysis.labels.rubric is empty: name a file of conf/judge/rubric, or the path of one")


@dataclass
class SelfBleuConfig:
    """Self-BLEU of samples of exactly ``size`` attacks, so that it is comparable between steps and runs.

    At most ``samples`` disjoint samples are drawn from a stretch of steps, and averaged. ``tokenize``: sacrebleu's name
    of how texts become words.
    """

    size: int = 8
    samples: int = 8
    tokenize: str = "13a"

    def __post_init__(self) -> None:
        if self.size < 2:
            raise ValueError(f"analysis.self_bleu.size={self.size} must be at least 2: an attack is compared to others")
        if self.samples < 1:
            raise ValueError(f"analysis.self_bleu.samples={self.samples} must be at least 1")
        if self.tokenize not in TOKENIZERS:
            raise ValueError(f"analysis.self_bleu.tokenize={self.tokenize!r} must be one of: {', '.join(TOKENIZERS)}")


@dataclass
class EmbeddingConfig(OpenAIEndpointConfig):
    """An OpenAI-compatible server that embeds texts; without ``urls`` nothing is embedded.

    The keys of OpenAIEndpointConfig and these: ``revision`` of the model's weights, which no server tells.
    ``max_texts``: attacks of a stretch of steps that are embedded. ``batch_size`` texts go into a request.
    """

    KEY: ClassVar[str] = "analysis.embedding"
    ROUTES: ClassVar[tuple[str, ...]] = ("/embeddings",)

    max_concurrency: int = 4
    give_up_after: float = 120.0
    revision: str = "unpinned"
    max_texts: int = 64
    batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.urls and not self.model:
            raise ValueError(f"{self.KEY}.urls={list(self.urls)}: {self.KEY}.model has to be given, its name there")
        if self.max_texts < 2:
            raise ValueError(f"{self.KEY}.max_texts={self.max_texts} must be at least 2: pairs are compared")
        self._check_at_least_1("batch_size")


@dataclass
class AnalysisConfig:
    """``nemo-magic analyse``: the attacks in the conversations that a run saved.

    ``max_conversations``: read at most so many, of evenly spaced steps, the first and the last included. ``bins``: at
    most so many stretches of steps. ``pool``: the attack pool that combinations are new against; null
    looks for the one the attacker was warmed up on (``sft.pool`` of the warm-up beside
    ``actors.attacker.restore_from_path``).
    """

    max_conversations: int = 2000
    bins: int = 24
    pool: str | None = None
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    self_bleu: SelfBleuConfig = field(default_factory=SelfBleuConfig)
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)

    def __post_init__(self) -> None:
        for key in ("max_conversations", "bins"):
            if getattr(self, key) < 1:
                raise ValueError(f"analysis.{key}={getattr(self, key)} must be at least 1")
