"""Checks of roles that a server or transformers plays, and of the role that is served."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nemo_magic.actors.config import NATIVE, ActorConfig
from nemo_magic.config.schema import MagicConfig
from nemo_magic.game.episode import Role


def remote_problems(cfg: MagicConfig, command: str) -> Iterator[str]:
    """A role that a server plays cannot learn, and has no options of a local model."""
    if command == "sft":
        if cfg.actors.of(cfg.sft.model_role).is_remote:
            yield f"actors.{cfg.sft.model_role}.remote.urls has to be [] where sft.role={cfg.sft.role} is to be trained"
        return
    remote = [role for role in Role if cfg.actors.of(role).is_remote]
    if len(remote) == len(Role):
        yield "actors.attacker.remote.urls and actors.defender.remote.urls are both given: one role has to be local"
        return
    for role in remote:
        options = cfg.actors.of(role)
        sampling, urls = options.sampling_params, f"actors.{role}.remote.urls={list(options.remote.urls)}"
        if role in cfg.game.schedule.train_roles:
            yield (
                f"{urls}: a role that a server plays cannot learn, and game.schedule.train_roles="
                f"{list(cfg.game.schedule.train_roles)}: set game.schedule.train_roles=[{role.opponent}]"
            )
        yield from server_problems(options, role)
        if sampling.top_k:
            yield (
                f"{urls}: the protocol has no actors.{role}.sampling_params.top_k={sampling.top_k}, set it to 0 and, "
                f"for a server that knows it, actors.{role}.remote.extra_body.top_k={sampling.top_k}"
            )
        if options.length_params.min_length > 1:
            yield (
                f"{urls}: the protocol has no actors.{role}.length_params.min_length="
                f"{options.length_params.min_length}, set it to 1"
            )


def server_problems(options: ActorConfig, role: Role) -> Iterator[str]:
    """A server names its model, and has its own weights."""
    urls = f"actors.{role}.remote.urls={list(options.remote.urls)}"
    if not options.remote.model:
        yield f"{urls}: actors.{role}.remote.model has to be given, the model's name on that server"
    if options.restore_from_path is not None:
        yield (
            f"{urls}: the server has its own weights, set actors.{role}.restore_from_path=null, which is "
            f"{options.restore_from_path}"
        )


def huggingface_problems(cfg: MagicConfig, roles: Iterable[Role]) -> Iterator[str]:
    """Only an evaluation takes weights of Hugging Face as they are."""
    for role in roles:
        options = cfg.actors.of(role)
        if (path := options.hf_path) is not None:
            key = "hf.path" if options.hf.path else "restore_from_path"
            yield (
                f"actors.{role}.{key}={path} is a Hugging Face model, which only `nemo-magic evaluate` takes as it is: "
                f"`nemo-magic convert hf-to-nemo {path} TARGET`, and set actors.{role}.restore_from_path=TARGET"
            )


def serving_problems(cfg: MagicConfig) -> Iterator[str]:
    """A served role is a local actor that decodes natively."""
    if cfg.actors.of(cfg.serve.role).is_remote:
        yield f"actors.{cfg.serve.role}.remote.urls has to be [] where serve.role={cfg.serve.role} is to be served"
    if cfg.generation.engine != NATIVE:
        yield f"generation.engine={cfg.generation.engine}: a served actor decodes natively, set it to native"
