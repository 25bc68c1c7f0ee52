"""The arms of the sandbox's experiment, and how one run of an arm is played and put into a league.

A run is a folder, ``<into>/<arm>-<seed>``; what is finished there is not played again, what was half played goes on.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_magic.report.records import LEAGUE_FILE, PICTURE_FILE

COST_FILE = "cost.json"
LEAGUE_SEEDS = 120

# The matrix at the end of a run and its report: the league has the one, `nemo-magic report` makes the other.
SHARED = [
    "game.crossplay.enabled=false",
    "exp_manager.create_report=false",
    "exp_manager.create_tensorboard_logger=false",
]
FREQUENCY = 5
PHASES_OF_FIVE = (f"game.schedule.freq={FREQUENCY}",)
POOL = (*PHASES_OF_FIVE, "game.pool.opponents=5")
FIVE = (1, 2, 3, 4, 5)
PAPER = ("game=paper", "game.group_size=8", "game.max_steps=75", "game.num_val_samples=64")


@dataclass(frozen=True)
class Arm:
    """One way to play. ``words``: overrides of ``conf/magic_sandbox.yaml``; ``league``: its snapshots are played
    against each other; ``warmed``: each seed has a warm-up of its own, of both roles; ``seeds`` of its runs."""

    title: str
    words: tuple[str, ...] = ()
    league: bool = False
    warmed: bool = False
    seeds: tuple[int, ...] = (1, 2, 3)


ARMS = {
    "robust": Arm("robust: the full game", league=True),
    "paper": Arm("paper: the published rewards", PAPER, league=True),
    "robust_warmed": Arm("robust, a warm-up a seed", warmed=True),
    "paper_warmed": Arm("paper, a warm-up a seed", PAPER, warmed=True),
    "no_game": Arm("no game", ("ablation=no_game",)),
    "defender_only": Arm("defender only", ("ablation=defender_only",)),
    "magic_base": Arm("attacker not warmed up", ("ablation=magic_base",)),
    "defender_cot": Arm(
        "defender that reasons",
        (
            "ablation=defender_cot",
            "actors.defender.restore_from_path=runs/sft_sandbox_defender_cot/weights",
            "actors.defender.length_params.max_length=20",
        ),
    ),
    "self_play": Arm(
        "self-play, one model",
        ("ablation=self_play", "actors.defender.restore_from_path=runs/sft_sandbox_shared/weights"),
    ),
    "latest": Arm("phases of 5, latest", (*PHASES_OF_FIVE, "game.pool.draw=latest"), league=True, seeds=FIVE),
    "uniform": Arm("phases of 5, uniform pool", (*POOL, "game.pool.draw=uniform"), league=True, seeds=FIVE),
    "pfsp": Arm("phases of 5, PFSP pool", (*POOL, "game.pool.draw=pfsp"), league=True, seeds=FIVE),
}
SHARED_START = tuple(
    f"actors.{role}.restore_from_path=runs/sft_sandbox_shared/weights" for role in ("attacker", "defender")
)


def _lora(dim: int) -> Arm:
    """Both roles are adapters; ten times the rates of all weights (docs/adapters.md)."""
    words = ("model.peft.peft_scheme=lora", f"model.peft.lora_tuning.adapter_dim={dim}")
    rates = ("actors.attacker.model.optim.lr=3e-3", "actors.defender.model.optim.lr=1e-3")
    return Arm(f"adapters of dimension {dim}", (*SHARED_START, *words, *rates))


ADAPTERS = {
    "one_start": Arm("all weights, both roles begin with one model", SHARED_START),
    **{f"lora_{dim}": _lora(dim) for dim in (4, 16, 64)},
}
"""Arms of docs/adapters.md: ``experiments.py --arms robust one_start lora_4 … --out docs/experiments/adapters.json``.
Adapters need one base, so that their measure is the full game from one warm-up of both roles."""

EVERY = ARMS | ADAPTERS
FULL = "robust"
POOLS = ("latest", "uniform", "pfsp")


@dataclass(frozen=True)
class Run:
    """One game of an arm."""

    arm: str
    seed: int
    into: Path

    @property
    def name(self) -> str:
        """The folder's name."""
        return f"{self.arm}-{self.seed}"

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.into / self.name

    @property
    def finished(self) -> bool:
        """Whether it was played to its end, where its picture is drawn."""
        return (self.folder / PICTURE_FILE).exists()


def play(run: Run, overrides: Sequence[str] = ()) -> None:
    """The game, unless it was played. One that was played in one go leaves its wall and CPU seconds in its folder."""
    if not run.finished:
        arm = EVERY[run.arm]
        warm = _warmed_up(run) if arm.warmed else []
        _train(run.folder, run.seed, [*arm.words, *warm, *overrides])


def league(run: Run, others: Sequence[Run]) -> None:
    """Every snapshot of ``run`` against each other, and the attackers that ``others`` saved against its defenders."""
    other_attackers = {f"{one.name}/{path.name}": path for one in others for path in kept(one.folder, "attacker")}
    result = run.folder / LEAGUE_FILE
    if result.exists() and set(other_attackers) <= set(json.loads(result.read_text())["attackers"]):
        return
    attackers = [word for name, path in other_attackers.items() for word in ("--attacker", f"{name}={path}")]
    program("cross-play", str(run.folder), *attackers, f"game.crossplay.num_seeds={LEAGUE_SEEDS}")


def start_up(into: Path, overrides: Sequence[str] = ()) -> float:
    """CPU seconds of a game of one step: what is in those of every game beside its steps."""
    folder = into / "start-up"
    if not (folder / COST_FILE).exists():
        shutil.rmtree(folder, ignore_errors=True)
        _train(folder, 1, ["game.max_steps=1", *overrides])
    cpu: float = json.loads((folder / COST_FILE).read_text())["cpu"]
    return cpu


def kept(run: Path, player: str) -> list[Path]:
    """Weights that a player saved at the end of its phases, in the order of the game."""
    folders = (path.parent for path in (run / "snapshots" / player).glob("phase-*/metadata.json"))
    return sorted(folders, key=lambda path: int(path.name.removeprefix("phase-")))


def last_defender(run: Path) -> Path:
    """The weights of the defender at the end of a run, whoever played it.

    Raises:
        ValueError: the run kept none.
    """
    for player in ("defender", "shared"):
        if folders := kept(run, player):
            return folders[-1]
    raise ValueError(f"{run / 'snapshots'} holds no defender of a finished phase")


def program(*words: str) -> None:
    """``nemo-magic`` in a process of its own; its output is shown only if it fails.

    Raises:
        SystemExit: it failed.
    """
    done = subprocess.run([sys.executable, "-m", "nemo_magic.cli", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"nemo-magic {' '.join(words)}: status {done.returncode}\n{done.stderr[-3000:]}")


def _warmed_up(run: Run) -> list[str]:
    """Overrides that begin ``run`` with weights of a warm-up of its seed, which is made unless it is there."""
    words = []
    for role in ("attacker", "defender"):
        folder = run.into / f"sft-{role}-{run.seed}"
        if not (folder / "weights" / "metadata.json").exists():
            where = f"exp_manager.explicit_log_dir={folder}"
            program("sft", "-cn", f"sft_sandbox_{role}", f"name={folder.name}", where, f"seed={run.seed}")
        words.append(f"actors.{role}.restore_from_path={folder / 'weights'}")
    return words


def _train(folder: Path, seed: int, words: Sequence[str]) -> None:
    from_start, began, before = not folder.exists(), time.monotonic(), _cpu_seconds()
    program("train", "-cn", "magic_sandbox", f"name={folder.name}", f"exp_manager.explicit_log_dir={folder}",
            f"seed={seed}", *SHARED, *words)  # fmt: skip
    if from_start:
        cost = {"wall": time.monotonic() - began, "cpu": _cpu_seconds() - before}
        (folder / COST_FILE).write_text(json.dumps(cost) + "\n")


def _cpu_seconds() -> float:
    """CPU seconds of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
