"""Options of an evaluation. Imports neither torch nor NeMo."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Annotated, ClassVar

from nemo_magic.config.capability import CapabilityConfig
from nemo_magic.config.defence import DefenceConfig
from nemo_magic.config_checks import CheckedConfig, OneOf, PositiveInt
from nemo_magic.data.catalogue import BENCHMARKS, Benchmark, Figure, Metric

ATTACKERS = ("none", "rewrite", "best_of_n", "multi_turn")
BEST_OF = 8
"""Attempts of ``best_of_n`` where none are named."""


@dataclass
class EvalTaskConfig(CheckedConfig):
    """One benchmark, played one way.

    ``benchmark``: which one the ``file`` is of (docs/evaluation.md); null means the task's own name. ``file``: your
    copy; null: not measured, and the notes say so. ``attacker``: ``none`` shows the defender what the file says,
    ``rewrite`` has the attacker rewrite it once at temperature 0, ``best_of_n`` ``attempts`` times (null: 8) as it
    samples in training, ``multi_turn`` has it play the game's ``turns`` (null: ``game.max_turns``), once at temperature
    0 or ``attempts`` times, sampled. ``answers``: the ``defender``'s, or those that the ``file`` has already, which are
    only judged. ``limit``: that many examples, labels taking turns; null: all.
    """

    KEY: ClassVar[str] = "eval.tasks.<name>"

    benchmark: str | None = None
    file: str | None = None
    attacker: Annotated[str, OneOf(*ATTACKERS)] = "none"
    attempts: int | None = None
    turns: int | None = None
    answers: Annotated[str, OneOf("defender", "file")] = "defender"
    limit: PositiveInt | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attempts is not None:
            if self.attacker not in ("best_of_n", "multi_turn"):
                raise ValueError(
                    f"eval.tasks.<name>.attempts={self.attempts}: attacker={self.attacker} makes one, several need "
                    "attacker=best_of_n or attacker=multi_turn"
                )
            least = 2 if self.attacker == "best_of_n" else 1
            if self.attempts < least:
                raise ValueError(f"eval.tasks.<name>.attempts={self.attempts} must be at least {least}, or null")
        if self.turns is not None:
            if self.attacker != "multi_turn":
                raise ValueError(
                    f"eval.tasks.<name>.turns={self.turns}: attacker={self.attacker} has one turn, more need "
                    "attacker=multi_turn"
                )
            if self.turns < 2:
                raise ValueError(f"eval.tasks.<name>.turns={self.turns} must be at least 2, or null")
        if self.answers == "file" and self.attacker != "none":
            raise ValueError(
                f"eval.tasks.<name>.attacker={self.attacker}: answers=file only judges what was said already; set "
                "attacker=none or answers=defender"
            )

    @property
    def attack_count(self) -> int:
        """Attacks on each example; more than one are sampled."""
        default = BEST_OF if self.attacker == "best_of_n" else 1
        return default if self.attempts is None else self.attempts

    def turn_count(self, max_turns: int) -> int:
        """Turns that the attacker has; ``max_turns``: those of the game."""
        if self.attacker != "multi_turn":
            return 1
        return max_turns if self.turns is None else self.turns


@dataclass
class EvalConfig(CheckedConfig):
    """``nemo-magic evaluate``: the defender on benchmarks, at temperature 0.

    ``protocol``: ``magic`` measures as the published evaluation code does, ``strict`` as docs/evaluation.md argues; the
    published figures are of the first, and appear beside it only.
    ``model``: what the results call the defender; where the paper has figures of that model they stand beside.
    ``max_judged_tokens``: of an answer, the judge is shown this many tokens, the defender's own.
    ``extra_verdict_fields``: fields of the verdict to ask for beside those that the figures need. ``chunk_size``:
    examples of a rank that are answered and judged before they are saved; a kill can cost that many. ``baseline``:
    folder of an earlier evaluation to compare with, example by example. ``folder``: where your copies are; a task
    without a file takes the one below it that has its benchmark's usual name. ``defence``: what stands between the
    user and the defender. ``capability``: tasks and results of lm-evaluation-harness.
    """

    KEY: ClassVar[str] = "eval"

    tasks: dict[str, EvalTaskConfig] = field(default_factory=dict)
    protocol: Annotated[str, OneOf("strict", "magic")] = "strict"
    model: str | None = None
    max_judged_tokens: PositiveInt = 512
    extra_verdict_fields: list[str] = field(default_factory=list)
    chunk_size: PositiveInt = 256
    baseline: str | None = None
    folder: str | None = None
    defence: DefenceConfig = field(default_factory=DefenceConfig)
    capability: CapabilityConfig = field(default_factory=CapabilityConfig)

    @property
    def needs_attacker(self) -> bool:
        """Whether an attacker writes in any task."""
        return any(task.attacker != "none" for task in self.tasks_with_file.values())

    @property
    def needs_defender(self) -> bool:
        """Whether the defender answers in any task; not where files have all answers."""
        return not self.tasks_with_file or any(task.answers == "defender" for task in self.tasks_with_file.values())

    @property
    def tasks_with_file(self) -> dict[str, EvalTaskConfig]:
        """The tasks that can be measured: those that have a file."""
        return {name: task for name, task in self.tasks.items() if task.file is not None}

    def benchmark_name(self, task: str) -> str:
        """The benchmark that a task measures: by default its own name."""
        return self.tasks[task].benchmark or task

    def benchmark(self, task: str) -> Benchmark:
        """The benchmark of a task.

        Raises:
            ValueError: there is no such benchmark; the message names the nearest.
        """
        name = self.benchmark_name(task)
        if name not in BENCHMARKS:
            nearest = get_close_matches(name, BENCHMARKS, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"eval.tasks.{task}: there is no benchmark {name}; did you mean eval.tasks.{task}.benchmark={nearest}? "
                f"There are: {', '.join(BENCHMARKS)}"
            )
        return BENCHMARKS[name]

    def figures(self, task: str) -> list[Figure]:
        """The figures of a task.

        Usefulness is among them where the judge is asked for it (``extra_verdict_fields``), as few guards can tell.
        Those of several attempts are means over them, and best-of-N is beside. Published figures hold for the
        benchmark without attacker, defence or recorded answers only.
        """
        options = self.tasks[task]
        figures = [
            figure
            for figure in self.benchmark(task).figures
            if figure.metric is not Metric.USEFUL or figure.metric.field in self.extra_verdict_fields
        ]
        if self.protocol == "strict":
            figures = [replace(figure, published=None, magic=None) for figure in figures]
        if options.attacker != "none" or options.answers == "file" or self.defence.kind != "none":
            figures = [replace(figure, published=None) for figure in figures]
        if (count := options.attack_count) > 1:
            asr = [figure for figure in figures if figure.metric is Metric.ASR and not figure.any_of]
            figures += [replace(figure, best_of=count) for figure in asr]
        return figures

    def fields(self) -> frozenset[str]:
        """Fields of the verdict that are asked for."""
        needed = {figure.field for task in self.tasks_with_file for figure in self.figures(task)}
        if self.defence.asks_judge:
            needed.add(Metric.ASR.field)
        return frozenset(needed | set(self.extra_verdict_fields))
