"""docs/method.md names the code that implements each equation; names rot, so they are checked."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
REFERENCE = re.compile(r"`(nemo_magic/[\w/]+\.py): (\w+)`")


def test_every_function_that_the_method_refers_to_exists() -> None:
    references = REFERENCE.findall((ROOT / "docs" / "method.md").read_text(encoding="utf-8"))
    assert len(references) >= 15
    for path, name in references:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert name in defined, f"{path} has no {name}"


def test_every_ablation_that_the_method_lists_is_a_preset() -> None:
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) - {"ablation"}
    assert listed == {path.stem for path in (ROOT / "conf" / "ablation").glob("*.yaml")}
