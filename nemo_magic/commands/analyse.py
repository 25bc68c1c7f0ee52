"""``nemo-magic analyse RUN``: what a run's attacker did. Imports neither torch nor NeMo."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from nemo_magic.analysis.analyse import Analyst
from nemo_magic.analysis.attack_tables import print_attack_tables
from nemo_magic.analysis.errors import AnalysisError
from nemo_magic.analysis.labels import labelling_model
from nemo_magic.commands.config_arguments import add_overrides
from nemo_magic.config import ConfigError, MagicConfig, compose, conf_dir
from nemo_magic.config.save_resolved import CONFIG_FILE
from nemo_magic.judge.guards.strategies import StrategyRubric, read_strategy_rubric
from nemo_magic.report.records import ATTACKS_DIR, METRICS_FILE
from nemo_magic.report.run_folder import RunFolder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, ``--wandb``, and overrides."""
    parser.add_argument("run", metavar="RUN", type=Path, help="a run's folder")
    parser.add_argument("--wandb", action="store_true", help="show it in the run's wandb run as well")
    add_overrides(parser, "laid over the run's own configuration: analysis.labels.model.urls=[http://gpu:8000/v1]")


def run(args: argparse.Namespace) -> int:
    """Analyse the run's attacks, write the figures to its folder and print them.

    Raises:
        ConfigError: there is no run, or its settings cannot be used.
        AnalysisError: a server does not answer; its earlier answers are kept.
    """
    folder: Path = args.run
    cfg = _compose(folder, args.overrides)
    analyst = Analyst(asdict(cfg), cfg.analysis, _read_rubric(cfg), lambda text: print(text, flush=True))
    run = RunFolder(folder)
    print_attack_tables(analyst.write(run), Console())
    print(f"\n{folder / ATTACKS_DIR}")
    if args.wandb:
        _show_in_wandb(run, cfg)
    return 0


def _compose(run: Path, overrides: Sequence[str]) -> MagicConfig:
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
    """Show the report's charts in the wandb run that has the run's figures."""
    from nemo_magic.report.media import collect_media
    from nemo_magic.tracking.sinks import WandbSink

    step = run.last.step if run.last else 0
    try:
        sink = WandbSink(run.path, asdict(cfg.exp_manager.wandb_logger_kwargs), resume_step=step)
    except ModuleNotFoundError as error:
        raise AnalysisError(f"--wandb: {error}") from error
    sink.write_media(step, collect_media(run, cfg.exp_manager.log_texts))
    sink.close()


def _read_rubric(cfg: MagicConfig) -> StrategyRubric:
    name = cfg.analysis.labels.rubric
    own = "/" in name or name.endswith((".yaml", ".yml"))
    path = Path(name).expanduser() if own else conf_dir() / "judge" / "rubric" / f"{name}.yaml"
    try:
        return read_strategy_rubric(path)
    except FileNotFoundError as error:
        raise ConfigError(f"analysis.labels.rubric={name!r}: {path} does not exist") from error
    except ValueError as error:
        raise ConfigError(f"analysis.labels.rubric={name!r}: {error}") from error
