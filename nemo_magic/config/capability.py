"""What can be set about lm-evaluation-harness. Imports neither torch nor NeMo."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from nemo_magic.config_checks import CheckedConfig, NonNegativeInt, OneOf, PositiveInt


@dataclass
class CapabilityTaskConfig(CheckedConfig):
    """A task of the harness, or a group.

    ``task``: its name there. ``metric``: the one that is reported, with its filter as in the harness's results
    (``acc_norm,none``). ``how``: ``score`` has answers scored by their log-likelihood, ``text`` has a text continued,
    ``chat`` a chat answered. ``chat_template``: ``score`` and ``text`` go through the tokenizer's. ``num_fewshot``:
    null is the task's own. ``published``: the figure's name in the paper's Table 2.
    """

    KEY: ClassVar[str] = "eval.capability.tasks.<name>"

    task: str = ""
    metric: str = "acc,none"
    how: Annotated[str, OneOf("score", "text", "chat")] = "score"
    chat_template: bool = False
    num_fewshot: NonNegativeInt | None = None
    published: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if "," not in self.metric:
            raise ValueError(f"{self.KEY}.metric={self.metric!r} must name its filter too, as in acc,none")


@dataclass
class CapabilityConfig(CheckedConfig):
    """``nemo-magic capability``, and what ``nemo-magic evaluate`` puts beside its own figures.

    ``results``: what the harness wrote (``--output_path``), a file or a folder; null: none. ``url``: base url of a
    server, ending in ``/v1``; ``model``: the model's name there; ``tokenizer``: its folder, which the harness needs
    where it scores. ``max_length``: tokens that the model can read; null: ``model.encoder_seq_length``.
    ``num_concurrent`` requests of ``batch_size`` prompts are under way at once. ``limit``: cases of each task; null:
    all. ``include_path``: a folder of tasks of your own.
    """

    KEY: ClassVar[str] = "eval.capability"

    results: str | None = None
    url: str | None = None
    model: str = "defender"
    tokenizer: str | None = None
    max_length: PositiveInt | None = None
    num_concurrent: PositiveInt = 32
    batch_size: PositiveInt = 8
    limit: PositiveInt | None = None
    include_path: str | None = None
    tasks: dict[str, CapabilityTaskConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("url", "model", "tokenizer"):
            # The harness takes its arguments as one text of key=value,key=value.
            if "," in (getattr(self, key) or ""):
                raise ValueError(f"eval.capability.{key}={getattr(self, key)!r} must not contain a comma")
        if self.url is not None and not (self.url.startswith(("http://", "https://")) and self.url.endswith("/v1")):
            raise ValueError(f"eval.capability.url={self.url!r} must be a base url such as http://127.0.0.1:8000/v1")
