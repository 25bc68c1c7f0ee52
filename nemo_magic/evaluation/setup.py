"""What an evaluation works with: policies and a judge, each with a cache of what it answered before."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_magic.actors.config import ActorConfig, LengthConfig
from nemo_magic.actors.rank_group import RankGroup, SingleProcess, run_on_all, run_on_sources
from nemo_magic.config import MagicConfig, role_model
from nemo_magic.config.adapters import shares_base
from nemo_magic.config.defence import DefenceConfig
from nemo_magic.config.evaluation import evaluated_roles, needs_world
from nemo_magic.config.validation import models
from nemo_magic.evaluation.cached_judge import CachedJudge
from nemo_magic.evaluation.errors import EvaluationError
from nemo_magic.evaluation.fingerprint import fingerprint
from nemo_magic.game.episode import Role
from nemo_magic.judge.client import JudgeClient, refuse_incapable
from nemo_magic.rollout.cached import CachedPolicy
from nemo_magic.rollout.remote import RemotePolicy
from nemo_magic.rollout.response_cache import ResponseCache
from nemo_magic.rollout.shared import SharedPolicy, SharedRemotePolicy
from nemo_magic.runtime.preemption import Preemption

if TYPE_CHECKING:
    from nemo_magic.rollout.policy import Policy

ANSWERS, VERDICTS = "answers", "verdicts"

_NOT_OF_THE_MODEL = (
    "optim",
    "micro_batch_size",
    "global_batch_size",
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "sequence_parallel",
)
"""Keys of a model that say where it runs and how it learns: its completions are the same at any layout."""


@dataclass(frozen=True)
class EvaluationSetup:
    """Policies, judge and caches of an evaluation.

    ``identities``: what each role's completions depend on, beside the chat. ``evaluator``: Self-Eval's, where it is not
    the defender itself. ``preemption``: ends the wait for a server; signals reach it within its context, which is the
    caller's to enter.
    """

    ranks: RankGroup
    policies: dict[Role, CachedPolicy]
    identities: dict[Role, Any]
    judge: CachedJudge
    guard: str
    evaluator: CachedPolicy | None
    preemption: Preemption

    def print(self, text: str) -> None:
        """Print a line on rank 0."""
        if self.ranks.is_main:
            print(text, flush=True)

    def newly_asked(self) -> tuple[int, int]:
        """(messages generated, conversations judged) in this evaluation over all ranks, not read back."""
        policies = [*self.policies.values(), *([self.evaluator] if self.evaluator else [])]
        generated, judged = self._sums(sum(policy.generated for policy in policies), self.judge.judged)
        return generated, judged

    def neutralised(self) -> int:
        """Control tokens that messages spelled and that this world's models read as text, over all ranks."""
        (count,) = self._sums(sum(policy.neutralised for policy in self.policies.values()))
        return count

    def _sums(self, *own: int) -> list[int]:
        counts = self.ranks.gather_data_parallel(self.ranks.broadcast_model_parallel(own))
        return [sum(column) for column in zip(*counts, strict=True)]


def build_setup(cfg: MagicConfig, folder: Path, resources: ExitStack) -> EvaluationSetup:
    """Build or connect to every policy and the judge; ``resources`` closes them. Caches are below ``folder``.

    Raises:
        EvaluationError: on every rank, where a server or the judge could not be had.
    """
    ranks, policies, preemption = _build_policies(cfg, resources)
    cache = run_on_sources(ranks, lambda: ResponseCache(folder / ANSWERS, ranks.rank), EvaluationError)
    identities = {role: _identity(cfg, role) for role in policies}
    cached = {
        role: CachedPolicy(
            ranks, policy, cache, identities[role], asdict(evaluation_options(cfg, role).sampling_params)
        )
        for role, policy in policies.items()
    }

    def connect() -> tuple[JudgeClient, ResponseCache, str]:
        client = resources.enter_context(JudgeClient(cfg.judge))
        info = client.wait_ready(cfg.judge.give_up_after)
        refuse_incapable(info, cfg.eval.fields())
        return client, ResponseCache(folder / VERDICTS, ranks.rank), info.guard

    client, verdicts, guard = run_on_sources(ranks, connect, EvaluationError) or (None, None, "")
    return EvaluationSetup(
        ranks,
        cached,
        identities,
        CachedJudge(ranks, client, verdicts, guard, preemption),
        ranks.broadcast_model_parallel(guard),
        _build_evaluator(cfg.eval.defence, ranks, cache, resources, preemption),
        preemption,
    )


def evaluation_options(cfg: MagicConfig, role: Role) -> ActorConfig:
    """The role's options in an evaluation.

    At temperature 0 the first tokens of an answer do not depend on how long it may become: of the defender's answers,
    the tokens that will not be judged are not generated either.
    """
    options, limits = cfg.actors.of(role), cfg.actors.of(role).length_params
    if role is Role.ATTACKER or limits.max_length <= cfg.eval.max_judged_tokens:
        return options
    length = cfg.eval.max_judged_tokens
    room = None if options.is_remote else limits.max_prompt_length
    if options.is_megatron:
        room = limits.prompt_room(role_model(cfg, role).encoder_seq_length)
    shorter = replace(limits, max_length=length, min_length=min(length, limits.min_length), max_prompt_length=room)
    return replace(options, length_params=shorter)


def _build_policies(cfg: MagicConfig, resources: ExitStack) -> tuple[RankGroup, Mapping[Role, Policy], Preemption]:
    roles = {role: evaluation_options(cfg, role) for role in evaluated_roles(cfg)}
    ranks: RankGroup = SingleProcess()
    policies: dict[Role, Policy] = {}
    if needs_world(cfg):
        ranks, policies = _build_local_policies(cfg, roles, resources)
    preemption = Preemption(ranks, cfg.exp_manager.max_seconds)
    for role, options in roles.items():
        if options.hf_path:
            policies[role] = _huggingface_policy(cfg, options, ranks)
        elif options.is_remote:
            policies[role] = _remote_policy(options, f"actors.{role}.remote", ranks, resources, preemption)
    return ranks, policies, preemption


def _build_local_policies(
    cfg: MagicConfig, roles: Mapping[Role, ActorConfig], resources: ExitStack
) -> tuple[RankGroup, dict[Role, Policy]]:
    """Megatron models of the roles that have one, for generation only."""
    from nemo_magic.actors.builder import build_actor
    from nemo_magic.actors.distributed import World
    from nemo_magic.actors.protocol import Actor
    from nemo_magic.rollout.local_policies import build_local_policies

    shapes, actors = models(cfg, "evaluate"), dict[Role, Actor]()
    is_shared = shares_base(cfg, shapes)
    for number, role in enumerate(Role):
        if role in shapes:
            base = next(iter(actors.values()), None) if is_shared else None
            actors[role] = build_actor(
                role, shapes[role], roles[role], cfg.trainer, cfg.seed + number, backend=cfg.backend, base=base
            )
    generator, policies = build_local_policies(cfg.generation, actors, roles)
    resources.callback(generator.close)
    return World.current(), dict(policies)


def _huggingface_policy(cfg: MagicConfig, options: ActorConfig, ranks: RankGroup) -> Policy:
    from nemo_magic.rollout.huggingface import HuggingFacePolicy

    def load() -> Policy:
        path, accelerator = options.hf_path, cfg.trainer.accelerator
        assert path is not None
        return HuggingFacePolicy(path, options, cfg.generation.batch_size, accelerator, generates=ranks.is_source)

    return SharedPolicy(ranks, run_on_all(ranks, load, EvaluationError), EvaluationError)


def _remote_policy(
    options: ActorConfig, key: str, ranks: RankGroup, resources: ExitStack, preemption: Preemption
) -> Policy:
    def connect() -> RemotePolicy:
        policy = resources.enter_context(RemotePolicy(options, key, clients=ranks.dp_size))
        policy.wait_ready(options.remote.give_up_after)
        return policy

    remote = run_on_sources(ranks, connect, EvaluationError)
    return SharedRemotePolicy(ranks, remote, EvaluationError, preemption)


def _build_evaluator(
    defence: DefenceConfig,
    ranks: RankGroup,
    cache: ResponseCache | None,
    resources: ExitStack,
    preemption: Preemption,
) -> CachedPolicy | None:
    """Self-Eval's evaluator, where it is a server of its own."""
    server = defence.self_eval.evaluator
    if defence.kind != "self_eval" or not server.urls:
        return None
    lengths = LengthConfig(max_length=defence.self_eval.max_tokens, min_length=0)
    options = ActorConfig(length_params=lengths, remote=server)
    policy = _remote_policy(options, "eval.defence.self_eval.evaluator", ranks, resources, preemption)
    identity = {"evaluator": server.model, "extra_body": server.extra_body, "max_tokens": defence.self_eval.max_tokens}
    return CachedPolicy(ranks, policy, cache, identity)


def _identity(cfg: MagicConfig, role: Role) -> dict[str, Any]:
    """What a role's completions at temperature 0 depend on beside the chat, as JSON.

    A server is known by its model's name only; weights that it swaps under that name are not noticed.
    """
    options = evaluation_options(cfg, role)
    settings = {
        "length_params": asdict(options.length_params),
        "end_strings": list(options.sampling_params.end_strings),
    }
    if options.is_remote:
        return {"role": str(role), "remote": options.remote.model, "extra_body": options.remote.extra_body, **settings}
    if path := options.hf_path:
        return {"role": str(role), "hf": fingerprint(path), "dtype": options.hf.dtype, **settings}
    model = asdict(models(cfg, "evaluate")[role])
    for key in _NOT_OF_THE_MODEL:
        model.pop(key, None)
    weights = fingerprint(options.restore_from_path) or f"random, seed {cfg.seed}"
    identity = {"role": str(role), "weights": weights, "model": model, "precision": cfg.trainer.precision, **settings}
    peft = model.pop("peft")
    if peft["peft_scheme"] == "none":
        return identity
    return identity | {"peft": peft | {"restore_from_path": fingerprint(peft["restore_from_path"])}}
