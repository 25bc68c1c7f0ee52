"""``nemo-magic analyse RUN``: what a run's attacker did. Imports neither torch nor NeMo."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nemo_magic.analysis.errors import AnalysisError
from nemo_magic.config import ConfigError, MagicConfig, compose, conf_dir
from nemo_magic.config.save_resolved import CONFIG_FILE
from nemo_magic.formatting import MISSING, percent
from nemo_magic.judge.guards.strategies import StrategyRubric, read_strategy_rubric
from nemo_magic.report.records import ATTACK_TABLE_FILE, ATTACKS_DIR, METRICS_FILE
from nemo_magic.report.run_folder import RunFolder

_SHOWN = 12


def add_parser(commands: Any) -> None:
    """``nemo-magic analyse``."""
    about = "what a run's attacker did: strategies, hybrids, novelty, diversity, intent, over steps"
    parser = commands.add_parser(
        "analyse",
        help=about,
        description=about,
        usage="nemo-magic analyse RUN [--wandb] [key=value ...]",
        epilog="Overrides are laid over the run's own configuration: analysis.labels.model.urls=[http://gpu:8000/v1].",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run's folder")
    parser.add_argument("--wandb", action="store_true", help="show it in the run's wandb run as well")


def run(args: argparse.Namespace) -> int:
    """Analyse, and print what was found.

    Raises:
        ConfigError: there is no run, or its settings cannot be used.
        AnalysisError: a server is not there; what it said before is kept.
    """
    from nemo_magic.analysis.analyse import Analyst  # numpy and more, which are wanted here only

    folder: Path = args.run
    cfg = _configured(folder, args.overrides)

    def say(text: str) -> None:
        print(text, flush=True)

    analyst = Analyst(asdict(cfg), cfg.analysis, _rubric(cfg), say)
    run = RunFolder(folder)
    show(analyst.write(run), Console())
    print(f"\n{folder / ATTACKS_DIR}")
    if args.wandb:
        _show_in_wandb(run, cfg)
    return 0


def show(found: Mapping[str, Any], console: Console) -> None:
    """What ``attacks.json`` says, in two tables."""
    console.print(f"{found['rule']} Attacks of a model: {found['attacks']:,}.")
    console.print(f"Labelled by: {found['labels'] or 'nobody'}.", markup=False)
    for problem, count in found["problems"]:
        console.print(f"  {count} × {problem}", markup=False)
    if (check := found["check"]) is not None:
        console.print(
            f"Of {check['rows']:,} rows of the pool it names {percent(check['exact'])} % as the pool does, and "
            f"{percent(check['unknown'])} % not at all; a hybrid's parts overlap by {percent(check['overlap'])} %."
        )
    pool = found["pool"]
    console.print(
        f"Novelty: {pool}" if isinstance(pool, str) else
        f"Novelty is against {pool['combinations']} combinations in {pool['rows']:,} rows of {pool['path']}"
        + (f", {pool['unreadable']:,} without one" if pool["unreadable"] else "") + ".",
        markup=False,
    )  # fmt: skip
    if not found["attacks"]:
        return
    figures = Table(title="Attacks by phase", title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    columns = ("attacks", "hybrid", "new", "lost", "open", "BLEU", "seed", "cosine")
    for heading in ("", *columns):
        figures.add_column(heading, justify="right" if heading else "left")
    for phase in found["phases"]:
        figures.add_row(f"{phase['phase']} {phase['learner']}", *_cells(phase))
    figures.add_row("all", *_cells(found["whole"]))
    figures.caption = (
        "Percent: hybrid combine several strategies, new combine them as no row of the pool, lost their seed's intent, "
        "open: strategy unknown. Self-BLEU of different seeds, and of one seed; cosine of embeddings."
    )
    figures.caption_justify = "left"
    console.print(figures)
    table = Table(title="Strategies", title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    for heading in ("", "attacks", "share", "ASR", "lost", "steps", "in pool"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in found["strategies"][:_SHOWN]:
        in_pool = MISSING if row["in_pool"] is None else str(row["in_pool"])
        table.add_row(
            Text(row["strategy"]), str(row["attacks"]), percent(row["share"]), percent(row["asr"]),
            percent(row["intent_lost"]), f"{row['first_step']} to {row['last_step']}", in_pool,
        )  # fmt: skip
    if (left := len(found["strategies"]) - _SHOWN) > 0:
        table.caption = f"and {left} more in {ATTACK_TABLE_FILE}"
    console.print(table)


def _configured(run: Path, overrides: Sequence[str]) -> MagicConfig:
    from nemo_magic.analysis.labels import labelling_model

    for name in (CONFIG_FILE, METRICS_FILE):
        if not (run / name).is_file():
            raise ConfigError(f"{run / name}: no such file; give the folder of a run of `nemo-magic train`")
    cfg = compose(CONFIG_FILE.removesuffix(".yaml"), list(overrides), str(run), "analyse")
    try:
        cfg.analysis.embedding.token()
        if cfg.analysis.labels.model:
            labelling_model(cfg.analysis.labels)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return cfg


def _show_in_wandb(run: RunFolder, cfg: MagicConfig) -> None:
    """What the report shows, in the wandb run that the run's figures are in."""
    from nemo_magic.report.media import collect_media
    from nemo_magic.tracking.sinks import WandbSink

    step = run.last.step if run.last else 0
    try:
        sink = WandbSink(run.path, asdict(cfg.exp_manager.wandb_logger_kwargs), resume_step=step)
    except ModuleNotFoundError as error:
        raise AnalysisError(f"--wandb: {error}") from error
    sink.write_media(step, collect_media(run, cfg.exp_manager.log_texts))
    sink.close()


def _rubric(cfg: MagicConfig) -> StrategyRubric:
    name = cfg.analysis.labels.rubric
    own = "/" in name or name.endswith((".yaml", ".yml"))
    path = Path(name).expanduser() if own else conf_dir() / "judge" / "rubric" / f"{name}.yaml"
    try:
        return read_strategy_rubric(path)
    except FileNotFoundError as error:
        raise ConfigError(f"analysis.labels.rubric={name!r}: {path} does not exist") from error
    except ValueError as error:
        raise ConfigError(f"analysis.labels.rubric={name!r}: {error}") from error


def _cells(figures: Mapping[str, Any]) -> list[str]:
    shares = ("hybrid_share", "novel_share", "intent_lost", "unknown_share")
    alike = ("self_bleu", "self_bleu_same_seed", "similarity")
    numbers = [MISSING if figures[name] is None else f"{figures[name]:.3f}" for name in alike]
    return [str(figures["attacks"]), *(percent(figures[name]) for name in shares), *numbers]
