"""What generates for a role: its own Megatron model (here), a Hugging Face model in this process (huggingface.py), a
server (remote.py), or any of these with a cache (cached.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from nemo_magic.actors.errors import NotFiniteError
from nemo_magic.actors.rank_group import RankGroup, SingleProcess, run_on_all
from nemo_magic.game.episode import Completion, NoAnswer
from nemo_magic.game.prompts import Chat

if TYPE_CHECKING:
    from nemo_magic.actors.config import ActorConfig
    from nemo_magic.actors.generation import Generator
    from nemo_magic.actors.protocol import Actor
    from nemo_magic.actors.tokenizer import ChatTokenizer


class Policy(Protocol):
    """Generates the next message of chats. Every rank of a model-parallel group calls with the same arguments."""

    @property
    def neutralised(self) -> int:
        """Control tokens that messages spelled so far, which the model read as text. 0 for a server: it reads by
        itself."""

    def generate(
        self, chats: Sequence[Chat], seeds: Sequence[int], greedy: bool
    ) -> Sequence[Completion | NoAnswer | None]:
        """One completion per chat, in order; None where the chat is longer than the model can read, NoAnswer where the
        server that plays the role gave none.

        ``seeds`` holds one 64-bit seed per chat.
        """

    def truncate_to_context(self, text: str, chat_of: Callable[[str], Chat]) -> str:
        """As much of the beginning of ``text`` as leaves ``chat_of(text)`` readable."""


class LocalPolicy:
    """A role's own model, through the world's generator, with the role's sampling and length options.

    ``longest_prompt``: what the generator can read, in tokens, where that is less than the model could. ``ranks``:
    those that generate together.
    """

    def __init__(
        self,
        actor: Actor,
        generator: Generator,
        options: ActorConfig,
        longest_prompt: int | None = None,
        ranks: RankGroup | None = None,
    ) -> None:
        self._ranks = ranks or SingleProcess()
        self._actor = actor
        self._generator = generator
        self._sampling = options.sampling_params
        self._lengths = options.length_params
        room = self._lengths.prompt_room(actor.cfg.encoder_seq_length)
        self._room = room if longest_prompt is None else min(room, longest_prompt)
        # The samples of a group share prompts, and a prompt that was truncated is generated from next.
        self._prompt_ids = lru_cache(maxsize=4096)(actor.chat.prompt_ids)

    @property
    def neutralised(self) -> int:
        """As ``Policy.neutralised``."""
        return self._actor.chat.neutralised

    def generate(self, chats: Sequence[Chat], seeds: Sequence[int], greedy: bool) -> list[Completion | None]:
        """As ``Policy.generate``; all ranks take part.

        Raises:
            NotFiniteError: on every rank, where the model's logits are not finite on one.
        """
        prompts = [self._prompt_ids(chat) for chat in chats]
        readable = [i for i, prompt in enumerate(prompts) if len(prompt) <= self._room]
        sampling = replace(self._sampling, use_greedy=True) if greedy else self._sampling
        completions: list[Completion | None] = [None] * len(chats)
        self._generator.load(self._actor)
        try:
            generated = run_on_all(
                self._ranks,
                lambda: self._generator.generate(
                    [prompts[i] for i in readable], [seeds[i] for i in readable], sampling, self._lengths
                ),
                NotFiniteError,
                NotFiniteError,
            )
        finally:
            self._generator.pause()
        for i, completion in zip(readable, generated, strict=True):
            completions[i] = completion
        return completions

    def truncate_to_context(self, text: str, chat_of: Callable[[str], Chat]) -> str:
        """As ``Policy.truncate_to_context``."""
        return truncated(text, chat_of, self._actor.chat, self._prompt_ids, self._room)


def truncated(
    text: str,
    chat_of: Callable[[str], Chat],
    chat: ChatTokenizer,
    prompt_ids: Callable[[Chat], tuple[int, ...]],
    room: int,
) -> str:
    """As much of the beginning of ``text`` as leaves ``chat_of(text)`` at most ``room`` tokens long."""
    excess = len(prompt_ids(chat_of(text))) - room
    while excess > 0 and text:
        ids = chat.encode(text)
        text = chat.text(ids[: max(0, len(ids) - excess)])
        excess = len(prompt_ids(chat_of(text))) - room
    return text
