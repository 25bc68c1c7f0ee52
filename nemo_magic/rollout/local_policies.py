"""Policies of Megatron models in this world, which share one generator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nemo_magic.actors.config import ActorConfig, GenerationConfig
from nemo_magic.actors.distributed import World
from nemo_magic.actors.generation import Generator, NativeGenerator
from nemo_magic.game.episode import Role
from nemo_magic.rollout.policy import LocalPolicy

if TYPE_CHECKING:
    from nemo_magic.actors.actor import MagicActor


def build_local_policies(
    config: GenerationConfig, actors: Mapping[Role, MagicActor], options: Mapping[Role, ActorConfig]
) -> tuple[Generator, dict[Role, LocalPolicy]]:
    """One generator for all actors, and a policy for each role's. Close the generator when nothing is generated any
    more.

    A TensorRT-LLM engine is built for the longest prompt and response of any role.
    """
    engine = config.trt_llm
    generator: Generator
    if engine.enable:
        from nemo_magic.actors.trtllm import TRTLLMGenerator

        limits = {role: options[role].length_params for role in actors}
        longest = max(limits[role].prompt_room(actor.cfg.encoder_seq_length) for role, actor in actors.items())
        generator = TRTLLMGenerator(config, longest, max(limit.max_length for limit in limits.values()))
    else:
        generator = NativeGenerator(config)
    longest_prompt = engine.max_input_len if engine.enable else None
    return generator, {
        role: LocalPolicy(actor, generator, options[role], longest_prompt, World.current())
        for role, actor in actors.items()
    }
