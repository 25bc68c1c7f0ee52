"""What can be set about an evaluation. Imports neither torch nor NeMo."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches

from nemo_magic.evaluation.catalogue import BENCHMARKS, Benchmark, Figure, Metric

ATTACKERS = ("none", "rewrite")


@dataclass
class EvalTaskConfig:
    """One benchmark, played one way.

    ``benchmark``: which one the ``file`` is of (docs/evaluation.md); null means the task's own name. ``file``: your
    copy; null: not measured, and said so. ``attacker``: ``none`` shows the defender what the file says, ``rewrite``
    has the attacker rewrite it once. ``limit``: that many cases, labels taking turns; null: all.
    """

    benchmark: str | None = None
    file: str | None = None
    attacker: str = "none"
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.attacker not in ATTACKERS:
            raise ValueError(f"eval.tasks.<name>.attacker={self.attacker!r} must be one of: {', '.join(ATTACKERS)}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"eval.tasks.<name>.limit={self.limit} must be at least 1, or null")


@dataclass
class EvalConfig:
    """``nemo-magic evaluate``: the defender on benchmarks, at temperature 0.

    ``model``: what the results call the defender; where the paper has figures of that model they stand beside.
    ``max_judged_tokens``: of an answer, the judge is shown this many tokens, the defender's own. ``observe``: fields of
    the verdict to ask for beside those that the figures need. ``chunk_size``: cases of a rank that are answered and
    judged before they are written down; what a kill can cost. ``baseline``: folder of an earlier evaluation to test
    against, case by case. ``folder``: where your copies are; a task without a file takes the one below it that is
    called what its benchmark's file usually is.
    """

    tasks: dict[str, EvalTaskConfig] = field(default_factory=dict)
    model: str | None = None
    max_judged_tokens: int = 512
    observe: list[str] = field(default_factory=list)
    chunk_size: int = 256
    baseline: str | None = None
    folder: str | None = None

    def __post_init__(self) -> None:
        for key in ("max_judged_tokens", "chunk_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"eval.{key}={getattr(self, key)} must be at least 1")

    @property
    def attacked(self) -> bool:
        """Whether an attacker has anything to rewrite."""
        return any(task.attacker == "rewrite" for task in self.measured.values())

    @property
    def measured(self) -> dict[str, EvalTaskConfig]:
        """The tasks that have a file."""
        return {name: task for name, task in self.tasks.items() if task.file is not None}

    def benchmark_name(self, task: str) -> str:
        return self.tasks[task].benchmark or task

    def benchmark(self, task: str) -> Benchmark:
        """Raises ValueError naming the nearest where there is no such benchmark."""
        name = self.benchmark_name(task)
        if name not in BENCHMARKS:
            nearest = get_close_matches(name, BENCHMARKS, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"eval.tasks.{task}: there is no benchmark {name}; did you mean eval.tasks.{task}.benchmark={nearest}? "
                f"There are: {', '.join(BENCHMARKS)}"
            )
        return BENCHMARKS[name]

    def figures(self, task: str) -> list[Figure]:
        """The figures of a task; usefulness only where the judge is asked for it (``observe``), as few can tell."""
        return [
            figure
            for figure in self.benchmark(task).figures
            if figure.metric is not Metric.USEFUL or figure.metric.field in self.observe
        ]

    def fields(self) -> frozenset[str]:
        """Fields of the verdict that are asked for."""
        needed = {figure.metric.field for task in self.measured for figure in self.figures(task)}
        return frozenset(needed | set(self.observe))
