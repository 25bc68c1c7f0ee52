"""One game of the sandbox with each option of the objective: ``make experiments EXPERIMENT=--objective``.

Each game is ended after half of its steps and goes on from its checkpoint, so that the table says of every option that
it plays, learns and resumes. What was played is not played again. docs/objective.md explains the options. With
``--steps 8`` and fewer games a step it is short; then its rates say nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from arms import SHARED, program

from nemo_magic.formatting import markdown_table
from nemo_magic.report.records import METRICS_FILE, read_records

OPTIONS: dict[str, tuple[str, ...]] = {
    "the defaults": (),
    # Its reward needs the harm of the rewrite, and some rewrites mean nothing to the world's rules.
    "game=reference": (
        "game=reference",
        "game.group_size=8",
        "game.num_val_samples=64",
        "judge.max_unknown_share=0.5",
    ),
    "dual clip": ("grpo.dual_clip=3", "grpo.minibatches=2"),
    "log-ratio cap": ("grpo.max_log_ratio=3", "grpo.minibatches=2"),
    "GSPO": ("grpo.policy_loss=gspo", "grpo.aggregation=sequence", "grpo.minibatches=2"),
    "CISPO": ("grpo.policy_loss=cispo", "grpo.minibatches=2"),
    "Dr. GRPO": ("grpo.aggregation=constant", "grpo.constant_length=20", "grpo.scale_by_std=false"),
    "one microbatch": ("grpo.aggregation=microbatch",),
    "TIS": ("grpo.tis_clip=2",),
    "IcePop": ("grpo.tis_clip=5", "grpo.tis_mode=token_mask", "grpo.tis_low=0.5"),
    "sequence TIS": ("grpo.tis_clip=2", "grpo.tis_mode=sequence"),
    "sequence mask": ("grpo.tis_clip=2", "grpo.tis_mode=sequence_mask", "grpo.tis_low=0.5"),
    "sample std": ("grpo.std=sample",),
    "leave-one-out": ("grpo.baseline=leave_one_out", "grpo.scale_by_std=false"),
    "role baselines": ("grpo.baseline=role", "grpo.scale_by_std=false"),
    "groups kept": ("grpo.no_spread=keep",),
    "refill": ("grpo.refill_rounds=2",),
    "soft overlong penalty": ("rewards.overlong_buffer=4", "rewards.overlong_penalty=0.5"),
    "KL in the loss": ("grpo.kl_beta=0.05",),
    "KL in the reward": ("grpo.kl_beta=0.05", "grpo.kl_in=reward"),
    "KL, gradient of k2": ("grpo.kl_beta=0.05", "grpo.kl_gradient=k2"),
    "KL, weighted": ("grpo.kl_beta=0.05", "grpo.kl_gradient=weighted", "grpo.minibatches=2"),
    "entropy bonus": ("grpo.entropy_bonus=0.01",),
    "reference reset": ("grpo.kl_beta=0.05", "grpo.reference_every=15"),
    "reference average": ("grpo.kl_beta=0.05", "grpo.reference_every=1", "grpo.reference_mix=0.05"),
}
"""Name → overrides of ``conf/magic_sandbox.yaml``."""

STEPS = 30


def table(into: Path, overrides: Sequence[str], steps: int = STEPS) -> str:
    """Play what is missing below ``into``, and a row for each option in Markdown. ``steps``: one phase of each role
    together, an even number."""
    header = ["option", "resumed at", "ASR before", "ASR after a defender phase", "ASR at the end", "useful at the end",
              "largest gradient norm", "updates not made"]  # fmt: skip
    return markdown_table([header, *(_row(name, _play(name, into, overrides, steps), steps) for name in OPTIONS)])


def _play(name: str, into: Path, overrides: Sequence[str], steps: int) -> Path:
    folder = into / "objective" / name.replace(" ", "-").replace(",", "").replace("=", "-")
    phase = steps // 2
    for last in (phase, steps):
        played = read_records(folder / METRICS_FILE) if (folder / METRICS_FILE).exists() else []
        if len(played) <= last:
            program(
                "train", "-cn", "magic_sandbox", f"exp_manager.explicit_log_dir={folder}", f"game.max_steps={last}",
                f"game.schedule.freq={phase}", f"game.val_check_interval={phase}",
                "game.strategy_sweep=null", "model.optim.sched.max_steps=1000", *SHARED, *OPTIONS[name], *overrides,
            )  # fmt: skip
    return folder


def _row(name: str, folder: Path, steps: int) -> list[str]:
    records = read_records(folder / METRICS_FILE)
    asr = {one.step: one.metrics["val_rollouts/asr"] for one in records if "val_rollouts/asr" in one.metrics}
    norms = [one.metrics.get("train_optim/grad_norm", 0.0) for one in records]
    skipped = sum(one.metrics.get("train_optim/skipped_updates", 0.0) for one in records)
    useful = records[-1].metrics.get("val_rollouts/useful", float("nan"))
    figures = (asr[0], asr[steps // 2], asr[steps], useful, max(norms))
    return [name, str(steps // 2), *(f"{value:.2f}" for value in figures), f"{skipped:g}"]
