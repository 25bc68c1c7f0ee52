"""backend=megatron on one GPU: does the game run there, how fast is a model of billions, and was the plan right?

    python benchmarks/gpu_megatron.py [--folder runs/gpu_megatron] [--steps 3] [--rows 64] [--prompt 512]
        [--response 512] [--game key=value …] [--model key=value …] [--out FILE] [--cpu]

Needs torch, Triton, Megatron-core and this package: neither transformer_engine nor apex, no network, no weights. Two
parts, both in bf16, with Megatron-core's distributed optimizer and native generation:

- the sandbox's game as a user plays it: warm-up of both roles, eight steps of both phases, checkpoints, cross-play. Its
  figures are seconds and peak memory of a step's parts, tokens a second, and ``mismatch``: 1 where generator and
  trainer agree;
- a random model of 1.2 billion parameters, 42 GiB by the plan (``--model model.num_layers=28 model.hidden_size=3072
  model.num_attention_heads=24`` makes one of 3.2, which takes 85). It takes optimizer steps, scores and decodes
  ``--rows`` of ``--prompt`` + ``--response`` tokens: tokens a second and peak memory, beside ``nemo-magic plan``, which
  gets this GPU's measured rates and no duration. MFU is the FLOPs of forward and backward pass in the seconds of an
  update, of ``hardware.tflops`` (``--model hardware.tflops=…``; an H100's or H200's 989 in bf16).

``--cpu`` runs the same in fp32 on the CPU lane with a small model, to see that this script works; its MFU is of the
rate of a matrix product.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import planner
from figures import report, settle, table

BACKEND = "backend=megatron"
GPU = [
    "trainer.accelerator=gpu", "trainer.precision=bf16", "model.megatron_amp_O2=true",
    "model.use_cpu_initialization=false", "model.optim.name=mcore_distributed_optim",
]  # fmt: skip
GAME = [
    "game.max_steps=8", "game.schedule.freq=2", "game.batch_size=16", "game.num_val_samples=16",
    "game.val_check_interval=4", "game.crossplay.num_seeds=20", "game.strategy_sweep=null",
    "exp_manager.create_report=false", "exp_manager.create_tensorboard_logger=false",
    "exp_manager.checkpoint_callback_params.every_n_train_steps=4",
]  # fmt: skip
WARM_UP = ["sft.max_steps=60"]
PARTS = (
    ("update", "update, s", 1.0), ("logprobs", "log-probabilities, s", 1.0), ("decode", "decoding, s", 1.0),
    ("learning_bytes", "memory while learning, GiB", planner.GIB),
)  # fmt: skip


def magic(command: str, *words: str) -> None:
    """``nemo-magic`` as a user starts it.

    Raises:
        SystemExit: it failed.
    """
    print(f"nemo-magic {command} {' '.join(words[:2])} …", flush=True)
    done = subprocess.run([sys.executable, "-m", "nemo_magic.cli", command, *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"nemo-magic {command}: status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def play(home: Path, device: Sequence[str], words: Sequence[str]) -> dict[str, float]:
    """Warm up both roles and play; the figures of a step: median seconds and tokens a second, largest memory."""
    shared = [BACKEND, "trainer.devices=1", f"sandbox.folder={home / 'sandbox'}", *device]
    own = [word for word in words if not word.startswith("sft.")]
    magic("sandbox", "-cn", "magic_sandbox", *shared, *own)
    starts = []
    for role in ("attacker", "defender"):
        warm = [
            *(word for word in words if not word.startswith("game.")),
            f"exp_manager.explicit_log_dir={home / role}",
        ]
        magic("sft", "-cn", f"sft_sandbox_{role}", *shared, *WARM_UP, *warm)
        starts.append(f"actors.{role}.restore_from_path={home / role / 'weights'}")
    magic(
        "train", "-cn", "magic_sandbox", *shared, *GAME, *own, *starts, f"exp_manager.explicit_log_dir={home / 'game'}"
    )
    return game_figures(home / "game" / "metrics.jsonl")


def game_figures(metrics: Path) -> dict[str, float]:
    """Name → the median over a run's steps; of memory and of ``mismatch`` the largest."""
    from nemo_magic.report.records import read_records

    found: dict[str, list[float]] = {}
    for record in read_records(metrics):
        for name, value in record.metrics.items():
            if name.startswith(("timers/", "memory/", "throughput/")) or name == "train_optim/mismatch":
                found.setdefault(name, []).append(float(value))
    largest = ("memory/", "train_optim/")
    return {name: max(values) if name.startswith(largest) else median(values) for name, values in found.items()}


def measure(
    home: Path, load: planner.Load, steps: int, device: Sequence[str], words: Sequence[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """What the random model took, and what the plan says of it; one GPU."""
    from transformers import AutoTokenizer

    tp, pp, own = planner.WORLDS["TP1"]
    folder = home / "sandbox"
    overrides = planner.configuration(load, [BACKEND, *device, *own, *words], tp, pp, folder)
    measured = planner.launch(load, overrides, 1, steps, home / "measured.json")
    size = len(AutoTokenizer.from_pretrained(str(folder / "tokenizer")))
    # The peak that the plan is asked with is a figure of its own: the rate that a product reaches.
    asked = [word for word in overrides if not word.startswith("hardware.tflops=")]
    return measured, planner.planned(load, asked, measured, size)


def speed(
    load: planner.Load, measured: Mapping[str, float], planned: Mapping[str, float], peak: float
) -> dict[str, float]:
    """Tokens a second and shares of the peak (FLOP/s) and of a matrix product's rate."""
    tokens, rate = load.rows * (load.prompt + load.response), planned["update_flops"] / measured["update"]
    return {
        "tokens a second, update": tokens / measured["update"],
        "tokens a second, log-probabilities": tokens / measured["logprobs"],
        "tokens a second, decoding": load.rows * load.response / measured["decode"],
        "MFU of an update": rate / peak,
        "of what a matrix product reaches": rate / measured["flops_rate"],
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Play, measure, and print both beside the plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/gpu_megatron"), help="for what the game writes")
    parser.add_argument("--steps", type=int, default=3, metavar="N", help="optimizer steps that are timed (3)")
    parser.add_argument("--rows", type=int, default=64, metavar="N", help="rows of an optimizer step (64)")
    parser.add_argument("--prompt", type=int, default=512, metavar="N", help="tokens of a prompt (512)")
    parser.add_argument("--response", type=int, default=512, metavar="N", help="tokens of a response (512)")
    parser.add_argument("--game", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the game")
    parser.add_argument("--model", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the random model")
    parser.add_argument("--cpu", action="store_true", help="the same on the CPU lane, small")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON, too")
    args = parser.parse_args(argv)
    settle()
    home, device = args.folder.resolve(), [] if args.cpu else GPU
    home.mkdir(parents=True, exist_ok=True)
    load = planner.Load(args.rows, args.prompt, args.response, gpu=not args.cpu)
    game = play(home, device, args.game)
    measured, planned = measure(home, load, args.steps, device, args.model)
    peak = measured["flops_rate"] if args.cpu else _peak(args.model)
    reached = speed(load, measured, planned, peak)
    rows = [
        [label, planned[part] / unit, measured[part] / unit, planned[part] / measured[part]]
        for part, label, unit in PARTS
    ]
    figures: dict[str, Any] = {"device": _device(args.cpu), "game": game, "measured": measured, "planned": planned}
    tables = [
        table(["the sandbox's game, a step", "figure"], [[name, value] for name, value in sorted(game.items())]),
        table(["a random model", "planned", "measured", "planned / measured"], rows),
        table(["a random model", "figure"], [[name, value] for name, value in reached.items()]),
    ]
    report(f"backend=megatron on {figures['device']}", tables, figures | {"reached": reached}, args.out)


def _peak(words: Sequence[str]) -> float:
    from nemo_magic.config.hardware import HardwareConfig

    named = [word.partition("=")[2] for word in words if word.startswith("hardware.tflops=")]
    return float(named[-1] if named else HardwareConfig().tflops) * 1e12


def _device(cpu: bool) -> str:
    if cpu:
        return "CPU"
    found = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.cuda.get_device_name())"], capture_output=True, text=True,
        env=os.environ,
    )  # fmt: skip
    return found.stdout.strip() or json.dumps(found.stderr[-200:])


if __name__ == "__main__":
    main()
