"""Memory and seconds of two roles as full models, and as LoRA adapters on one base, of the same shape.

    python benchmarks/adapters.py [--rows 32] [--tokens 40] [--repeats 5] [--selves 20] [--out FILE] [key=value …]

``key=value`` are overrides of conf/magic_sandbox.yaml, e.g. ``model.num_layers=8 model.hidden_size=512`` or
``model.peft.lora_tuning.adapter_dim=16``. Every way is measured in a process of its own, with a reference policy, from
random weights that the full model saves and the adapters stand on.

- memory: the most that the process held (on a GPU: that was allocated), after both roles were built and after updates;
- an update of ``--rows`` rows of ``--tokens`` tokens; log-probabilities of the reference policy; a decoded token;
- a phase switch: the learner's snapshot is written and the optimizers trade places;
- a change of opponent: one of ``--selves`` snapshots takes the place of a role's weights, from the cache.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from figures import report, settle, table

FULL, LORA = "full", "adapters"
LABELS = {
    "trainable": "parameters that learn, of a role",
    "built_mb": "MB, both roles built",
    "peak_mb": "MB at most",
    "update_s": "s, update",
    "reference_s": "s, reference log-probabilities",
    "token_ms": "ms, a decode step",
    "switch_s": "s, phase switch",
    "opponent_s": "s, change of opponent",
    "snapshot_mb": "MB, a snapshot",
}


def measured(way: str, args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """The figures of one way, in this process."""
    from nemo_magic.compat import cpu

    cpu.install(announce=False)
    from nemo_magic.actors.generation import NativeGenerator
    from nemo_magic.actors.snapshots import SnapshotCache, save_snapshot
    from nemo_magic.actors.weights import save_weights
    from nemo_magic.config import compose
    from nemo_magic.game.episode import Role
    from nemo_magic.rl.batch import Row
    from nemo_magic.rl.loss import Normalizer
    from nemo_magic.training.policies import build_policies
    from nemo_magic.training.trainer import grpo_objective

    base = folder / "base"
    start = str(base) if way == LORA else "null"
    scheme = [] if way == FULL else ["model.peft.peft_scheme=lora"]
    cfg = compose(
        "magic_sandbox",
        [
            "trainer.devices=1", f"sandbox.folder={folder / 'sandbox'}", "grpo.kl_beta=0.01", "judge.launch=false",
            "judge.urls=[http://127.0.0.1:9]", *scheme, *(f"actors.{r}.restore_from_path={start}" for r in Role),
            *args.overrides,
        ],
    )  # fmt: skip
    with build_policies(cfg) as pair:
        attacker = pair.set_learner(Role.ATTACKER)
        if way == FULL:
            save_weights(attacker.actor, base)
        found = {"trainable": float(sum(p.numel() for p in attacker.actor.learning_parameters())), "built_mb": _peak()}
        ids = tuple(4 + i % 30 for i in range(args.tokens))
        rows = [Row(ids[: args.tokens // 2], ids[args.tokens // 2 :], (-1.0) ** i) for i in range(args.rows)]
        norm = Normalizer(float(sum(len(row.response_ids) for row in rows)), float(len(rows)))
        learning = replace(cfg.grpo, kl_beta=0.0)

        def update() -> None:
            batches = attacker.microbatches(rows, pair.world)
            attacker.learn(batches, lambda logprobs, batch: grpo_objective(logprobs, batch, learning, norm))

        update()
        found["update_s"] = _seconds(update, args.repeats)
        batches = attacker.microbatches(rows, pair.world)
        found["reference_s"] = _seconds(lambda: attacker.actor.reference_logprobs(batches), args.repeats)
        found["peak_mb"] = _peak()
        generator, options = NativeGenerator(cfg.generation), cfg.actors.attacker
        generator.load(attacker.actor)
        prompts, seeds = [list(row.prompt_ids) for row in rows], list(range(args.rows))
        length = replace(options.length_params, max_length=args.tokens // 2, min_length=args.tokens // 2)
        decode = _seconds(lambda: generator.generate(prompts, seeds, options.sampling_params, length), args.repeats)
        found["token_ms"] = 1e3 * decode / (args.tokens // 2)
        generator.release()

        def switch() -> None:
            save_snapshot(attacker.actor, folder / way / "self")
            pair.set_learner(Role.DEFENDER)

        def back() -> None:
            pair.set_learner(Role.ATTACKER)

        found["switch_s"] = _seconds(switch, args.repeats, back)
        selves = [save_snapshot(attacker.actor, folder / way / f"phase-{i:02d}") for i in range(args.selves)]
        cache = SnapshotCache(64 << 30)

        def meet() -> None:
            for one in selves:
                with cache.use_snapshot(attacker, one.folder):
                    pass

        meet()  # from disk
        found["opponent_s"] = _seconds(meet, args.repeats) / len(selves)
        found["snapshot_mb"] = sum(path.stat().st_size for path in selves[0].folder.iterdir()) / 1e6
    return found


def _peak() -> float:
    """MB: of the device where there is one, else of the process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _seconds(work: Callable[[], Any], repeats: int, between: Callable[[], Any] = lambda: None) -> float:
    """The median of ``repeats``, with ``between`` after each, untimed."""
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
        between()
    return median(taken)


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--selves", type=int, default=20)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--way", choices=(FULL, LORA), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args(words)
    if args.way:
        print(json.dumps(measured(args.way, args, args.folder)))
        return
    from nemo_magic.sandbox.corpus import prepare
    from nemo_magic.sandbox.world import SandboxConfig

    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        prepare(SandboxConfig(folder=f"{scratch}/sandbox", attack_rows=10, defender_rows=10))
        for way in (FULL, LORA):
            command = [sys.executable, __file__, "--way", way, "--folder", scratch, *words]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[way] = json.loads(done.stdout.splitlines()[-1])
    rows = [
        [label, *(found[way][key] for way in (FULL, LORA)), found[LORA][key] / found[FULL][key]]
        for key, label in LABELS.items()
    ]
    report("Two roles", [table(["", FULL, LORA, "adapters / full"], rows)], found, args.out)


if __name__ == "__main__":
    settle()
    main(sys.argv[1:])
