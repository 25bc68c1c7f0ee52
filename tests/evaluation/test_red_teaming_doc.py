"""docs/red_teaming.md has tables for people of what can be chosen; a table written by hand rots, so it is checked."""

from __future__ import annotations

import re
from pathlib import Path

from nemo_magic.config.defence import (
    CHECKS,
    DEFENCES,
    PERTURBATIONS,
    VOTES,
    DefenceConfig,
    SelfEvalConfig,
    SmoothLLMConfig,
)
from nemo_magic.config.eval_config import ATTACKERS
from nemo_magic.config.keys import is_known
from nemo_magic.data.catalogue import RECORDED
from nemo_magic.evaluation.seed_formats import FORMATS

DOC = (Path(__file__).parents[2] / "docs" / "red_teaming.md").read_text(encoding="utf-8")


def first_cells(header: str) -> list[str]:
    """The first column of the table that begins with ``header``."""
    rows = DOC[DOC.index(f"| {header} |") :].split("\n\n")[0].splitlines()[2:]
    return [row.split("|")[1].strip().strip("`") for row in rows]


def test_the_tables_have_all_there_is_to_choose() -> None:
    assert first_cells("attacker") == list(ATTACKERS)
    assert first_cells("kind") == list(DEFENCES)
    assert sorted(first_cells("format")) == sorted(FORMATS)
    assert sorted(first_cells("benchmark")) == sorted(RECORDED)


def test_every_key_that_the_page_names_exists() -> None:
    named = {key for key in re.findall(r"(?:eval|actors|game)\.[\w.]+\w", DOC) if not key.startswith("eval.tasks")}
    assert named >= {"eval.defence.kind", "eval.baseline", "actors.attacker.sampling_params"}
    assert [key for key in named if not is_known(key)] == []
    options = set(re.findall(r"`(\w+)`(?:, | \(|:)", DOC[DOC.index("**SmoothLLM**") : DOC.index("## Results")]))
    known = {*SmoothLLMConfig.__dataclass_fields__, *SelfEvalConfig.__dataclass_fields__}
    choices = {*PERTURBATIONS, *VOTES, *CHECKS, "seed"}
    assert options <= known | choices
    assert {"copies", "vote", "check", "evaluator"} <= known & set(re.findall(r"`(\w+)", DOC))


def test_the_defaults_that_the_page_names_are_the_defaults() -> None:
    own = DefenceConfig()
    assert f"`copies` ({own.smoothllm.copies})" in DOC
    assert f"`percent` ({own.smoothllm.percent:g})" in DOC
    assert f"`{own.self_eval.check}` together (default)" in DOC
