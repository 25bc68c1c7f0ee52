"""Is the plan right? Real actors' seconds and memory beside what ``nemo-magic plan`` says of them.

    python benchmarks/planner.py [--worlds TP1 TP2 PP2] [--steps 3] [--gpu] [--rows 32] [--prompt 192] [--response 64]
                                 [--out FILE] [key=value …]

Worlds of one model (TP1, TP2 and PP2 with full recompute) each take optimizer steps on made-up rows, score them, and
decode. What the machine can do is measured by itself: a matrix product, a read of memory, an all-reduce, a layer of a
few tokens; the plan gets these rates as ``hardware`` and is not told how long anything took. Memory is what torch's
allocators handed out at once during an optimizer step. ``key=value`` are overrides of conf/magic_sandbox.yaml, e.g.
``model.hidden_size=512``.

``--gpu``: on a GPU without apex and transformer_engine, in bf16, a model of 1.2 billion parameters unless overridden
(``--worlds TP1``).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from figures import report, settle, table

if TYPE_CHECKING:
    from nemo_magic.actors.trainable import TrainablePolicy
    from nemo_magic.config import MagicConfig

GIB = float(1 << 30)
GROUP = 4
SMALL = [
    "model.num_layers=6", "model.hidden_size=384", "model.ffn_hidden_size=1024", "model.num_attention_heads=6",
    "model.num_query_groups=2", "model.make_vocab_size_divisible_by=8192", "model.micro_batch_size=16",
]  # fmt: skip
BILLION = [
    "model.num_layers=16", "model.hidden_size=2048", "model.ffn_hidden_size=8192", "model.num_attention_heads=32",
    "model.num_query_groups=8", "model.make_vocab_size_divisible_by=128256", "model.micro_batch_size=4",
    "model.share_embeddings_and_output_weights=true", "model.megatron_amp_O2=true", "trainer.precision=bf16",
    "model.use_cpu_initialization=false",
]  # fmt: skip
PLAYING = [
    "actors.attacker.restore_from_path=null", "actors.defender.restore_from_path=null",
    f"game.group_size={GROUP}", "judge.launch=false", "judge.urls=[http://127.0.0.1:9]",
    "game.schedule.train_roles=[attacker]",
]  # fmt: skip
FULL = [
    "model.activations_checkpoint_granularity=full", "model.activations_checkpoint_method=uniform",
    "model.activations_checkpoint_num_layers=1",
]  # fmt: skip
WORLDS = {"TP1": (1, 1, []), "TP2": (2, 1, []), "PP2": (1, 2, FULL)}


@dataclass(frozen=True)
class Load:
    """``rows`` of ``prompt`` + ``response`` tokens, and where."""

    rows: int
    prompt: int
    response: int
    gpu: bool

    def overrides(self) -> list[str]:
        """Overrides of conf/magic_sandbox.yaml."""
        return [
            *(BILLION if self.gpu else SMALL), *PLAYING, f"model.encoder_seq_length={self.prompt + self.response}",
            f"actors.attacker.length_params.max_length={self.response}",
            f"actors.attacker.length_params.max_prompt_length={self.prompt}", f"game.batch_size={self.rows // GROUP}",
            f"generation.batch_size={self.rows}", f"plan.attacker_prompt={self.prompt}", f"plan.attack={self.response}",
        ]  # fmt: skip


def configuration(load: Load, words: Sequence[str], tp: int, pp: int, folder: Path) -> list[str]:
    """The overrides of one world."""
    layout = [f"model.tensor_model_parallel_size={tp}", f"model.pipeline_model_parallel_size={pp}"]
    return [*load.overrides(), f"sandbox.folder={folder}", f"trainer.devices={tp * pp}", *layout, *words]


# --- a rank


def be_a_rank(load: Load, words: Sequence[str], steps: int, out: Path) -> None:
    """Measure, and have rank 0 write the figures of the rank that took or held most."""
    from nemo_magic.actors.builder import NEMO_ALIGNER, build_policy, prepare_process
    from nemo_magic.compat import cpu
    from nemo_magic.config import compose

    cfg = compose("magic_sandbox", words, command="plan")
    if load.gpu and cfg.backend == NEMO_ALIGNER:
        # Checked as what it is apart from the device: a run on a GPU would ask for apex' optimizer.
        cfg = replace(cfg, trainer=replace(cfg.trainer, accelerator="gpu"))
        cpu.do_without_apex()
    else:
        prepare_process(cfg.backend, cfg.trainer.accelerator)
    import torch

    from nemo_magic.config import role_model
    from nemo_magic.game.episode import Role

    role = Role.ATTACKER
    player = build_policy(role, role_model(cfg, role), cfg.actors.attacker, cfg.trainer, 1, backend=cfg.backend)
    figures = _training(load, cfg, player, steps) | _decoding(load, cfg, player) | _rates(load, cfg, player)
    ranks: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(ranks, figures)
    if torch.distributed.get_rank() == 0:
        slowest = {name: max(rank[name] for rank in ranks) for name in figures}
        slowest |= {name: min(rank[name] for rank in ranks) for name in figures if name.endswith("_rate")}
        out.write_text(json.dumps(slowest))


def _training(load: Load, cfg: MagicConfig, player: TrainablePolicy, steps: int) -> dict[str, float]:
    import random

    from nemo_magic.actors.distributed import World
    from nemo_magic.rl.aggregation import Normalizer
    from nemo_magic.rl.batch import Row
    from nemo_magic.training.trainer import grpo_objective

    world, draw = World.current(), random.Random(0)
    size = player.actor.chat.size
    rows = [
        Row(
            tuple(draw.randrange(size) for _ in range(load.prompt)),
            tuple(draw.randrange(size) for _ in range(load.response)),
            1.0 - 2.0 * (i % 2),
        )
        for i in range(load.rows // world.dp_size)
    ]
    batches = player.microbatches(rows, world)
    norm = Normalizer(float(load.rows * load.response), float(load.rows))

    def update() -> None:
        player.learn(batches, lambda logprobs, batch: grpo_objective(logprobs, batch, cfg.grpo, norm), observe=True)

    update()
    scored = [_timed(lambda: player.actor.token_logprobs(batches)) for _ in range(steps)]
    return {
        "update": median(_timed(update) for _ in range(steps)),
        "logprobs": median(scored),
        "learning_bytes": _memory(update, player, load.gpu),
    }


def _decoding(load: Load, cfg: MagicConfig, player: TrainablePolicy) -> dict[str, float]:
    from nemo_magic.actors.config import LengthConfig, SamplingConfig
    from nemo_magic.actors.generation import NativeGenerator

    generator = NativeGenerator(cfg.generation)
    generator.load(player.actor)
    prompts = [tuple((i + j) % player.actor.chat.size for j in range(load.prompt)) for i in range(load.rows)]
    lengths = LengthConfig(max_length=load.response, min_length=load.response - 1)
    seconds = [
        _timed(lambda: generator.generate(prompts, range(load.rows), SamplingConfig(), lengths)) for _ in range(2)
    ]
    generator.close()
    return {"decode": seconds[-1]}


def _rates(load: Load, cfg: MagicConfig, player: TrainablePolicy) -> dict[str, float]:
    """What this machine does a second, by itself, while the other ranks do the same."""
    import torch

    model, device = player.actor.cfg, torch.cuda.current_device()
    dtype = torch.bfloat16 if cfg.trainer.precision == "bf16" else torch.float32
    tokens, width, inner = (
        model.micro_batch_size * (load.prompt + load.response),
        model.hidden_size,
        model.ffn_hidden_size,
    )
    left = torch.randn(tokens, width, device=device, dtype=dtype)
    right = torch.randn(width, inner, device=device, dtype=dtype)
    large = torch.randn(1 << 26, device=device)
    sent = torch.randn(tokens, width, device=device, dtype=dtype)
    product = median(_timed(lambda: left @ right) for _ in range(9))
    reading = median(_timed(lambda: large.sum()) for _ in range(5))
    rates = {"flops_rate": 2 * tokens * width * inner / product, "memory_rate": large.numel() * 4 / reading}
    world = torch.distributed.get_world_size()
    exchange = median(_timed(lambda: torch.distributed.all_reduce(sent)) for _ in range(9)) if world > 1 else 1.0
    moved = 2 * (world - 1) / world * sent.numel() * sent.element_size()
    rates["link_rate"] = moved / exchange if world > 1 else 1e12
    # Several tokens, so that nothing is special about a first or an only one; too few to compute much.
    few = player.microbatches(_few(), _world())
    once = median(_timed(lambda: player.actor.token_logprobs(few)) for _ in range(5))
    return rates | {"floor": once / model.num_layers}


def _few() -> list[Any]:
    from nemo_magic.rl.batch import Row

    return [Row((1, 2), (3, 4), 1.0)]


def _world() -> Any:
    from nemo_magic.actors.distributed import World

    return World.current()


def _timed(function: Callable[[], object]) -> float:
    import torch

    torch.cuda.synchronize()
    began = time.perf_counter()
    function()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def _memory(update: Callable[[], object], player: TrainablePolicy, gpu: bool) -> float:
    """The most bytes of tensors there are at once in ``update``."""
    import torch

    if gpu:
        torch.cuda.reset_peak_memory_stats()
        update()
        return float(torch.cuda.max_memory_allocated())
    from torch.profiler import ProfilerActivity, profile

    from nemo_magic.actors.weights import sharded_bytes

    # Where there is no allocator that counts: what is there before, and every allocation since.
    standing = sum(sharded_bytes({"one": player}))
    grads = (
        p.grad if p.grad is not None else getattr(p, "main_grad", None) for p in player.actor.learning_parameters()
    )
    standing += sum(grad.nbytes for grad in grads if grad is not None)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        update()
    assert profiled.profiler is not None
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return standing + max(accumulate(changes))


# --- the plan beside it


def planned(load: Load, words: Sequence[str], measured: dict[str, float], vocab_size: int) -> dict[str, float]:
    """The same parts as the plan has them, told this machine's rates and no durations."""
    from nemo_magic.config import compose
    from nemo_magic.game.episode import Role
    from nemo_magic.planner import seconds
    from nemo_magic.planner.estimate import PlanEstimate

    rates = [
        f"hardware.tflops={measured['flops_rate'] / 1e12}", "hardware.flops_reached=1",
        f"hardware.memory_gb_s={measured['memory_rate'] / 1e9}", "hardware.memory_reached=1",
        f"hardware.nvlink_gb_s={measured['link_rate'] / 1e9}", f"hardware.network_gb_s={measured['link_rate'] / 1e9}",
        "hardware.links_reached=1", f"hardware.layer_floor_us={measured['floor'] * 1e6}",
    ]  # fmt: skip
    cfg = compose("magic_sandbox", [*words, *rates], command="plan")
    estimate = PlanEstimate(cfg, {Role.ATTACKER: vocab_size})
    shapes, world, hardware = estimate.mean[Role.ATTACKER], estimate.world, cfg.hardware
    parts = estimate.step(Role.ATTACKER)
    count = load.rows // estimate.rows // world.dp
    scored = seconds.passes(shapes, hardware, world.tp, count, False, estimate.links)
    computed = count * shapes.layers * (shapes.layer.forward + shapes.layer.backward)
    computed += count * sum(part.forward + part.backward for part in (shapes.first, shapes.last))
    return {
        "update": parts["update"] + parts["optimizer"],
        "logprobs": scored,
        "decode": parts["generate_attacker"],
        "learning_bytes": sum(estimate.moments()["learning"].values()),
        "update_flops": computed / world.pp,
    }


def launch(load: Load, words: Sequence[str], ranks: int, steps: int, out: Path) -> dict[str, float]:
    """Measure one world, in processes of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), __file__]
    command += ["--rank", str(out), "--steps", str(steps), *(["--gpu"] if load.gpu else [])]
    command += [f"--{name}={getattr(load, name)}" for name in ("rows", "prompt", "response")]
    done = subprocess.run([*command, *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
    figures: dict[str, float] = json.loads(out.read_text())
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every world, and print it beside its plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, metavar="N", help="optimizer steps that are timed (3)")
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS), help="which (all)")
    parser.add_argument("--gpu", action="store_true", help="on a GPU without apex and transformer_engine")
    parser.add_argument("--rows", type=int, default=32, metavar="N", help="rows of an optimizer step (32)")
    parser.add_argument("--prompt", type=int, default=192, metavar="N", help="tokens of a prompt (192)")
    parser.add_argument("--response", type=int, default=64, metavar="N", help="tokens of a response (64)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON, too")
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    args, words = parser.parse_known_args(argv)
    settle()
    load = Load(args.rows, args.prompt, args.response, args.gpu)
    if args.rank is not None:
        be_a_rank(load, words, args.steps, args.rank)
        return
    from transformers import AutoTokenizer

    from nemo_magic.sandbox.corpus import prepare
    from nemo_magic.sandbox.world import SandboxConfig

    rows, speeds, figures = [], [], {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        prepare(SandboxConfig(folder=folder, attack_rows=10, defender_rows=10))
        vocab_size = len(AutoTokenizer.from_pretrained(f"{folder}/tokenizer"))
        for name in args.worlds:
            tp, pp, own = WORLDS[name]
            overrides = configuration(load, [*own, *words], tp, pp, home)
            measured = launch(load, overrides, tp * pp, args.steps, home / "figures.json")
            plan = planned(load, overrides, measured, vocab_size)
            speed = {
                "tokens_per_second": load.rows * (load.prompt + load.response) / measured["update"],
                "share_of_product_rate": plan["update_flops"] / measured["update"] / measured["flops_rate"],
            }
            speeds.append([name, *speed.values()])
            figures[name] = {"measured": measured, "planned": plan, "update": speed}
            for part, unit in (("update", 1.0), ("logprobs", 1.0), ("decode", 1.0), ("learning_bytes", GIB)):
                value, planned_value = measured[part] / unit, plan[part] / unit
                label = "memory, GiB" if unit > 1 else f"{part}, s"
                rows.append([name, label, planned_value, value, planned_value / value])
    columns = ["world", "part", "planned", "measured", "planned / measured"]
    speed = table(["world", "tokens a second, update", "of what a matrix product reaches"], speeds)
    report("The plan beside real actors", [table(columns, rows), speed], figures, args.out)


if __name__ == "__main__":
    main()
