"""Builds a role's policy with Megatron-core alone: process groups, tokenizer, model, weights, optimizer."""

from __future__ import annotations

import logging
import warnings
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from nemo_magic.actors import reference
from nemo_magic.actors.adapters import card_of_base, share_base
from nemo_magic.actors.errors import ModelError
from nemo_magic.actors.megatron.actor import MegatronActor
from nemo_magic.actors.megatron.model import build_model
from nemo_magic.actors.megatron.world import join_world, seed_everything
from nemo_magic.actors.tokenizer import ChatTokenizer
from nemo_magic.actors.trainable import TrainablePolicy
from nemo_magic.actors.weights import load_weights

if TYPE_CHECKING:
    from nemo_magic.actors.config import ActorConfig
    from nemo_magic.actors.protocol import Actor
    from nemo_magic.config.schema import TrainerConfig
    from nemo_magic.game.episode import Role
    from nemo_magic.model_config import ModelConfig, TokenizerConfig


def build_policy(
    role: Role,
    model: ModelConfig,
    actor: ActorConfig,
    trainer: TrainerConfig,
    seed: int,
    keep_reference: bool,
    moves_reference: bool,
    base: Actor | None,
) -> TrainablePolicy:
    """As ``actors.builder.build_policy``."""
    built = build_actor(role, model, actor, trainer, seed, base)
    optimizer, scheduler = built.begin_learning(trainer.gradient_clip_val)
    if keep_reference:
        reference.keep_reference(built, moves_reference)
    clip = trainer.gradient_clip_val
    return TrainablePolicy(role, built, optimizer, scheduler, clip, moves_reference=moves_reference)


def build_actor(
    role: Role, model: ModelConfig, actor: ActorConfig, trainer: TrainerConfig, seed: int, base: Actor | None
) -> MegatronActor:
    """As ``actors.builder.build_actor``: without gradients, main weights and moments."""
    warnings.filterwarnings("ignore", module=r"(megatron|torch)(\..*)?")
    for name in ("megatron.core", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    join_world(model, trainer)
    seed_everything(seed)
    chat = ChatTokenizer(SimpleNamespace(tokenizer=_tokenizer(role, model.tokenizer)))
    if model.vocab_size not in (None, chat.size):
        raise ModelError(
            f"the {role}'s tokenizer ({model.tokenizer.type}) has {chat.size} ids, and "
            f"model.vocab_size={model.vocab_size}: they belong to different models; set model.vocab_size=null if not"
        )
    module, wrapped = build_model(model, chat.size, trainer.precision)
    temperature = actor.sampling_params.temperature
    built = MegatronActor(role, model, module, wrapped, chat, temperature, actor.trust_weights)
    path = actor.restore_from_path
    if base is not None:
        share_base(built, base)
    elif path:
        load_weights(built, path)
    if model.peft.is_lora:
        assert path is not None
        built.add_adapters(card_of_base(path, model))
        if model.peft.restore_from_path is not None:
            load_weights(built, model.peft.restore_from_path)
    return built


def _tokenizer(role: Role, config: TokenizerConfig) -> Any:
    from transformers import AutoTokenizer

    if config.type is None:
        raise ModelError(f"the {role}'s model.tokenizer.type is null: name a folder or a model of the hub")
    try:
        return AutoTokenizer.from_pretrained(
            config.type, use_fast=config.use_fast, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"the {role}'s model.tokenizer.type={config.type} cannot be read: {error}") from error
