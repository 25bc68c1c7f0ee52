"""One launched world in which both roles speak through TensorRT-LLM's double: what it says and what Megatron says.

``torchrun --nproc-per-node N trtllm_world.py FOLDER NAME TP PP plain|reshard …``. Not a test module.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tests.actors import trtllm_double as double

double.install()
# ruff: noqa: E402
from nemo_magic.compat import cpu
from nemo_magic.compat import trtllm as compat


def main(folder: Path, name: str, tp: int, pp: int, modes: list[str]) -> None:
    from nemo_magic.actors.builder import build_policy
    from nemo_magic.actors.distributed import World
    from nemo_magic.actors.generation import NativeGenerator
    from nemo_magic.config import compose, role_model
    from nemo_magic.game.episode import Role

    cfg = compose(
        "magic_sandbox",
        [
            f"trainer.devices={os.environ['WORLD_SIZE']}",
            f"model.tensor_model_parallel_size={tp}",
            f"model.pipeline_model_parallel_size={pp}",
            "model.num_layers=4",
            "model.num_query_groups=2",
            # Waves that Llama-3.1's scaling stretches, at positions that a prompt of the sandbox reaches.
            "model.rotary_base=500000",
            "model.scale_positional_embedding=true",
            "model.rope_scaling_factor=32",  # Llama-3.2's
            f"sandbox.folder={folder / 'sandbox'}",
            "model.init_method_std=0.15",
            "actors.attacker.restore_from_path=null",
            "actors.defender.restore_from_path=null",
            "actors.defender.length_params.max_length=8",
            "actors.defender.length_params.min_length=0",
            f"model.tokenizer.type={folder / 'tokenizer'}",
            "model.make_vocab_size_divisible_by=46",  # no padding, which is part of Megatron's softmax only
            "generation.batch_size=4",
            "generation.trt_llm.unload_engine_train=true",
            f"generation.trt_llm.engine_dir={folder / name / 'engines'}",
        ],
    )
    players = {
        role: build_policy(role, role_model(cfg, role), cfg.actors.of(role), cfg.trainer, 11 + i)
        for i, role in enumerate(Role)
    }
    other = build_policy(
        Role.DEFENDER, replace(role_model(cfg, Role.DEFENDER), num_layers=2), cfg.actors.defender, cfg.trainer, 5
    )
    world = World.current()
    adapted = _adapted_pair(players, cfg, folder / name / "base")
    for mode in modes:
        options = replace(cfg.generation, trt_llm=replace(cfg.generation.trt_llm, reshard=mode == "reshard"))
        double.FAULTS.builds = 0
        actors = [players[role].actor for role in Role]
        found = _measure(*actors, other.actor, replace(cfg, generation=options), NativeGenerator)
        found["adapters"] = _measure_adapters(adapted, replace(cfg, generation=options), NativeGenerator)
        everyone = world.all_gather(found)
        if world.is_main:
            (folder / f"{name}-{mode}.json").write_text(json.dumps(everyone))


def _adapted_pair(players: Any, cfg: Any, folder: Path) -> list[Any]:
    """Both roles as adapters of the attacker's weights, which they share, each with an effect of its own."""
    from nemo_magic.actors.builder import build_policy
    from nemo_magic.actors.weights import save_weights
    from nemo_magic.config import role_model
    from nemo_magic.game.episode import Role
    from nemo_magic.model_config import LoraConfig, PeftConfig

    save_weights(players[Role.ATTACKER].actor, folder)
    actors: list[Any] = []
    for number, role in enumerate(Role):
        model = replace(role_model(cfg, role), peft=PeftConfig("lora", None, LoraConfig(adapter_dim=4, alpha=8)))
        options = replace(cfg.actors.of(role), restore_from_path=str(folder))
        base = actors[0] if actors else None
        actor = build_policy(role, model, options, cfg.trainer, 31 + number, base=base).actor
        draw = torch.Generator().manual_seed(41 + number + 10 * torch.distributed.get_rank())
        with torch.no_grad():
            for name, parameter in actor.named_parameters():
                if name.endswith("linear_out.weight"):
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
        actors.append(actor)
    return actors


def _measure_adapters(actors: list[Any], cfg: Any, native_type: Any) -> dict[str, Any]:
    """What roles say that are adapters on one base, by an engine that holds them merged and natively."""
    from nemo_magic.actors.trtllm import TRTLLMGenerator

    lengths = cfg.actors.defender.length_params
    greedy = replace(cfg.actors.defender.sampling_params, use_greedy=True)
    prompts = [[5, 6, 7, 8], [9, 10, 11], [12, 13, 14, 15, 16]]
    engine, native = TRTLLMGenerator(cfg.generation, 36, 8), native_type(replace(cfg.generation, max_prompt_spread=40))
    before = [{name: p.detach().clone() for name, p in actor.named_parameters()} for actor in actors]

    def says(generator: Any, actor: Any) -> list[list[int]]:
        generator.load(actor)
        said = generator.generate(prompts, [1, 2, 3], greedy, lengths)
        generator.pause()
        return [list(c.response_ids) for c in said]

    found: dict[str, Any] = {"said": [[says(generator, one) for one in actors] for generator in (native, engine)]}
    actors[0].weights_version += 1
    engine.load(actors[1])
    engine.pause()
    found["again"] = [says(engine, one) for one in actors]
    engine.close()
    torch.distributed.barrier()
    found["as_before"] = all(
        torch.equal(p, kept[name])
        for actor, kept in zip(actors, before, strict=True)
        for name, p in actor.named_parameters()
    )
    return found


def _measure(attacker: Any, defender: Any, smaller: Any, cfg: Any, native_type: Any) -> dict[str, Any]:
    from nemo_magic.actors.generation import StaleWeightsError
    from nemo_magic.actors.trtllm import RefitError, TRTLLMGenerator

    lengths, sampling = cfg.actors.defender.length_params, cfg.actors.defender.sampling_params
    greedy = replace(sampling, use_greedy=True)
    draw = torch.Generator().manual_seed(3)
    sizes = torch.randint(3, 30, (6,), generator=draw).tolist()
    prompts = [torch.randint(4, 40, (size,), generator=draw).tolist() for size in sizes]
    seeds = [2**63 + i for i in range(6)]
    engine, native = TRTLLMGenerator(cfg.generation, 36, 8), native_type(replace(cfg.generation, max_prompt_spread=40))
    rank = torch.distributed.get_rank()
    found: dict[str, Any] = {}

    def says(generator: Any, actor: Any, how: Any = greedy, rows: Any = slice(None)) -> list[list[int]]:
        generator.load(actor)
        said = generator.generate(prompts[rows], seeds[rows], how, lengths)
        generator.pause()
        return [list(c.response_ids) for c in said]

    def both(actor: Any, key: str) -> None:
        found[key] = {"engine": says(engine, actor), "native": says(native, actor)}

    both(attacker, "attacker")
    both(defender, "defender")
    found["one_build"] = double.FAULTS.builds
    before = double.FAULTS.refits
    says(engine, defender)
    says(engine, defender)
    found["refits_of_unchanged_weights"] = double.FAULTS.refits - before

    # An update that the generator is not told of, and one that it is.
    engine.load(defender)
    with torch.no_grad():
        for parameter in defender.parameters():
            parameter.mul_(torch.linspace(0.5, 1.5, parameter.numel()).view_as(parameter))
    defender.weights_version += 1
    found["stale"] = _refused(StaleWeightsError, lambda: engine.generate(prompts[:1], seeds[:1], greedy, lengths))
    old = found["defender"]["engine"]
    both(defender, "updated")
    found["update_changed_what_is_said"] = old != found["updated"]["engine"]
    engine.pause()
    found["unloaded"] = _refused(StaleWeightsError, lambda: engine.generate(prompts[:1], seeds[:1], greedy, lengths))

    # Memory is given back while the roles learn; another architecture takes the place of this one.
    engine.load(defender)
    engine.release()
    found["released"] = double_decoder() is None
    both(defender, "read_again")
    both(smaller, "smaller")
    both(attacker, "attacker_again")
    found["builds"] = double.FAULTS.builds

    # Sampling: a row's own seed decides, whoever its neighbours are.
    engine.load(defender)
    found["sampled"] = says(engine, defender, sampling)
    found["alone"] = says(engine, defender, sampling, slice(5, 6))
    found["other_seed"] = _with(engine, defender, lambda: engine.generate(prompts[5:6], [7], sampling, lengths))[0]
    cold = replace(sampling, temperature=0.01)
    found["cold"] = says(engine, defender, cold)
    found["defender_native"] = says(native, defender)

    # What ends a response: a word, two words, an id that is none.
    row = next(i for i, ids in enumerate(found["updated"]["native"]) if len(set(ids[:4])) == 4)
    found["spoken"] = found["updated"]["native"][row]
    words = _text(defender, found["spoken"])
    for key, ends in {"phrase": [" ".join(words[1:3])], "word": [words[1]]}.items():
        engine.load(defender)
        rows = slice(row, row + 1)
        said = engine.generate(prompts[rows], seeds[rows], replace(greedy, end_strings=ends), lengths)[0]
        engine.pause()
        found[key] = {"ends": ends, "text": said.text, "finished": said.finished, "ids": list(said.response_ids)}
    double.FAULTS.invalid_at = 2
    engine.drain()
    engine.load(defender)
    said = engine.generate(prompts[:5], seeds[:5], greedy, lengths)
    engine.pause()
    double.FAULTS.invalid_at = None
    found["invalid"] = {
        "sizes": [len(c.response_ids) for c in said],
        "finished": [c.finished for c in said],
        "native": found["updated"]["native"][:5],
        "counted": engine.drain()["generation/invalid_responses"],
    }
    found["too_long"] = _refused(
        ValueError, lambda: _with(engine, defender, lambda: engine.generate([[5] * 37], [1], greedy, lengths))
    )

    # A refit that leaves old weights behind on one rank is refused on all.
    defender.weights_version += 1
    if rank == torch.distributed.get_world_size() - 1:
        double.FAULTS.forgotten = "transformer.layers.0.mlp.extra.weight"
    found["forgotten"] = _refused(RefitError, lambda: engine.load(defender))
    double.FAULTS.forgotten = None
    both(defender, "mended")

    found["second"] = _refused(RuntimeError, lambda: TRTLLMGenerator(cfg.generation, 36, 8))
    found["scaled"] = _angles(engine, attacker, prompts)
    engine.close()
    torch.distributed.barrier()
    found["closed"] = double_decoder() is None
    found["left_on_disk"] = [str(path) for path in Path(cfg.generation.trt_llm.engine_dir).glob("*/*")]
    return found


def _angles(engine: Any, actor: Any, prompts: Any) -> dict[str, float]:
    """Largest difference of log-probabilities, engine and Megatron, with Llama-3.1's scaled waves and without."""
    from nemo_magic.rl.batch import Row, microbatches, scatter_back

    row = max(prompts, key=len) + [5] * 10
    batches = microbatches([Row(tuple(row[:1]), tuple(row[1:]))], 1, actor.chat.pad_id)
    truth = torch.tensor(scatter_back(batches, actor.token_logprobs(batches), 1)[0])
    engine.load(actor)
    model = double_decoder().whole()
    engine.pause()
    differences = {}
    for key in ("scaled", "plain"):
        if key == "plain":
            model.config = model.config | {"rotary_scaling": None}
        logprobs = model.logits(row)[:-1].log_softmax(-1)
        mine = logprobs.gather(1, torch.tensor(row[1:])[:, None]).squeeze(1)
        differences[key] = float((mine - truth).abs().max())
    return differences


def _with(engine: Any, actor: Any, work: Any) -> Any:
    engine.load(actor)
    try:
        said = work()
    finally:
        engine.pause()
    return [list(c.response_ids) for c in said]


def _refused(kind: type[Exception], work: Any) -> str:
    try:
        work()
    except kind as error:
        return str(error)
    return ""


def _text(actor: Any, ids: list[int]) -> list[str]:
    return str(actor.chat.text(ids)).split()


def double_decoder() -> Any:
    from nemo_magic.actors.trtllm import _decoder

    return _decoder()


if __name__ == "__main__":
    cpu.install()
    # The wrapper counts a node's devices by their numbers.
    torch.cuda.current_device = lambda: int(os.environ["LOCAL_RANK"])
    sys.modules.pop("nemo_aligner.utils.trt_llm")
    compat.prepare(enabled=True)
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
