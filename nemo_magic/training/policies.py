"""The two policies of a game: those that can learn here, and the one that generates for each role."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

from nemo_magic.actors.builder import build_policy
from nemo_magic.actors.distributed import World
from nemo_magic.actors.errors import RemoteError
from nemo_magic.actors.generation import Generator
from nemo_magic.actors.protocol import Actor
from nemo_magic.actors.rank_group import run_on_sources
from nemo_magic.actors.trainable import TrainablePolicy
from nemo_magic.config import MagicConfig, role_model
from nemo_magic.config.adapters import shares_base
from nemo_magic.config.validation import models
from nemo_magic.game.episode import Role
from nemo_magic.league.participants import SHARED
from nemo_magic.rollout.local_policies import build_local_policies
from nemo_magic.rollout.policy import Policy
from nemo_magic.rollout.remote import RemotePolicy
from nemo_magic.rollout.shared import SharedRemotePolicy
from nemo_magic.runtime.preemption import Preemption


class RemotePolicyError(RemoteError):
    """A server that plays a role failed some rank; raised on every rank alike."""


@dataclass
class PolicyPair:
    """``trainable``: role → its model in this world; in self-play both roles have the same one. ``policies``: role →
    what generates for it, a server's included. ``generator``: what the models of this world generate with.
    ``preemption``: ends the wait for a server; signals reach it within its context, which is the caller's to enter."""

    world: World
    trainable: dict[Role, TrainablePolicy]
    policies: dict[Role, Policy]
    generator: Generator
    preemption: Preemption
    _resources: ExitStack = field(default_factory=ExitStack)

    @property
    def unique(self) -> dict[str, TrainablePolicy]:
        """Each trainable policy once, by the name it is saved under."""
        if len(self.trainable) == len(Role) and self.trainable[Role.ATTACKER] is self.trainable[Role.DEFENDER]:
            return {SHARED: self.trainable[Role.DEFENDER]}
        return {str(role): policy for role, policy in self.trainable.items()}

    def set_learner(self, role: Role) -> TrainablePolicy:
        """The policy of ``role``, ready to learn; the other one's optimizer leaves the device."""
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
        self._resources.close()


def build_policies(cfg: MagicConfig, weights: Mapping[str, Path] | None = None) -> PolicyPair:
    """Build a trainable policy for every role that no server plays, and what generates for each role.

    ``weights``: policy name → the weights it begins with, instead of ``actors.<role>.restore_from_path``, or its
    adapters, instead of ``model.peft.restore_from_path``.
    Raises:
        RemotePolicyError: on every rank, when the server that plays a role is unavailable.
    """
    weights = weights or {}

    def build(
        role: Role, name: str, number: int, steps: int | None = None, base: Actor | None = None
    ) -> TrainablePolicy:
        options, model, start = cfg.actors.of(role), role_model(cfg, role, steps), weights.get(name)
        if start is not None and model.peft.is_lora:
            model = replace(model, peft=replace(model.peft, restore_from_path=str(start)))
        elif start is not None:
            options = replace(options, restore_from_path=str(start))
        return build_policy(
            role,
            model,
            options,
            cfg.trainer,
            cfg.seed + number,
            backend=cfg.backend,
            keep_reference=cfg.grpo.kl_beta > 0,
            moves_reference=cfg.grpo.reference_every is not None,
            base=base,
        )

    if cfg.game.self_play:
        # It learns in every round, whoever's turn it is.
        shared = build(Role.DEFENDER, SHARED, 1, cfg.game.max_steps * cfg.grpo.minibatches)
        trainable = dict.fromkeys(Role, shared)
    else:
        is_shared, trainable = shares_base(cfg, models(cfg)), {}
        for number, role in enumerate(Role):
            if not cfg.actors.of(role).is_remote:
                base = next((other.actor for other in trainable.values()), None) if is_shared else None
                trainable[role] = build(role, str(role), number, base=base)
    actors = {role: policy.actor for role, policy in trainable.items()}
    generator, policies = build_local_policies(cfg.generation, actors, {role: cfg.actors.of(role) for role in Role})
    world = World.current()
    preemption = Preemption(world, cfg.exp_manager.max_seconds)
    pair = PolicyPair(world, trainable, dict(policies), generator, preemption)
    pair._resources.callback(generator.close)
    for role in Role:
        if role not in trainable:
            pair.policies[role] = _remote_policy(pair.world, cfg, role, pair._resources, pair.preemption)
    return pair


def _remote_policy(world: World, cfg: MagicConfig, role: Role, resources: ExitStack, preemption: Preemption) -> Policy:
    options = cfg.actors.of(role)

    def connect() -> RemotePolicy:
        policy = resources.enter_context(RemotePolicy(options, f"actors.{role}.remote", clients=world.dp_size))
        policy.wait_ready(options.remote.give_up_after)
        return policy

    remote = run_on_sources(world, connect, RemotePolicyError)
    return SharedRemotePolicy(world, remote, RemotePolicyError, preemption)
