"""Builds a role's policy with NeMo-Aligner: process groups, model, tokenizer and optimizer from config.

This is the one module of ours that touches the global state of NeMo and Lightning.
"""

from __future__ import annotations

import dataclasses
import logging as std_logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from nemo.collections.nlp.parts.megatron_trainer_builder import MegatronTrainerBuilder
from nemo.utils import logging as nemo_logging
from nemo_aligner.utils.train_script_utils import (
    extract_optimizer_scheduler_from_ptl_model,
    init_distributed,
    init_using_ptl,
)
from omegaconf import DictConfig, OmegaConf

from nemo_magic.actors import reference
from nemo_magic.actors.adapters import card_of_base, share_base
from nemo_magic.actors.errors import ModelError
from nemo_magic.actors.nemo_aligner.actor import MagicActor
from nemo_magic.actors.trainable import TrainablePolicy
from nemo_magic.actors.weights import load_weights
from nemo_magic.game.episode import Role

if TYPE_CHECKING:
    from nemo_magic.actors.config import ActorConfig
    from nemo_magic.actors.protocol import Actor
    from nemo_magic.config.schema import TrainerConfig
    from nemo_magic.model_config import ModelConfig


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
    _quieten()
    cfg = _nemo_config(role, model, actor, trainer, seed)
    lightning = MegatronTrainerBuilder(cfg).create_trainer()
    path = actor.restore_from_path
    if path and path.endswith(".nemo") and not Path(path).exists():
        raise FileNotFoundError(f"actors.{role}.restore_from_path={path}: no such file")
    built = MagicActor(cfg.model, lightning)
    if model.vocab_size not in (None, built.tokenizer.vocab_size):
        raise ModelError(
            f"the {role}'s tokenizer ({model.tokenizer.type}) has {built.tokenizer.vocab_size} ids, and "
            f"model.vocab_size={model.vocab_size}: they belong to different models; set model.vocab_size=null if not"
        )
    init_distributed(lightning, built, model.transformer_engine)
    if base is not None:
        share_base(built, base)
    elif path:
        load_weights(built, path)
    if model.peft.is_lora:
        assert path is not None
        built.add_adapters(card_of_base(path, model))
        if model.peft.restore_from_path is not None:
            load_weights(built, model.peft.restore_from_path)
    # Lightning sizes its hooks by a dataloader; the loop brings its own batches.
    rows: Any = list(range(cfg.model.global_batch_size))
    init_using_ptl(lightning, built, torch.utils.data.DataLoader(rows, batch_size=len(rows)), rows)
    if keep_reference:
        reference.keep_reference(built, moves_reference)
    optimizer, scheduler = extract_optimizer_scheduler_from_ptl_model(built)
    return TrainablePolicy(
        role, built, optimizer, scheduler, trainer.gradient_clip_val, moves_reference=moves_reference
    )


def _quieten() -> None:
    """NeMo and Lightning warn about each of dozens of optional packages; errors still show."""
    warnings.filterwarnings("ignore", module=r"(nemo|megatron|lightning|torch|nemo_aligner|apex|pydantic)(\..*)?")
    nemo_logging.setLevel(nemo_logging.ERROR)
    for name in ("lightning.pytorch", "lightning.fabric", "megatron.core", "torch.distributed", "nv_one_logger"):
        std_logging.getLogger(name).setLevel(std_logging.ERROR)


def _nemo_config(role: Role, model: ModelConfig, actor: ActorConfig, trainer: TrainerConfig, seed: int) -> DictConfig:
    """NeMo's untyped configuration from our typed one: the keys its classes read, under the names they read."""
    world_size = trainer.num_nodes * trainer.devices
    tp, pp = model.tensor_model_parallel_size, model.pipeline_model_parallel_size
    keys, lora = dataclasses.asdict(model), model.peft.lora_tuning
    keys["optim"] = {k: v for k, v in keys["optim"].items() if v is not None}
    # NeMo pads the vocabulary to a multiple of this times TP; ours names the multiple itself, equal at every TP.
    keys["make_vocab_size_divisible_by"] = model.make_vocab_size_divisible_by // tp
    keys |= {
        "mcore_gpt": True,
        "seed": seed,
        "precision": trainer.precision,
        "gradient_as_bucket_view": True,
        "pre_process": True,
        "post_process": True,
        # The microbatch calculator wants a product; MagicActor passes its own number of microbatches to the schedule.
        "global_batch_size": model.micro_batch_size * (world_size // (tp * pp)),
        "data": {
            "data_impl": "jsonl",
            "data_prefix": None,
            "splits_string": None,
            "seq_length": model.encoder_seq_length,
        },
        "peft": {
            "peft_scheme": model.peft.peft_scheme,
            "restore_from_path": None,  # NeMo's own format of adapters
            "lora_tuning": dataclasses.asdict(lora) | {"target_modules": lora.targets},
        },
        "ppo": {
            "length_params": dataclasses.asdict(actor.length_params),
            "sampling_params": dataclasses.asdict(actor.sampling_params),
            "offload_adam_states": False,
            "entropy_bonus": 0.0,
            "ratio_eps": 0.2,
            "forward_micro_batch_size": model.micro_batch_size,
            "trt_llm": {"enable": False},
        },
        "magic": {
            "role": role.value,
            "temperature": actor.sampling_params.temperature,
            "trust_weights": actor.trust_weights,
        },
    }
    lightning = {
        "num_nodes": trainer.num_nodes,
        "devices": trainer.devices,
        "accelerator": trainer.accelerator,
        "precision": trainer.precision,
        "gradient_clip_val": trainer.gradient_clip_val,
        "logger": False,
        "enable_checkpointing": False,
        "use_distributed_sampler": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 1,
        "max_steps": -1,
    }
    exp_manager = {"log_tflops_per_sec_per_gpu": False}
    return OmegaConf.create({"model": keys, "trainer": lightning, "exp_manager": exp_manager})
