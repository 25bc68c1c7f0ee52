"""nemo-magic train | sft | judge | judge-check | sandbox | plan | cross-play | …: compose, check, launch.

Everything else is imported once it is needed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

from nemo_magic import __version__
from nemo_magic.actors.errors import ModelError, RemoteError
from nemo_magic.analysis.errors import AnalysisError
from nemo_magic.commands import analyse as analyse_command
from nemo_magic.commands import convert, cross_play, report
from nemo_magic.commands import seeds_export as export
from nemo_magic.config import ConfigError, MagicConfig, compose, describe, save_resolved, to_yaml
from nemo_magic.config.evaluation import describe_evaluation, needs_world
from nemo_magic.config.validation import models
from nemo_magic.convert.compatibility import refuse_other_models
from nemo_magic.convert.errors import ConvertError
from nemo_magic.data.errors import DataError
from nemo_magic.evaluation.errors import EvaluationError
from nemo_magic.judge.errors import JudgeError
from nemo_magic.report import sweep_table
from nemo_magic.runtime import postmortem
from nemo_magic.runtime.errors import Preempted, TrainingError
from nemo_magic.runtime.preemption import SAVE_SIGNALS
from nemo_magic.runtime.resume import Resume, decide

EXIT_RUNTIME, EXIT_CONFIG, EXIT_INTERRUPTED = 1, 2, 130
EXIT_PREEMPTED = 75
"""The run was asked to end, has saved, and goes on when the same command is given again (EX_TEMPFAIL)."""

_TRAINING = ("train", "sft")
_KEPT = (*_TRAINING, "evaluate")
"""Commands that keep their configuration in the run's folder."""
_RANK = "NEMO_MAGIC_RANK"
"""Tells what a rank starts who it belongs to; multiprocessing says so too late."""

_COMMANDS = {
    "train": "co-train attacker and defender (phase 2)",
    "sft": "warm up one role on a pool of examples (phase 1)",
    "evaluate": "measure a defender on benchmarks, your own copies of them",
    "capability": "have lm-evaluation-harness measure a served model, and tell what it found",
    "serve": "serve one role's actor to OpenAI's clients until interrupted",
    "judge": "serve the configured judge until interrupted",
    "sandbox": "write the sandbox's files: tokenizer, seeds, pools",
    "plan": "say what a run takes: memory, seconds, GPU-hours, and the best layout",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status: 0, 1 (it failed), 2 (it could not have run), 130 (interrupted)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = _parse(argv)
    try:
        if args.command == "judge-check":
            return _check_judges(args)
        if args.command == "convert":
            return convert.run(args)
        if args.command == "postmortem":
            return postmortem.run(args)
        if args.command == "sweep-table":
            return sweep_table.run(args)
        if args.command == "cross-play":
            return _play_or_learn(args, cross_play.configured(args), argv)
        if args.command == "report":
            return report.run(args)
        if args.command == "seeds-export":
            return export.run(args)
        if args.command == "analyse":
            return analyse_command.run(args)
        cfg = compose(args.config_name, args.overrides, args.config_dir, args.command)
        if args.dry_run:
            print(to_yaml(cfg), end="")
            if args.command in _TRAINING:
                print("\n" + _commented(describe(cfg, args.command)))
            if args.command == "evaluate":
                print("\n" + _commented(describe_evaluation(cfg)))
            return 0
        return _run(args, cfg, argv)
    except ConfigError as error:
        print(f"nemo-magic {args.command}: {error}", file=sys.stderr)
        return EXIT_CONFIG
    except Preempted as error:
        return _say(args.command, f"{error}; the same command goes on from there", EXIT_PREEMPTED)
    except (
        AnalysisError,
        ConvertError,
        DataError,
        EvaluationError,
        JudgeError,
        ModelError,
        RemoteError,
        TrainingError,
        FileNotFoundError,
        FileExistsError,
    ) as error:
        return _say(args.command, str(error), EXIT_RUNTIME)
    except KeyboardInterrupt:
        print(f"nemo-magic {args.command}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _say(command: str, text: str, status: int) -> int:
    """One rank speaks for all that fail alike."""
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
        print(f"nemo-magic {command}: {text}", file=sys.stderr)
    return status


def _run(args: argparse.Namespace, cfg: MagicConfig, argv: list[str]) -> int:
    command = args.command
    if command == "sandbox":
        from nemo_magic.sandbox.corpus import prepare

        print(f"the sandbox is in {prepare(cfg.sandbox)}")
        return 0
    if command == "judge":
        from nemo_magic.judge.server import log_to_stderr, serve

        log_to_stderr()
        try:
            serve(cfg.judge, say=lambda text: print(text, flush=True))
        except ValueError as error:
            raise ConfigError(str(error)) from error
        except FileNotFoundError:
            raise  # the guard's own file, which the message names
        except OSError as error:
            raise JudgeError(
                f"judge.server.host={cfg.judge.server.host}, port={cfg.judge.server.port}: {error}"
            ) from error
        return 0
    if command == "capability":
        from nemo_magic.commands.capability import run as capability

        return capability(args, cfg)
    if command == "plan":
        from nemo_magic.commands.plan import run as plan

        return plan(cfg, args.json)
    return _play_or_learn(args, cfg, argv)


def _check_judges(args: argparse.Namespace) -> int:
    from nemo_magic.judge.check import check, read_labelled, summary
    from nemo_magic.judge.client import JudgeClient
    from nemo_magic.judge.config import JudgeConfig

    rows, report = read_labelled(args.file)
    print(f"{args.file}: {report}", flush=True)
    runs = []
    for url in args.judge:
        try:
            settings = JudgeConfig(urls=[url], token_env=args.token_env, batch_size=args.batch)
            client = JudgeClient(settings)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        with client:
            runs.append(check(client, rows, args.batch, args.parallel))
    print(f"\n{summary(rows, runs)}")
    return 0


def _play_or_learn(args: argparse.Namespace, cfg: MagicConfig, argv: list[str]) -> int:
    from nemo_magic import launcher

    command = args.command
    resume = decide(cfg, args.resume) if command == "train" else Resume()
    judged = command not in ("sft", "serve")
    if command in (*_KEPT, "serve"):
        refuse_other_models(cfg, models(cfg, command))

    launched = launcher.is_rank(cfg.trainer)
    if launched and judged and cfg.judge.launch:
        raise ConfigError(
            "judge.launch=true starts a judge beside the process that starts the ranks, and these ranks were started "
            "by somebody else: run `nemo-magic judge` first and give its address as judge.urls=[http://host:port]"
        )
    if launcher.is_first_process() and command in _KEPT:
        save_resolved(cfg, cfg.exp_manager.explicit_log_dir)
    with launcher.local_judge(cfg) if judged and cfg.judge.launch else nullcontext() as judge:
        if judge is not None:
            cfg = replace(cfg, judge=judge.config)
            argv = [*argv, f'judge.urls=["{judge.url}"]', "judge.launch=false"]
        if command == "evaluate" and not needs_world(cfg):
            if launcher.is_first_process():  # the other ranks have nothing to do
                _evaluate(cfg)
            return 0
        if not launched and cfg.trainer.num_nodes * cfg.trainer.devices > 1:
            ends = (*SAVE_SIGNALS, signal.SIGINT) if command == "serve" else SAVE_SIGNALS
            return launcher.launch(argv, cfg.trainer, ends)
        try:
            _one_rank(args, cfg, resume)
        except Preempted:
            _leave()
            raise
        _leave()
    return 0


def _leave() -> None:
    """End a rank's part in its world, where all ranks have come to an end together."""
    from nemo_magic.actors.distributed import destroy

    destroy()


def _evaluate(cfg: MagicConfig) -> None:
    from nemo_magic.evaluation.runner import evaluate

    evaluate(cfg)


def _one_rank(args: argparse.Namespace, cfg: MagicConfig, resume: Resume) -> None:
    """Be one rank of the run: what is imported from here on needs torch and NeMo."""
    from nemo_magic.launcher import die_with_launcher

    die_with_launcher()
    os.environ[_RANK] = str(os.getpid())
    if not sys.warnoptions:
        # Importing NeMo warns some dozen times of packages that are not needed here; python -W shows them again.
        warnings.simplefilter("ignore")
    # Each rank would warn of it: tokenizing threads are of no use in a process that forks to save checkpoints.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if cfg.trainer.accelerator == "cpu":
        from nemo_magic.compat import cpu

        try:
            cpu.install()
        except cpu.CudaAvailableError as error:
            raise ConfigError(str(error)) from error
    else:
        from nemo_magic.compat import trtllm

        try:
            trtllm.prepare(wanted=args.command != "sft" and cfg.generation.trt_llm.enable)
        except trtllm.TensorRTLLMMissingError as error:
            raise ConfigError(str(error)) from error
    if args.command == "sft":
        from nemo_magic.training.sft import run_sft

        run_sft(cfg)
    elif args.command == "cross-play":
        cross_play.play(args, cfg)
    elif args.command == "evaluate":
        _evaluate(cfg)
    elif args.command == "serve":
        from nemo_magic.serving.server import serve

        serve(cfg)
    else:
        from nemo_magic.training.coevolution import train

        train(cfg, resume)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nemo-magic", description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"nemo-magic {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{" + ",".join(_COMMANDS) + "}")
    for name, meaning in _COMMANDS.items():
        resume = "[--resume auto|never|FOLDER] " if name == "train" else ""
        command = commands.add_parser(
            name,
            help=meaning,
            description=meaning,
            usage=f"nemo-magic {name} -cn NAME [-cd DIR] {resume}[--dry-run] [key=value ...]",
            epilog="Overrides are Hydra's: game.schedule.freq=5 sets a key, game=paper takes a group's file.",
            allow_abbrev=False,
        )
        command.add_argument("-cn", "--config-name", required=True, metavar="NAME", help="a file of conf/, e.g. magic")
        command.add_argument("-cd", "--config-dir", metavar="DIR", help="a folder of your own, searched before conf/")
        if name == "train":
            command.add_argument(
                "--resume",
                default="auto",
                metavar="auto|never|FOLDER",
                help="go on from the newest checkpoint of the run's folder (auto), from none, or from a given one",
            )
        if name == "capability":
            command.add_argument("--run", action="store_true", help="run what is printed, and tell what it found")
        if name == "plan":
            command.add_argument("--json", action="store_true", help="the same as JSON, in bytes")
        command.add_argument("--dry-run", action="store_true", help="print the resolved configuration and the plan")
    about = "have one or two running judges judge a labelled file: agreement, confusion, unknown share, latency, κ"
    checking = commands.add_parser("judge-check", help=about, description=about, allow_abbrev=False)
    checking.add_argument("file", metavar="FILE", help="prompt, response, and a column per labelled field of a verdict")
    checking.add_argument("--judge", metavar="URL", action="append", required=True, help="given twice: κ of the two")
    checking.add_argument("--token-env", metavar="NAME", help="the environment variable that holds their token")
    checking.add_argument("--batch", type=int, default=64, metavar="N", help="rows a request (64)")
    postmortem.add_parser(commands)
    convert.add_parser(commands)
    sweep_table.add_parser(commands)
    cross_play.add_parser(commands)
    report.add_parser(commands)
    export.add_parser(commands)
    analyse_command.add_parser(commands)
    checking.add_argument("--parallel", type=int, default=4, metavar="N", help="requests at once (4)")
    # Overrides are what is left over: argparse cannot mix an open list of positionals with options.
    args, rest = parser.parse_known_args(argv)
    options = [word for word in rest if word.startswith("-")]
    if options:
        parser.error(f"unknown option: {' '.join(options)}")
    if args.command == "judge-check" and (rest or len(args.judge) > 2):
        parser.error(f"unknown argument: {' '.join(rest)}" if rest else "--judge is given at most twice")
    if args.command in ("convert", "postmortem", "report", "seeds-export", "sweep-table") and rest:
        parser.error(f"unknown argument: {' '.join(rest)}")
    args.overrides = rest
    return args


def _commented(text: str) -> str:
    """As YAML comments, so that the output of --dry-run is itself a configuration."""
    return "\n".join(f"# {line}".rstrip() for line in text.splitlines())


if __name__ == "__mp_main__" and _RANK in os.environ:
    # A process that Megatron-core spawns beside a rank to collect what was written, and that imports the rank's main
    # module: it must not outlive a rank that is killed, and must outlive a signal that asks the rank to save.
    from nemo_magic.launcher import die_with_parent
    from nemo_magic.runtime.preemption import SAVE_SIGNALS

    die_with_parent(int(os.environ[_RANK]))
    for _number in SAVE_SIGNALS:
        signal.signal(_number, signal.SIG_IGN)

if __name__ == "__main__":
    sys.exit(main())
