"""What can be set about the actors and about decoding. Imports neither torch nor NeMo."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nemo_magic.model_config import ModelConfig


@dataclass
class SamplingConfig:
    """How a role's next token is drawn; NeMo's own key names.

    ``temperature`` also scales the log-probabilities that are trained on. ``top_k`` 0 and ``top_p`` 1.0 truncate
    nothing. ``use_greedy`` takes the likeliest token instead. ``end_strings`` end a response beside the tokenizer's end
    token.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    use_greedy: bool = False
    end_strings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(
                f"sampling_params.temperature={self.temperature} must be greater than 0; for temperature 0 set "
                "sampling_params.use_greedy=true"
            )
        if self.top_k < 0:
            raise ValueError(f"sampling_params.top_k={self.top_k} must be at least 0 (0: all tokens)")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"sampling_params.top_p={self.top_p} must be in (0, 1] (1: all tokens)")
        if "" in self.end_strings:
            raise ValueError("sampling_params.end_strings contains an empty string, which would end every response")


@dataclass
class LengthConfig:
    """Lengths in tokens.

    ``max_length`` and ``min_length`` bound a response, end token included. ``max_prompt_length`` bounds a prompt, chat
    template included; null means what ``model.encoder_seq_length`` leaves: ``encoder_seq_length - max_length``.
    """

    max_length: int = 256
    min_length: int = 1
    max_prompt_length: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.min_length <= self.max_length:
            raise ValueError(
                f"length_params.min_length={self.min_length} must be between 1 and "
                f"length_params.max_length={self.max_length}"
            )
        if self.max_prompt_length is not None and self.max_prompt_length < 1:
            raise ValueError(f"length_params.max_prompt_length={self.max_prompt_length} must be at least 1, or null")

    def prompt_room(self, encoder_seq_length: int) -> int:
        """The longest prompt, in tokens, that may be given to a model of ``encoder_seq_length`` positions."""
        room = encoder_seq_length - self.max_length
        return room if self.max_prompt_length is None else min(room, self.max_prompt_length)


@dataclass
class ActorConfig:
    """One role's model.

    ``restore_from_path``: starting weights, a folder that ``nemo-magic sft`` or ``nemo-magic train`` wrote, or a
    ``.nemo`` file; null starts from random weights. ``model``: any keys of ``model`` that differ for this role, e.g.
    ``{optim: {lr: 3e-5}}``; what is not named here is as in ``model``.
    """

    restore_from_path: str | None = None
    model: dict[str, Any] = field(default_factory=dict, metadata={"part_of": ModelConfig})
    sampling_params: SamplingConfig = field(default_factory=SamplingConfig)
    length_params: LengthConfig = field(default_factory=LengthConfig)


@dataclass
class GenerationConfig:
    """Native decoding. ``batch_size``: rows decoded at once on a rank, validation included.

    ``max_prompt_spread``: rows decoded together differ by at most so many prompt tokens; 0 means equal lengths, which
    wastes nothing, and more means fewer and larger batches.
    """

    batch_size: int = 256
    max_prompt_spread: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"generation.batch_size={self.batch_size} must be at least 1")
        if self.max_prompt_spread < 0:
            raise ValueError(f"generation.max_prompt_spread={self.max_prompt_spread} must be at least 0")
