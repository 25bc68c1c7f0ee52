"""docs/evaluation.md has the catalogue for people; a table written by hand rots, so it is checked."""

from __future__ import annotations

import re
from pathlib import Path

from nemo_magic.config.eval_config import EvalConfig
from nemo_magic.data.catalogue import BENCHMARKS, Benchmark

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")


def row(name: str, benchmark: Benchmark) -> str:
    def columns(required: bool) -> str:
        return "; ".join(
            f"{wanted}: {', '.join(f'`{alias}`' for alias in aliases)}"
            for wanted, aliases in benchmark.columns.items()
            if (wanted in benchmark.required) is required
        )

    expected = ", ".join(f"{count:,} {what}" for what, count in benchmark.expected.items())
    figures = "; ".join(
        f"{figure.name} {'↑' if figure.metric.higher_is_better else '↓'}" for figure in benchmark.figures
    )
    cells = [f"`{name}`", benchmark.title, expected, columns(True), columns(False), figures]
    return f"| {' | '.join(cells)} |"


def test_the_schema_table_is_the_catalogue() -> None:
    table = [line for line in DOC.splitlines() if line.startswith(tuple(f"| `{name}` |" for name in BENCHMARKS))]
    assert table == [row(name, benchmark) for name, benchmark in BENCHMARKS.items()]


def test_the_usual_file_names_are_told() -> None:
    for name, benchmark in BENCHMARKS.items():
        assert all(f"`{file}`" in DOC for file in benchmark.files), name


def test_every_suite_is_told() -> None:
    for path in (ROOT / "conf" / "suite").glob("*.yaml"):
        assert f"| `suite={path.stem}`" in DOC


def test_every_key_that_the_page_names_exists() -> None:
    named = set(re.findall(r"`eval\.(\w+)", DOC))
    assert named
    assert named <= set(EvalConfig.__dataclass_fields__)
