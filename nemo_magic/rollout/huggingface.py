"""A policy of a Hugging Face model in this process: transformers alone, neither Megatron nor process groups.

It decodes as a local actor does (actors/sampling.py): the tokenizer's end token and ``end_strings`` end an answer, ids
beyond the tokenizer are never taken, and a sample depends on the chat, its seed and the weights only. Of the
checkpoint's own ``generation_config.json`` nothing is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from nemo_magic.actors.config import ActorConfig, LengthConfig, SamplingConfig
from nemo_magic.actors.sampling import StopConditions, refuse_not_finite, sample_tokens, to_completion, uniform_draws
from nemo_magic.actors.tokenizer import ChatTokenizer
from nemo_magic.game.episode import Completion
from nemo_magic.game.prompts import Chat
from nemo_magic.rollout.policy import truncated


class HuggingFacePolicy:
    """The causal language model in the folder ``path`` (config.json, safetensors, tokenizer with a chat template).

    ``options``: the role's sampling, lengths and ``hf`` (dtype, device). ``batch_size``: chats decoded at once.
    ``accelerator``: ``gpu`` or ``cpu``, where ``hf.device`` is null. ``generates``: False reads the tokenizer alone,
    for ranks that only truncate.

    Raises:
        FileNotFoundError: there is no config.json at ``path``.
        OSError: the folder lacks weights or tokenizer.
        ValueError: the tokenizer has no chat template or no end token.
    """

    def __init__(
        self, path: str | Path, options: ActorConfig, batch_size: int, accelerator: str = "cpu", generates: bool = True
    ) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        if not (Path(path) / "config.json").is_file():
            raise FileNotFoundError(f"{path} is no Hugging Face model: it has no config.json")
        self._whose = f"the model in {path}"
        self._sampling, self._lengths, self._batch_size = options.sampling_params, options.length_params, batch_size
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        self._chat = ChatTokenizer(SimpleNamespace(tokenizer=tokenizer))
        positions = AutoConfig.from_pretrained(path, trust_remote_code=False).max_position_embeddings
        self._room = self._lengths.prompt_room(positions)
        self._prompt_ids = lru_cache(maxsize=4096)(self._chat.prompt_ids)
        self._model: Any = None
        if generates:
            device = options.hf.device or ("cuda" if accelerator == "gpu" else "cpu")
            spread = {"device_map": "auto"} if device == "auto" else {}
            self._model = AutoModelForCausalLM.from_pretrained(
                path, torch_dtype=options.hf.dtype, use_safetensors=True, trust_remote_code=False, **spread
            ).eval()
            if not spread:
                self._model.to(device)
            # What a checkpoint recommends (Qwen's repetition penalty, say) is not temperature 0.
            self._model.generation_config = GenerationConfig()

    @property
    def neutralised(self) -> int:
        """As ``Policy.neutralised``."""
        return self._chat.neutralised

    def generate(self, chats: Sequence[Chat], seeds: Sequence[int], greedy: bool) -> list[Completion | None]:
        """As ``Policy.generate``."""
        prompts = [self._prompt_ids(chat) for chat in chats]
        readable = [i for i, prompt in enumerate(prompts) if len(prompt) <= self._room]
        readable.sort(key=lambda i: len(prompts[i]))
        sampling = replace(self._sampling, use_greedy=True) if greedy else self._sampling
        completions: list[Completion | None] = [None] * len(chats)
        for start in range(0, len(readable), self._batch_size):
            batch = readable[start : start + self._batch_size]
            decoded = self._decode([list(prompts[i]) for i in batch], [seeds[i] for i in batch], sampling)
            for i, completion in zip(batch, decoded, strict=True):
                completions[i] = completion
        return completions

    def truncate_to_context(self, text: str, chat_of: Callable[[str], Chat]) -> str:
        """As ``Policy.truncate_to_context``."""
        return truncated(text, chat_of, self._chat, self._prompt_ids, self._room)

    @torch.no_grad()
    def _decode(self, prompts: list[list[int]], seeds: Sequence[int], sampling: SamplingConfig) -> list[Completion]:
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        device, chat, width = self._model.device, self._chat, max(map(len, prompts))
        stops = StopConditions.of(chat, sampling.end_strings, device)
        # On the left: all responses begin in the same column.
        rows = [[chat.pad_id] * (width - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        choice = _Choice(
            width,
            uniform_draws(seeds, self._lengths.max_length, device),
            sampling,
            self._lengths,
            chat,
            stops,
            self._whose,
        )
        output = self._model.generate(
            torch.tensor(rows, device=device),
            attention_mask=torch.tensor(mask, device=device),
            generation_config=GenerationConfig(
                max_new_tokens=self._lengths.max_length,
                eos_token_id=stops.ids.tolist(),
                pad_token_id=chat.pad_id,
                do_sample=False,
            ),
            logits_processor=LogitsProcessorList([choice]),
            stopping_criteria=StoppingCriteriaList([_Ended(width, chat, stops)] if stops.strings else []),
        )
        logprobs = torch.stack(choice.logprobs, dim=1).tolist()
        completions = []
        for prompt, row, scores in zip(prompts, output[:, width:].tolist(), logprobs, strict=True):
            size = stops.end_of(chat, row)
            length = len(row) if size is None else size
            completion = to_completion(
                chat, prompt, prompt + row, [0.0] * len(prompt) + scores, length, size is not None, stops
            )
            completions.append(completion)
        return completions


class _Choice:
    """A logits processor that leaves one token of each row: the one that a local actor would have taken."""

    def __init__(
        self,
        width: int,
        uniforms: torch.Tensor,
        sampling: SamplingConfig,
        lengths: LengthConfig,
        chat: ChatTokenizer,
        stops: StopConditions,
        whose: str,
    ) -> None:
        self._width, self._uniforms, self._sampling, self._whose = width, uniforms, sampling, whose
        self._min_length, self._vocabulary, self._stops = lengths.min_length, chat.size, stops
        self.logprobs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        produced = input_ids.size(1) - self._width
        banned = torch.full((len(scores),), produced < self._min_length, device=scores.device)
        draw = self._uniforms[:, produced : produced + 1]
        ids, chosen = sample_tokens(scores, draw, self._sampling, self._vocabulary, banned, self._stops.ids)
        refuse_not_finite(chosen, self._whose)
        self.logprobs.append(chosen.float())
        return torch.full_like(scores, -torch.inf).scatter(1, ids[:, None], 0.0)


class _Ended:
    """A stopping criterion: which rows contain one of the end strings."""

    def __init__(self, width: int, chat: ChatTokenizer, stops: StopConditions) -> None:
        self._width, self._chat, self._stops = width, chat, stops

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        responses = input_ids[:, self._width :].tolist()
        ended = [self._stops.hit_by(self._chat, response) for response in responses]
        return torch.tensor(ended, device=input_ids.device)
