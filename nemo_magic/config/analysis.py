"""What can be set about the analysis of a run's attacks. Imports neither torch nor NeMo."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

TOKENIZERS = ("13a", "intl", "zh", "char", "none")
"""Those of sacrebleu that need nothing from a network."""


@dataclass
class LabelsConfig:
    """Who names the strategies of attacks where nobody knows them without error, as the sandbox does.

    ``model``: the model that is asked, with the keys that guards' models have (docs/judge.md): ``urls`` and ``model``
    of an OpenAI-compatible server, or ``kind: transformers`` and ``path``; empty: nobody is asked, and strategies are
    unknown. ``rubric``: what it is asked, a file of ``conf/judge/rubric/`` without its ending, or the path of one of
    your own. ``max_tokens`` of its answer. Answers are written down every ``chunk_size`` attacks: what a kill can cost.
    ``check``: it is also asked about so many rows of the attack pool, whose strategies are known, and how far it agrees
    is told.
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
class EmbeddingConfig:
    """An OpenAI-compatible server that embeds texts; without ``urls`` nothing is embedded.

    ``urls``: replicas of one model, base urls as OpenAI clients take them, ending in ``/v1``. ``model``: its name
    there; ``revision``: of its weights, which no server tells. ``token_env``: environment variable holding the bearer
    token. ``max_texts``: attacks of a stretch of steps that are embedded. ``batch_size`` texts go into a request.
    Patience is the judge's, all times in seconds: while nothing answers it is tried again after ``backoff_initial``,
    doubled each time up to ``backoff_max`` and jittered, until ``give_up_after`` passed without any success.
    """

    urls: list[str] = field(default_factory=list)
    model: str | None = None
    revision: str = "unpinned"
    token_env: str | None = None
    max_texts: int = 64
    batch_size: int = 32
    max_concurrency: int = 4
    request_timeout: float = 60.0
    give_up_after: float = 120.0
    protocol_retries: int = 3
    backoff_initial: float = 0.2
    backoff_max: float = 10.0

    def __post_init__(self) -> None:
        for url in self.urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.netloc or not parts.path.strip("/"):
                raise ValueError(f"analysis.embedding.urls={url!r} must be a base url such as http://host:8000/v1")
            if parts.path.rstrip("/").endswith("/embeddings"):
                raise ValueError(f"analysis.embedding.urls={url!r} must end before /embeddings, which is added")
        if self.urls and not self.model:
            raise ValueError(
                f"analysis.embedding.urls={list(self.urls)}: analysis.embedding.model has to be given, its name there"
            )
        if self.max_texts < 2:
            raise ValueError(f"analysis.embedding.max_texts={self.max_texts} must be at least 2: pairs are compared")
        for key in ("batch_size", "max_concurrency"):
            if getattr(self, key) < 1:
                raise ValueError(f"analysis.embedding.{key}={getattr(self, key)} must be at least 1")
        for key in ("request_timeout", "give_up_after", "backoff_initial", "backoff_max"):
            if not getattr(self, key) > 0:
                raise ValueError(f"analysis.embedding.{key}={getattr(self, key)} must be greater than 0")
        if self.protocol_retries < 0:
            raise ValueError(f"analysis.embedding.protocol_retries={self.protocol_retries} must be at least 0")

    def token(self) -> str | None:
        """The bearer token, or None where none is wanted. Raises ValueError if its variable is unset or empty."""
        if self.token_env is None:
            return None
        token = os.environ.get(self.token_env, "")
        if not token:
            raise ValueError(f"analysis.embedding.token_env={self.token_env}: this variable is unset or empty")
        return token


@dataclass
class AnalysisConfig:
    """``nemo-magic analyse``: what a run's attacker did, from the conversations that the run saved.

    ``max_conversations``: as many of them, of evenly spaced steps, the first and the last included. ``bins``: into how
    many stretches of steps at most they are put. ``pool``: the attack pool that combinations are new against; null
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
