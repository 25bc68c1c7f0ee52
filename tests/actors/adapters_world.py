"""One launched world of two roles that are adapters on one base: what the tests of adapters compare, written down.

``torchrun --nproc-per-node N adapters_world.py FOLDER NAME TP PP``; the world named ``tp1`` comes first and makes the
base, the adapters and the checkpoint that all others load. Not a test module: Megatron cannot be started twice in one
process.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nemo_magic.compat import cpu
from tests.actors.measure import rows

SEEDS = list(range(100, 112))


def main(folder: Path, name: str, tp: int, pp: int) -> None:
    from nemo_magic.actors.adapters import adapter_parameters
    from nemo_magic.actors.distributed import World, destroy
    from nemo_magic.actors.snapshots import SnapshotCache, save_snapshot
    from nemo_magic.actors.weights import load_policies, save_weights

    if name == "tp1":
        make_base(folder)
    cfg = config(folder, tp, pp)
    if name == "tp1":
        attacker, _ = policies(cfg, folder, begins=False)
        learn(attacker, cfg, 3)
        save_weights(attacker.actor, folder / "adapters")
    attacker, defender = policies(cfg, folder)
    actor, other, world = attacker.actor, defender.actor, World.current()
    found: dict[str, Any] = {"shared": shared(actor, other), "trainable": sum(p.numel() for p in learning(actor))}
    found["all"] = sum(p.numel() for p in module(actor).parameters())
    found["logprobs"], found["untrained"] = scores(attacker), scores(defender)
    found["reference"], found["reference_of_new"] = scores(attacker, True), scores(defender, True)
    found |= generation(attacker, cfg)
    found |= defects_of_saving(attacker, folder, name, tp)
    found["gradients"] = gradients(attacker, cfg, folder / "gradients" / name)
    if name == "tp1":
        found["recompute"] = recompute(attacker, cfg)
    before, said = base_of(actor), generated(defender, cfg)
    norms = learn(attacker, cfg, 2)
    found["learned"] = {
        "norms": norms,
        "moved": scores(attacker) != found["logprobs"],
        "other_same": scores(defender) == found["untrained"] and generated(defender, cfg) == said,
        "reference_same": scores(attacker, True) == found["logprobs"],
        "base_same": all(torch.equal(tensor, before[key]) for key, tensor in base_of(other).items()),
    }
    own, folder_of_self = scores(attacker), folder / "snapshots" / name
    learn(defender, cfg, 2)
    found["learned"]["attacker_same"] = scores(attacker) == own
    snapshot = save_snapshot(actor, folder_of_self)
    learn(attacker, cfg, 1)
    later, cache = scores(attacker), SnapshotCache(1 << 30)
    for _ in range(2):  # from disk, then from memory
        with cache.use_snapshot(attacker, snapshot.folder):
            assert scores(attacker) == own
    assert scores(attacker) == later
    if name == "tp1":
        save({"attacker": attacker, "defender": defender}, folder / "policies", world)
    load_policies({"attacker": attacker, "defender": defender}, folder / "policies")
    found["restored"] = scores(attacker)
    learn(attacker, cfg, 1)
    found["went_on"] = scores(attacker)
    found["equal_ranks"] = equal_ranks(actor) if pp == 1 else True
    found["names"] = sorted(adapter_parameters(actor))
    everyone: list[Any] = [None] * world.size
    torch.distributed.all_gather_object(everyone, found)
    if world.is_main:
        (folder / f"{name}.json").write_text(json.dumps(everyone))
    destroy()


def config(folder: Path, tp: int, pp: int) -> Any:
    from nemo_magic.config import compose

    return compose(
        "magic_sandbox",
        [
            f"trainer.devices={os.environ['WORLD_SIZE']}", f"model.tensor_model_parallel_size={tp}",
            f"model.pipeline_model_parallel_size={pp}", "model.num_layers=4", "model.micro_batch_size=3",
            f"sandbox.folder={folder / 'sandbox'}", "model.init_method_std=0.06", "model.num_query_groups=2",
            "grpo.kl_beta=0.1", "model.peft.peft_scheme=lora", "model.peft.lora_tuning.adapter_dim=8",
            "model.peft.lora_tuning.alpha=16", "actors.share_base=true", "judge.launch=false",
            # Tied embeddings, which both ends of a pipeline have.
            "model.share_embeddings_and_output_weights=true",
            "judge.urls=[http://127.0.0.1:9]", f"actors.attacker.restore_from_path={folder / 'base'}",
            f"actors.defender.restore_from_path={folder / 'base'}", "actors.attacker.sampling_params.temperature=0.7",
            "actors.defender.sampling_params.temperature=0.7", "actors.attacker.model.optim.lr=1e-2",
        ],
    )  # fmt: skip


def make_base(folder: Path) -> None:
    from nemo_magic.actors.builder import build_policy
    from nemo_magic.actors.weights import save_weights
    from nemo_magic.config import role_model
    from nemo_magic.game.episode import Role
    from nemo_magic.model_config import PeftConfig

    cfg = config(folder, 1, 1)
    model = replace(role_model(cfg, Role.ATTACKER), peft=PeftConfig())
    options = replace(cfg.actors.attacker, restore_from_path=None)
    save_weights(build_policy(Role.ATTACKER, model, options, cfg.trainer, 11).actor, folder / "base")


def policies(cfg: Any, folder: Path, begins: bool = True) -> tuple[Any, Any]:
    """The attacker, with the adapters it has learned where it ``begins`` with them, and a new defender on its base."""
    from nemo_magic.actors.builder import build_policy
    from nemo_magic.config import role_model
    from nemo_magic.game.episode import Role

    built: list[Any] = []
    for number, role in enumerate(Role):
        model = role_model(cfg, role)
        if begins and role is Role.ATTACKER:
            model = replace(model, peft=replace(model.peft, restore_from_path=str(folder / "adapters")))
        base = built[0].actor if built else None
        options, seed = cfg.actors.of(role), 11 + number
        built.append(build_policy(role, model, options, cfg.trainer, seed, keep_reference=True, base=base))
    return built[0], built[1]


def module(actor: Any) -> Any:
    return actor.get_model_module_list()[0]


def learning(actor: Any) -> list[Any]:
    return list(actor.learning_parameters())


def base_of(actor: Any) -> dict[str, torch.Tensor]:
    named = module(actor).named_parameters()
    return {name: tensor.detach().clone() for name, tensor in named if ".adapter_layer." not in name}


def shared(actor: Any, other: Any) -> bool:
    mine = dict(module(actor).named_parameters())
    theirs = dict(module(other).named_parameters())
    return all(
        (mine[name].data_ptr() == theirs[name].data_ptr()) != (".adapter_layer." in name)
        for name in mine.keys() | theirs
    )


def scores(policy: Any, reference: bool = False) -> Any:
    from nemo_magic.rl.batch import microbatches, scatter_back

    batches = microbatches(rows(), 3, policy.actor.chat.pad_id)
    score = policy.actor.reference_logprobs if reference else policy.actor.token_logprobs
    return scatter_back(batches, score(batches), 12)


def accumulated(policy: Any, cfg: Any) -> None:
    """Gradients of all rows, each data-parallel rank with its share."""
    from nemo_magic.actors.distributed import World
    from nemo_magic.rl.loss import Normalizer
    from nemo_magic.training.trainer import grpo_objective

    world = World.current()
    mine = rows()[world.dp_rank :: world.dp_size]
    norm = Normalizer(*world.sum_data_parallel(sum(len(row.response_ids) for row in mine), len(mine)))
    policy.optimizer.zero_grad()
    batches = policy.microbatches(mine, world)
    policy.actor.accumulate(batches, lambda logprobs, batch: grpo_objective(logprobs, batch, cfg.grpo, norm))


def learn(policy: Any, cfg: Any, steps: int) -> list[float]:
    norms = []
    for _ in range(steps):
        accumulated(policy, replace_kl(cfg))
        made, norm = policy.actor.apply_gradients(policy.optimizer, policy.scheduler, policy.max_grad_norm)
        assert made
        norms.append(norm)
    return norms


def replace_kl(cfg: Any) -> Any:
    return replace(cfg, grpo=replace(cfg.grpo, kl_beta=0.0))


def gradients(policy: Any, cfg: Any, target: Path) -> float:
    """Save the adapters' gradients as tensors that any layout can read; returns the largest."""
    from megatron.core import dist_checkpointing

    from nemo_magic.actors.distributed import World

    accumulated(policy, replace_kl(cfg))
    named = {name: p.grad for name, p in module(policy.actor).named_parameters() if p.grad is not None}
    state = {}
    for name, tensor in policy.actor.sharded_state_dict().items():
        tensor.data = named[name.removeprefix("model.")]
        state[name] = tensor
    if World.current().is_main:
        target.mkdir(parents=True)
    World.current().barrier()
    dist_checkpointing.save(state, str(target))
    policy.optimizer.zero_grad()
    return max(float(grad.abs().max()) for grad in named.values())


def recompute(policy: Any, cfg: Any) -> dict[str, Any]:
    """Gradients with every way to recompute activations, and what NeMo makes of them by itself."""
    block, found = module(policy.actor).decoder, {}

    def named() -> dict[str, torch.Tensor]:
        accumulated(policy, replace_kl(cfg))
        grads = {n: p.grad.clone() for n, p in module(policy.actor).named_parameters() if p.grad is not None}
        policy.optimizer.zero_grad()
        return grads

    plain = named()
    block.config.recompute_granularity, block.config.recompute_num_layers = "full", 2
    for method in ("uniform", "block"):
        block.config.recompute_method = method
        grads = named()
        found[method] = [len(grads) == len(plain), max(float((grads[n] - plain[n]).abs().max()) for n in plain)]
    hooks = module(policy.actor).embedding._forward_hooks
    kept = dict(hooks)
    hooks.clear()
    found["block unmended"] = [len(named()), len(plain)]
    block.config.recompute_method = "uniform"
    try:
        named()
    except RuntimeError as error:
        found["uniform unmended"] = str(error)
    hooks.update(kept)
    block.config.recompute_granularity = block.config.recompute_method = block.config.recompute_num_layers = None
    return found


def generated(policy: Any, cfg: Any, mend: bool = True) -> Any:
    from nemo.collections.nlp.modules.common.megatron.adapters.mcore_mixins import MCoreSelfAttentionMixin

    from nemo_magic.actors.generation import NativeGenerator

    options, mended = cfg.actors.attacker, MCoreSelfAttentionMixin.get_query_key_value_tensors
    if not mend:
        MCoreSelfAttentionMixin.get_query_key_value_tensors = mended.__wrapped__
    generator = NativeGenerator(replace(cfg.generation, max_prompt_spread=8))
    generator.load(policy.actor)
    made = generator.generate([r.prompt_ids for r in rows()], SEEDS, options.sampling_params, options.length_params)
    generator.release()
    MCoreSelfAttentionMixin.get_query_key_value_tensors = mended
    return [(c.response_ids, c.logprobs) for c in made]


def generation(policy: Any, cfg: Any) -> dict[str, Any]:
    """How far decoding is from the training forward; with and without the norms that NeMo leaves out."""
    from nemo_magic.rl.batch import Row, microbatches, scatter_back

    prompts = [row.prompt_ids for row in rows()]

    def distance(made: Any) -> float:
        said = [Row(prompt, ids) for prompt, (ids, _) in zip(prompts, made, strict=True)]
        batches = microbatches(said, 3, policy.actor.chat.pad_id)
        again = scatter_back(batches, policy.actor.token_logprobs(batches), len(said))
        pairs = zip(again, (logprobs for _, logprobs in made), strict=True)
        return max(abs(a - b) for left, right in pairs for a, b in zip(left, right, strict=True))

    made = generated(policy, cfg)
    return {
        "ids": [ids for ids, _ in made],
        "decoding": distance(made),
        "decoding unmended": distance(generated(policy, cfg, mend=False)),
    }


def defects_of_saving(policy: Any, folder: Path, name: str, tp: int) -> dict[str, Any]:
    """What NeMo and Megatron make of adapters by themselves when they are saved."""
    from nemo_magic.actors.weights import load_weights, save_weights
    from nemo_magic.compat.lora import adapted_layers

    layers, found = adapted_layers(module(policy.actor)), {}
    kinds = [layer.adapter_layer.__class__ for layer in layers]
    for layer in layers:
        layer.adapter_layer.__class__ = torch.nn.ModuleDict
    try:
        policy.actor.sharded_state_dict()
    except AttributeError as error:
        found["mlp unmended"] = str(error)
    attention = layers[0].sharded_state_dict("a.")
    key = next(name for name in attention if name.endswith("lora_kqv_adapter.linear_out.weight"))
    found["attention unmended"] = [list(attention[key].global_shape), list(attention[key].local_shape), tp]
    for layer, kind in zip(layers, kinds, strict=True):
        layer.adapter_layer.__class__ = kind
    gated = [layer.adapter_layer.is_gated for layer in layers]
    for layer in layers:
        layer.adapter_layer.is_gated = False
    if name == "tp2":
        save_weights(policy.actor, folder / "mixed")
    if name == "dp2":
        load_weights(policy.actor, folder / "mixed")
        found["mixed"] = scores(policy)
    for layer, value in zip(layers, gated, strict=True):
        layer.adapter_layer.is_gated = value
    load_weights(policy.actor, folder / "adapters")
    return found


def save(trainable: Any, folder: Path, world: Any) -> None:
    from nemo_magic.actors.saving import write_in_a_fork
    from nemo_magic.actors.weights import save_policies

    folder.mkdir()
    request = save_policies(trainable, folder)
    write_in_a_fork(request)
    request.finalize()
    world.barrier()


def equal_ranks(actor: Any) -> bool:
    """Whether data-parallel ranks still have the same adapters."""
    from megatron.core import parallel_state

    group = parallel_state.get_data_parallel_group()
    for parameter in learning(actor):
        largest, smallest = parameter.detach().clone(), parameter.detach().clone()
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, group=group)
        torch.distributed.all_reduce(smallest, torch.distributed.ReduceOp.MIN, group=group)
        if not torch.equal(largest, smallest):
            return False
    return True


if __name__ == "__main__":
    cpu.install(announce=False)
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
