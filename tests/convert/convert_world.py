"""One launched world that starts from converted checkpoints; what it computes is written down.

``torchrun --nproc-per-node N convert_world.py FOLDER NAME TP PP``. Not a test module: Megatron cannot be started twice
in one process.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nemo_magic.compat import cpu


def main(folder: Path, name: str, tp: int, pp: int) -> None:
    from nemo_magic.actors.distributed import World
    from nemo_magic.actors.weights import save_weights
    from tests.convert.tiny_hf import CHECKPOINTS

    out = folder / name
    out.mkdir(exist_ok=True)
    tokens = torch.load(folder / "tokens.pt")
    players = {}
    for checkpoint in CHECKPOINTS:
        player, cfg = start(folder, checkpoint, folder / "nemo" / checkpoint, tp, pp)
        players[checkpoint] = player
        save(logits_of(player.actor, tokens), out / f"{checkpoint}.pt")
    torch.save(gradients(players["qwen3"].actor, tokens), out / f"gradients_{os.environ['RANK']}.pt")
    torch.distributed.barrier()
    told = {one: decoded(players[one].actor, cfg) for one in ("llama32", "mistral", "qwen3")}
    if World.current().is_main:
        (out / "decoded.json").write_text(json.dumps(told))
    adapted, _ = start(folder, "llama31", folder / "nemo" / "llama31", tp, pp, adapters(folder))
    save(logits_of(adapted.actor, tokens), out / "adapted.pt")
    if name == "tp1":
        packed, _ = start(folder, "qwen", folder / "qwen.nemo", tp, pp)
        save(logits_of(packed.actor, tokens), out / "packed.pt")
        halved, _ = start(folder, "qwen", folder / "nemo" / "bf16", tp, pp)
        save(logits_of(halved.actor, tokens), out / "bf16.pt")
        save_weights(players["qwen"].actor, folder / "megatrons_own")
        restored_by_nemo(folder, out)
    if name == "tp2":
        learnt_and_saved(folder, players, cfg, tokens, World.current())


def adapters(folder: Path) -> list[str]:
    """Adapters of PEFT's that were converted."""
    from tests.convert.tiny_peft import ALPHA, RANK

    return [
        "model.peft.peft_scheme=lora", f"model.peft.lora_tuning.adapter_dim={RANK}",
        f"model.peft.lora_tuning.alpha={ALPHA}", f"model.peft.restore_from_path={folder / 'adapters'}",
    ]  # fmt: skip


def start(folder: Path, checkpoint: str, weights: Path, tp: int, pp: int, more: Sequence[str] = ()) -> tuple[Any, Any]:
    """A defender as a user would start one: ``model.yaml`` in a configuration folder, and restore_from_path."""
    from nemo_magic.actors.builder import build_policy
    from nemo_magic.config import compose, role_model
    from nemo_magic.game.episode import Role

    cfg = compose("own", [*overrides(folder, checkpoint, weights, tp, pp), *more], str(folder / "conf"))
    model = role_model(cfg, Role.DEFENDER)
    return build_policy(Role.DEFENDER, model, cfg.actors.defender, cfg.trainer, 5, backend=cfg.backend), cfg


def overrides(folder: Path, checkpoint: str, weights: Path, tp: int, pp: int) -> list[str]:
    return [
        f"model={checkpoint}",
        "cluster=cpu",
        f"trainer.devices={tp * pp}",
        f"model.tensor_model_parallel_size={tp}",
        f"model.pipeline_model_parallel_size={pp}",
        "model.transformer_engine=false",
        "model.megatron_amp_O2=false",
        "model.optim.name=cpu_fused_adam",
        f"actors.defender.restore_from_path={weights}",
        f"actors.attacker.restore_from_path={weights}",
        "data.train_files=[none]",
        "judge.urls=[http://127.0.0.1:9]",
        f"exp_manager.explicit_log_dir={folder / 'run'}",
    ]


def logits_of(actor: Any, tokens: torch.Tensor) -> torch.Tensor | None:
    """[b, S, padded vocabulary] on ranks of the last pipeline stage."""
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    from nemo_magic.rl.batch import Row, microbatches

    rows = [Row(tuple(row[:1].tolist()), tuple(row[1:].tolist())) for row in tokens]
    batches = microbatches(rows, len(rows), actor.chat.pad_id)

    def step(iterator: Any, model: torch.nn.Module) -> Any:
        output = actor._forward(model, next(iterator))
        return output, lambda logits, non_loss_data=True: gather_from_tensor_model_parallel_region(logits)

    actor._evaluate()
    with torch.no_grad():
        found = actor._schedule(batches, step, forward_only=True, collect_non_loss_data=True)
    return found[0] if found else None


def decoded(actor: Any, cfg: Any) -> list[dict[str, Any]]:
    """What an actor samples with its key/value cache: ids, log-probabilities then, and those of a forward pass."""
    from nemo_magic.actors.config import LengthConfig, SamplingConfig
    from nemo_magic.actors.generation import NativeGenerator
    from nemo_magic.rl.batch import Row, microbatches, scatter_back

    generator = NativeGenerator(cfg.generation)
    generator.load(actor)
    prompts = [tuple(range(4, 4 + size)) for size in (3, 40, 41, 90)]
    completions = generator.generate(prompts, [1, 2, 3, 4], SamplingConfig(), LengthConfig(12, 12))
    generator.release()
    batches = microbatches([Row(c.prompt_ids, c.response_ids) for c in completions], 2, actor.chat.pad_id)
    forward = scatter_back(batches, actor.token_logprobs(batches), len(prompts))
    return [
        {"ids": list(c.response_ids), "sampled": list(c.logprobs), "forward": list(f)}
        for c, f in zip(completions, forward, strict=True)
    ]


def gradients(actor: Any, tokens: torch.Tensor) -> dict[tuple[int, str], torch.Tensor]:
    """Layer and q or k → the gradient of the norm's weight on this rank, of the mean negative log-likelihood."""
    from nemo_magic.actors.protocol import Objective
    from nemo_magic.rl.batch import Row, microbatches

    rows = [Row(tuple(row[:1].tolist()), tuple(row[1:].tolist())) for row in tokens]
    trained = sum(len(row.response_ids) for row in rows)

    def loss(logprobs: torch.Tensor, batch: Any) -> Objective:
        return Objective(-(logprobs * batch.mask).sum() / trained, {})

    actor.accumulate(microbatches(rows, 1, actor.chat.pad_id), loss)
    return {
        (layer.layer_number - 1, name[0]): getattr(layer.self_attention, name).weight.grad.clone()
        for module in actor.get_model_module_list()
        for layer in module.decoder.layers
        for name in ("q_layernorm", "k_layernorm")
    }


def save(logits: torch.Tensor | None, path: Path) -> None:
    from megatron.core import parallel_state

    if logits is not None and parallel_state.get_tensor_model_parallel_rank() == 0:
        torch.save(logits.clone(), path)
    torch.distributed.barrier()


def restored_by_nemo(folder: Path, out: Path) -> None:
    """The .nemo file as NeMo opens it by itself: from its own model_config.yaml, on which only kernels are changed."""
    from nemo.collections.nlp.models.language_modeling.megatron_gpt_model import MegatronGPTModel
    from nemo.collections.nlp.parts.megatron_trainer_builder import MegatronTrainerBuilder
    from nemo.collections.nlp.parts.nlp_overrides import NLPSaveRestoreConnector
    from omegaconf import OmegaConf, open_dict

    trainer_keys = {"devices": 1, "num_nodes": 1, "accelerator": "cpu", "precision": "32", "logger": False}
    wanted = OmegaConf.create(
        {
            "trainer": trainer_keys | {"enable_checkpointing": False},
            "model": {"gradient_as_bucket_view": True, "seed": 1},
        }
    )
    trainer = MegatronTrainerBuilder(wanted).create_trainer()
    options = {"restore_path": str(folder / "qwen.nemo"), "trainer": trainer}
    connector = NLPSaveRestoreConnector()
    config = MegatronGPTModel.restore_from(**options, return_config=True, save_restore_connector=connector)
    with open_dict(config):
        config.transformer_engine = False
        config.megatron_amp_O2 = False
    model = MegatronGPTModel.restore_from(**options, override_config_path=config, save_restore_connector=connector)
    torch.save({key: value.clone() for key, value in model.model.state_dict().items() if value is not None},
               out / "by_nemo.pt")  # fmt: skip


def learnt_and_saved(folder: Path, players: dict[str, Any], cfg: Any, tokens: torch.Tensor, world: Any) -> None:
    """Weights change, and are saved wherever a run saves them."""
    from nemo_magic.actors.snapshots import save_snapshot
    from nemo_magic.actors.weights import save_weights
    from nemo_magic.config import save_resolved
    from nemo_magic.config.experiment import CheckpointConfig
    from nemo_magic.runtime.checkpoint_manager import CheckpointManager

    run, warm = folder / "run", folder / "warm"
    both = {"attacker": players["qwen_tied"], "defender": players["qwen"]}
    if world.is_main:
        # As a run with a role of its own shape says it.
        own = {"share_embeddings_and_output_weights": True}
        other = replace(cfg.actors.attacker, model=own, restore_from_path=str(folder / "nemo" / "qwen_tied"))
        mine = replace(cfg.actors.defender, model={}, restore_from_path=str(folder / "nemo" / "qwen"))
        untied = replace(cfg.model, share_embeddings_and_output_weights=False)
        cfg = replace(cfg, model=untied, actors=replace(cfg.actors, attacker=other, defender=mine))
        save_resolved(cfg, run)
        save_resolved(replace(cfg, sft=replace(cfg.sft, role="defender")), warm)
    for role, player in both.items():
        with torch.no_grad():
            for parameter in player.actor.parameters():
                parameter.mul_(1.25)
        save(logits_of(player.actor, tokens), folder / "tp2" / f"learnt_{role}.pt")
        save_snapshot(player.actor, run / "snapshots" / role / "round_0002")
    save_weights(both["defender"].actor, warm / "weights")
    CheckpointManager(world, run, CheckpointConfig(), print).save(4, both, {"state.json": {}}, {}, wait=True)
    both["defender"].actor.save_to(str(folder / "by_nemo.nemo"))
    if world.is_main:
        shutil.rmtree(run / "checkpoints" / "best", ignore_errors=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    cpu.install()
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
