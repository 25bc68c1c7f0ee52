"""Who plays: the players that live here, and whoever speaks for each role."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

from nemo_magic.actors.build import Player, build_player
from nemo_magic.actors.errors import RemoteError
from nemo_magic.actors.generation import Generator, NativeGenerator
from nemo_magic.actors.remote import RemoteSpeaker
from nemo_magic.actors.speaker import LocalSpeaker, Speaker
from nemo_magic.actors.world import World
from nemo_magic.config import MagicConfig, role_model
from nemo_magic.game.episode import Completion, Role
from nemo_magic.game.prompts import Chat
from nemo_magic.training.entrants import SHARED


@dataclass
class Cast:
    """``players``: role → its local model; in self-play both roles have the same one. ``speakers``: every role's.
    ``generator``: what local players speak through."""

    world: World
    players: dict[Role, Player]
    speakers: dict[Role, Speaker]
    generator: Generator
    _open: ExitStack = field(default_factory=ExitStack)

    @property
    def named(self) -> dict[str, Player]:
        """Each player once, by the name it is saved under."""
        if len(self.players) == len(Role) and self.players[Role.ATTACKER] is self.players[Role.DEFENDER]:
            return {SHARED: self.players[Role.DEFENDER]}
        return {str(role): player for role, player in self.players.items()}

    def learns(self, role: Role) -> Player:
        """The player of ``role``, ready to learn; whoever else is here makes room for it."""
        learner = self.players[role]
        for player in self.named.values():
            if player is not learner:
                player.rest()
        learner.wake()
        return learner

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()


def assemble(cfg: MagicConfig, weights: Mapping[str, Path] | None = None) -> Cast:
    """Build every local player and a speaker for every role.

    ``weights``: player name → the weights it begins with, instead of ``actors.<role>.restore_from_path``.

    Raises:
        RemoteError: on every rank, when a role that a server plays is not to be had.
    """
    weights = weights or {}
    local = [role for role in Role if not cfg.actors.of(role).is_remote]

    def build(role: Role, name: str, number: int, steps: int | None = None) -> Player:
        options = cfg.actors.of(role)
        if name in weights:
            options = replace(options, restore_from_path=str(weights[name]))
        return build_player(
            role, role_model(cfg, role, steps), options, cfg.trainer, cfg.seed + number, cfg.grpo.kl_beta > 0
        )

    if cfg.game.self_play:
        # It learns in every round, whoever's turn it is.
        shared = build(Role.DEFENDER, SHARED, 1, cfg.game.max_steps * cfg.grpo.minibatches)
        players = dict.fromkeys(Role, shared)
    else:
        players = {role: build(role, str(role), number) for number, role in enumerate(Role) if role in local}
    world = World.current()
    generator = _generator(cfg, players)
    cast = Cast(world, players, {}, generator)
    cast._open.callback(generator.close)
    for role in Role:
        if role in players:
            longest = cfg.generation.trt_llm.max_input_len if cfg.generation.trt_llm.enable else None
            cast.speakers[role] = LocalSpeaker(players[role].actor, generator, cfg.actors.of(role), longest)
        else:
            cast.speakers[role] = cast._open.enter_context(_Remote(world, cfg, role))
    return cast


def _generator(cfg: MagicConfig, players: Mapping[Role, Player]) -> Generator:
    """One for all local players; an engine is built for the longest prompt and response of any."""
    if not cfg.generation.trt_llm.enable:
        return NativeGenerator(cfg.generation)
    from nemo_magic.actors.trtllm import TRTLLMGenerator

    limits = {role: cfg.actors.of(role).length_params for role in players}
    longest = max(limits[role].prompt_room(player.actor.cfg.encoder_seq_length) for role, player in players.items())
    return TRTLLMGenerator(cfg.generation, longest, max(limit.max_length for limit in limits.values()))


class RemoteFailed(RemoteError):
    """A server that plays a role failed some rank; raised on every rank alike."""


class _Remote:
    """A remote speaker for a whole world: one rank of each model-parallel group asks, all learn the same answer."""

    def __init__(self, world: World, cfg: MagicConfig, role: Role) -> None:
        self._world = world
        options = cfg.actors.of(role)
        key = f"actors.{role}.remote"
        self._speaker = RemoteSpeaker(options, key, clients=world.dp_size) if world.speaks else None
        self._together(lambda speaker: speaker.wait_ready(options.remote.give_up_after))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._speaker is not None:
            self._speaker.close()

    def say(self, chats: Sequence[Chat], seeds: Sequence[int], greedy: bool) -> list[Completion | None]:
        said: list[Completion | None] = []
        self._together(lambda speaker: said.extend(speaker.say(chats, seeds, greedy)))
        return self._world.share(said)

    def fit(self, text: str, chat_of: Callable[[str], Chat]) -> str:
        return text

    def _together(self, work: Callable[[RemoteSpeaker], object]) -> None:
        """Ask on the speaking ranks; an error on one is an error on all."""
        error = None
        if self._speaker is not None:
            try:
                work(self._speaker)
            except Exception as caught:
                # A rank that raised alone would leave its peers waiting.
                error = f"{type(caught).__name__}: {caught}"
        failed = [text for text in self._world.everyone(error) if text]
        if failed:
            raise RemoteFailed(failed[0])
