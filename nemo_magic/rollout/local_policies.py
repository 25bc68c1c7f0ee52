"""Policies of Megatron models in this world, which share one generator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nemo_magic.actors.builder import build_generator
from nemo_magic.actors.config import TRT_LLM, ActorConfig, GenerationConfig
from nemo_magic.actors.distributed import World
from nemo_magic.actors.generation import Generator
from nemo_magic.game.episode import Role
from nemo_magic.rollout.policy import LocalPolicy

if TYPE_CHECKING:
    from nemo_magic.actors.protocol import Actor


def build_local_policies(
    config: GenerationConfig, actors: Mapping[Role, Actor], options: Mapping[Role, ActorConfig]
) -> tuple[Generator, dict[Role, LocalPolicy]]:
    """One generator for all actors (``actors.builder.build_generator``), and a policy for each role's."""
    generator = build_generator(config, actors, options)
    longest_prompt = config.trt_llm.max_input_len if config.engine == TRT_LLM else None
    return generator, {
        role: LocalPolicy(actor, generator, options[role], longest_prompt, World.current())
        for role, actor in actors.items()
    }
