"""Who plays: the players that live here, and whoever speaks for each role."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

from nemo_magic.actors.builder import TrainablePolicy, build_policy
from nemo_magic.actors.distributed import World
from nemo_magic.actors.errors import RemoteError
from nemo_magic.actors.generation import Generator, NativeGenerator
from nemo_magic.config import MagicConfig, role_model
from nemo_magic.game.episode import Completion, Role
from nemo_magic.game.prompts import Chat
from nemo_magic.league.participants import SHARED
from nemo_magic.rollout.policy import LocalPolicy, Policy
from nemo_magic.rollout.remote import RemotePolicy


@dataclass
class PolicyPair:
    """``trainable``: role → its local model; in self-play both roles have the same one. ``policies``: every role's.
    ``generator``: what local players speak through."""

    world: World
    trainable: dict[Role, TrainablePolicy]
    policies: dict[Role, Policy]
    generator: Generator
    _open: ExitStack = field(default_factory=ExitStack)

    @property
    def unique(self) -> dict[str, TrainablePolicy]:
        """Each player once, by the name it is saved under."""
        if len(self.trainable) == len(Role) and self.trainable[Role.ATTACKER] is self.trainable[Role.DEFENDER]:
            return {SHARED: self.trainable[Role.DEFENDER]}
        return {str(role): policy for role, policy in self.trainable.items()}

    def set_learner(self, role: Role) -> TrainablePolicy:
        """The player of ``role``, ready to learn; whoever else is here makes room for it."""
        learner = self.trainable[role]
        for policy in self.unique.values():
            if policy is not learner:
                policy.offload_optimizer()
        learner.onload_optimizer()
        return learner

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()


def build_policies(cfg: MagicConfig, weights: Mapping[str, Path] | None = None) -> PolicyPair:
    """Build every local player and a speaker for every role.

    ``weights``: player name → the weights it begins with, instead of ``actors.<role>.restore_from_path``.

    Raises:
        RemoteError: on every rank, when a role that a server plays is not to be had.
    """
    weights = weights or {}
    local = [role for role in Role if not cfg.actors.of(role).is_remote]

    def build(role: Role, name: str, number: int, steps: int | None = None) -> TrainablePolicy:
        options = cfg.actors.of(role)
        if name in weights:
            options = replace(options, restore_from_path=str(weights[name]))
        return build_policy(
            role, role_model(cfg, role, steps), options, cfg.trainer, cfg.seed + number, cfg.grpo.kl_beta > 0
        )

    if cfg.game.self_play:
        # It learns in every round, whoever's turn it is.
        shared = build(Role.DEFENDER, SHARED, 1, cfg.game.max_steps * cfg.grpo.minibatches)
        trainable = dict.fromkeys(Role, shared)
    else:
        trainable = {role: build(role, str(role), number) for number, role in enumerate(Role) if role in local}
    world = World.current()
    generator = _generator(cfg, trainable)
    pair = PolicyPair(world, trainable, {}, generator)
    pair._open.callback(generator.close)
    for role in Role:
        if role in trainable:
            longest = cfg.generation.trt_llm.max_input_len if cfg.generation.trt_llm.enable else None
            pair.policies[role] = LocalPolicy(trainable[role].actor, generator, cfg.actors.of(role), longest)
        else:
            pair.policies[role] = pair._open.enter_context(_SharedRemotePolicy(world, cfg, role))
    return pair


def _generator(cfg: MagicConfig, trainable: Mapping[Role, TrainablePolicy]) -> Generator:
    """One for all local players; an engine is built for the longest prompt and response of any."""
    if not cfg.generation.trt_llm.enable:
        return NativeGenerator(cfg.generation)
    from nemo_magic.actors.trtllm import TRTLLMGenerator

    limits = {role: cfg.actors.of(role).length_params for role in trainable}
    longest = max(limits[role].prompt_room(policy.actor.cfg.encoder_seq_length) for role, policy in trainable.items())
    return TRTLLMGenerator(cfg.generation, longest, max(limit.max_length for limit in limits.values()))


class RemotePolicyError(RemoteError):
    """A server that plays a role failed some rank; raised on every rank alike."""


class _SharedRemotePolicy:
    """A remote speaker for a whole world: one rank of each model-parallel group asks, all learn the same answer."""

    def __init__(self, world: World, cfg: MagicConfig, role: Role) -> None:
        self._world = world
        options = cfg.actors.of(role)
        key = f"actors.{role}.remote"
        self._policy = RemotePolicy(options, key, clients=world.dp_size) if world.is_source else None
        self._together(lambda policy: policy.wait_ready(options.remote.give_up_after))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._policy is not None:
            self._policy.close()

    def generate(self, chats: Sequence[Chat], seeds: Sequence[int], greedy: bool) -> list[Completion | None]:
        said: list[Completion | None] = []
        self._together(lambda policy: said.extend(policy.generate(chats, seeds, greedy)))
        return self._world.broadcast_model_parallel(said)

    def truncate_to_context(self, text: str, chat_of: Callable[[str], Chat]) -> str:
        return text

    def _together(self, work: Callable[[RemotePolicy], object]) -> None:
        """Ask on the speaking ranks; an error on one is an error on all."""
        error = None
        if self._policy is not None:
            try:
                work(self._policy)
            except Exception as caught:
                # A rank that raised alone would leave its peers waiting.
                error = f"{type(caught).__name__}: {caught}"
        failed = [text for text in self._world.all_gather(error) if text]
        if failed:
            raise RemotePolicyError(failed[0])
