"""Local models that only speak: what an evaluation needs of a world."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nemo_magic.actors.builder import build_policy
from nemo_magic.actors.config import ActorConfig
from nemo_magic.actors.distributed import World
from nemo_magic.actors.generation import Generator, NativeGenerator
from nemo_magic.config import MagicConfig
from nemo_magic.config.validation import models
from nemo_magic.game.episode import Role
from nemo_magic.rollout.policy import LocalPolicy, Policy


def local_speakers(
    cfg: MagicConfig, options: Mapping[Role, ActorConfig], at_end: Callable[[Callable[[], object]], object]
) -> tuple[World, dict[Role, Policy | None]]:
    """Build the model of every role of ``options`` that no server plays. ``at_end`` takes what is to be called last."""
    shapes = models(cfg, "evaluate")
    actors = {
        role: build_policy(role, shapes[role], options[role], cfg.trainer, cfg.seed + number).actor
        for number, role in enumerate(Role)
        if role in shapes
    }
    engine = cfg.generation.trt_llm
    generator: Generator
    if engine.enable:
        from nemo_magic.actors.trtllm import TRTLLMGenerator

        limits = {role: options[role].length_params for role in actors}
        longest = max(limits[role].prompt_room(actor.cfg.encoder_seq_length) for role, actor in actors.items())
        generator = TRTLLMGenerator(cfg.generation, longest, max(limit.max_length for limit in limits.values()))
    else:
        generator = NativeGenerator(cfg.generation)
    at_end(generator.close)
    room = engine.max_input_len if engine.enable else None
    return World.current(), {role: LocalPolicy(actor, generator, options[role], room) for role, actor in actors.items()}
