"""A short sandbox game on one GPU, without apex and transformer_engine: does every part of the loop run there?

    torchrun --standalone --nproc-per-node 1 benchmarks/gpu_game.py --folder runs/gpu_game [--cpu] [key=value …]

Warm-up of both roles, then a game of both phases in bf16: rollouts, a judge of its own, updates, the phase switch with
its offload, opponents' weights swapped in, checkpoints, and cross-play at the end. Prints seconds and peak memory by
part. ``--cpu`` runs the same on the CPU lane.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from figures import settle

GAME = [
    "trainer.devices=1", "game.max_steps=8", "game.schedule.freq=2", "game.batch_size=16", "game.num_val_samples=16",
    "game.val_check_interval=4", "game.crossplay.num_seeds=20", "game.pool.draw=uniform", "game.pool.opponents=2",
    "game.strategy_sweep=null", "exp_manager.create_report=false", "exp_manager.create_tensorboard_logger=false",
    "exp_manager.checkpoint_callback_params.every_n_train_steps=2",
]  # fmt: skip
BF16 = ["trainer.precision=bf16", "model.megatron_amp_O2=true"]


def configured(name: str, words: list[str], cpu: bool) -> Any:
    """The configuration, on a GPU if not ``cpu``; checked as one of the CPU lane, which needs no apex."""
    from nemo_magic.config import compose

    cfg = compose(name, words, command="plan")
    return cfg if cpu else replace(cfg, trainer=replace(cfg.trainer, accelerator="gpu"))


def main() -> None:
    """Warm up, play, and print what each part took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--cpu", action="store_true")
    args, words = parser.parse_known_args()
    settle()
    from nemo_magic.compat import cpu

    if args.cpu:
        cpu.install()
    else:
        cpu.do_without_apex()
    from nemo_magic.judge.local import launch_local
    from nemo_magic.report.records import read_records
    from nemo_magic.runtime.resume import Resume
    from nemo_magic.sandbox.corpus import prepare
    from nemo_magic.training.coevolution import train
    from nemo_magic.training.sft import run_sft

    home = args.folder.resolve()
    shared = [f"sandbox.folder={home / 'sandbox'}", *([] if args.cpu else BF16), *words]
    for role in ("attacker", "defender"):
        warm = [*shared, "trainer.devices=1", "sft.max_steps=60", f"exp_manager.explicit_log_dir={home / role}"]
        cfg = configured(f"sft_sandbox_{role}", warm, args.cpu)
        prepare(cfg.sandbox)
        if not (home / role / "weights").exists():
            run_sft(cfg, Resume())
    weights = [f"actors.{role}.restore_from_path={home / role / 'weights'}" for role in ("attacker", "defender")]
    game = [*shared, *GAME, *weights, "name=game", f"exp_manager.explicit_log_dir={home / 'game'}"]
    cfg = configured("magic_sandbox", game, args.cpu)
    with launch_local(cfg.judge, home / "judge.log") as judge:
        train(replace(cfg, judge=judge.config), Resume())
    parts: dict[str, list[float]] = {}
    for record in read_records(home / "game" / "metrics.jsonl"):
        for name, value in record.metrics.items():
            if name.startswith(("timers/", "memory/")):
                parts.setdefault(name, []).append(round(float(value), 4))
    print(json.dumps(parts, indent=1))
    (home / "parts.json").write_text(json.dumps(parts, indent=1) + "\n")


if __name__ == "__main__":
    main()
