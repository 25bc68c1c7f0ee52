"""The plan's tables in docs/planner.md, between their marks: ``python benchmarks/plan_tables.py``.

Nothing is measured: these are predictions of the presets and of published steps. A test compares the page with what
this makes of the present code.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from figures import fill_marks, settle, table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "planner.md"
NODES = (8, 16, 32)
_GIB = float(1 << 30)


def nodes() -> str:
    """``magic_70b`` on 8, 16 and 32 nodes."""
    from nemo_magic.config import compose
    from nemo_magic.game.episode import Role
    from nemo_magic.planner.estimate import plan_of

    plans = [
        plan_of(compose("magic_70b", [f"trainer.num_nodes={n}"], command="plan"), dict.fromkeys(Role, 128256))
        for n in NODES
    ]
    rows: list[list[object]] = [["TP × PP × DP", *(f"{p.world.tp} × {p.world.pp} × {p.world.dp}" for p in plans)]]
    for moment in plans[0].memory:
        rows.append([f"GiB, {moment}", *(f"{sum(p.memory[moment].values()) / _GIB:.1f}" for p in plans)])
    rows.append(["GiB that can be counted on", *(f"{p.available / _GIB:.1f}" for p in plans)])
    rows.append(["host GiB a node", *(f"{sum(p.host.values()) / _GIB:.0f}" for p in plans)])
    for part in plans[0].seconds:
        rows.append([f"s, {part}", *(f"{p.seconds[part]:.1f}" for p in plans)])
    rows.append(["s a step", *(f"{p.step_seconds:.0f}" for p in plans)])
    rows.append(["hours, GPU-hours", *(f"{p.hours:.1f}, {p.gpu_hours:,.0f}" for p in plans)])
    rows.append(["kWh", *(f"{p.kilowatt_hours:,.0f}" for p in plans)])
    return table(["", *(f"{n} nodes" for n in NODES)], rows)


def presets() -> str:
    """What every preset for a cluster takes on its own nodes."""
    from nemo_magic.commands.plan import vocabulary
    from nemo_magic.config import compose
    from nemo_magic.config.validation import models
    from nemo_magic.planner.estimate import plan_of

    rows: list[list[object]] = []
    for name, overrides in (
        ("magic_8b", []),
        ("magic_8b", ["model=qwen25_7b", "generation.engine=native"]),
        ("magic_8b_lora", []),
        ("magic_14b", []),
        ("magic_70b", []),
        ("magic_70b_lora", []),
        ("magic_70b", ["model=qwen25_72b", "generation.engine=native", "generation.batch_size=128"]),
    ):
        cfg = compose(name, overrides, command="plan")
        plan = plan_of(cfg, {role: vocabulary(model, role) for role, model in models(cfg).items()})
        world = plan.world
        rows.append(
            [
                " ".join([name, *overrides]),
                f"{cfg.trainer.num_nodes} × {cfg.trainer.devices}",
                f"{world.tp} × {world.pp} × {world.dp}",
                f"{next(iter(plan.parameters.values())):,}",
                f"{plan.needed / _GIB:.0f}",
                f"{plan.checkpoint / 1e12:.3g}",
                f"{plan.step_seconds:.0f}",
                f"{plan.gpu_hours:,.0f}",
            ]
        )
    columns = ["", "devices", "TP × PP × DP", "parameters of a role", "GiB", "checkpoint, TB", "s a step", "GPU-hours"]
    return table(columns, rows)


def settings() -> str:
    """The published steps' settings."""
    from nemo_magic.planner.published import STEPS

    rows: list[list[object]] = [
        [
            step.name,
            f"{step.gpus}",
            f"{step.tp} × {step.pp} × {step.dp}, {step.engine}",
            f"{step.rows:,} in {step.updates}",
            f"{step.prompt} + {step.response:,}, {step.limit:,}",
            f"{step.packed:,}, {step.scored_packed:,}" if step.packed else "a padded row",
            "full" if step.recompute else "none",
            step.assumed,
        ]
        for step in STEPS
    ]
    columns = [
        "", "GPUs", "TP × PP × DP, engine's TP", "rollouts in updates", "prompt + response, limit",
        "tokens a microbatch: updates, log-probabilities", "recompute", "assumed",
    ]  # fmt: skip
    return table(columns, rows)


def published() -> str:
    """The published steps beside their predictions."""
    from nemo_magic.config.hardware import HardwareConfig
    from nemo_magic.planner.published import STEPS, predict

    rows: list[list[object]] = []
    for step in STEPS:
        parts = predict(step, HardwareConfig())
        cells = [f"{value:.1f}" for value in parts.values()]
        for i, part in enumerate(parts):
            if part in step.measured:
                measured = step.measured[part]
                off = f"{round(100 * (parts[part] / measured - 1)):+d} %"
                cells[i] += f" of {measured:g}: {off.replace('-', '−')}"
        rows.append([step.name, *cells])
    return table(["s, predicted of published", "generation", "training", "log-probabilities", "refit", "step"], rows)


TABLES = {"nodes": nodes, "presets": presets, "settings": settings, "published": published}


def fill_tables(text: str, tables: Sequence[str] = tuple(TABLES)) -> str:
    """The page's ``text`` with the ``tables`` of the present code.

    Raises:
        ValueError: the marks of a table are not there.
    """
    return fill_marks(text, {name: TABLES[name]() for name in tables}, f"docs/{PAGE.name}")


if __name__ == "__main__":
    settle()
    PAGE.write_text(fill_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
