"""A row is its text and its place: whatever its file calls it, none is lost, and what is dropped is counted."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_magic.data.seeds import DataConfig, SeedSet, load_seeds
from nemo_magic.evaluation.load_examples import load_benchmark
from nemo_magic.game.episode import Message
from nemo_magic.judge.protocol import make_item

IDS = st.sampled_from(
    [None, "", "0", "1", "2", "1@1", "2@2", 0, 1, 1.0, "group-0", "x" * 500, "x" * 501, {"a": 1}, "a/0"]
)
Row = dict[str, Any]


def lines(path: Path, rows: Sequence[Row]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def every(seeds: SeedSet) -> list[str]:
    return [seed.text for split in (seeds.train, seeds.validation, seeds.test) for seed in split]


@pytest.mark.slow
@given(st.lists(IDS, min_size=4, max_size=12), st.sampled_from([0.3, 0.5]))
def test_no_id_makes_a_training_seed_vanish(ids: list[Any], fraction: float) -> None:
    rows = [{"id": name, "prompt": f"wug {n}", "label": n % 2} for n, name in enumerate(ids * 2)]
    with tempfile.TemporaryDirectory() as folder:
        # The same name twice: the second of them is another file.
        files = [lines(Path(folder, name, "seeds.jsonl"), part) for name, part in (("a", rows[::2]), ("b", rows[1::2]))]
        test = lines(Path(folder, "c", "seeds.jsonl"), [{"id": ids[0], "prompt": "glim", "label": 1}])
        seeds = load_seeds(DataConfig(train_files=files, test_files=[test], validation_fraction=fraction))
    assert sorted(every(seeds)) == sorted(["glim", *(row["prompt"] for row in rows)])
    assert len(every(seeds)) == seeds.report.kept
    names = [seed.id for split in (seeds.train, seeds.validation, seeds.test) for seed in split]
    assert len(set(names)) == len(names)
    for name in names:
        make_item(f"{name}#1000000.1000", [Message("user", "wug")], ask=["prompt_safety"])


def test_rows_of_a_group_are_all_trained_on_or_held_out(tmp_path: Path) -> None:
    rows = [{"id": f"group-{n % 8}", "prompt": f"bring item {n}", "label": n % 2} for n in range(400)]
    seeds = load_seeds(DataConfig(train_files=[lines(tmp_path / "s.jsonl", rows)]))
    assert (len(seeds.train), len(seeds.validation)) == (392, 8)
    assert seeds.report.changed == {"rows whose id came before, told apart by their place": 392}


def test_ids_that_tell_rows_apart_stay_what_they_are(tmp_path: Path) -> None:
    rows = [{"id": name, "prompt": f"wug {name}", "label": 1} for name in ("b", "a")] + [{"prompt": "p", "label": 0}]
    seeds = load_seeds(DataConfig(train_files=[lines(tmp_path / "s.jsonl", rows)], validation_fraction=1.0))
    assert sorted(seed.id for seed in seeds.validation) == ["s/2", "s/a", "s/b"]
    assert not seeds.report.changed
    assert [one.id for one in load_benchmark("seeds", tmp_path / "s.jsonl").examples] == ["b", "a", "2"]


@given(st.lists(st.tuples(IDS, st.sampled_from(["wug", "glim", "norp"])), min_size=1, max_size=12))
def test_no_id_makes_a_case_vanish(cells: list[tuple[Any, str]]) -> None:
    rows = [{"id": name, "prompt": text, "label": "harmful"} for name, text in cells]
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_benchmark("seeds", lines(Path(folder, "s.jsonl"), rows))
    ids = [example.id for example in loaded.examples]
    assert len(set(ids)) == len(ids) == loaded.report.kept
    assert loaded.report.read == len(rows)
    assert {example.turns for example in loaded.examples} == {(text,) for _, text in cells}
    assert set(loaded.report.dropped) <= {"an id and text that came before"}


def test_a_case_is_in_no_group_of_another_name(tmp_path: Path) -> None:
    rows = [{"goal": f"wug {n}", "behavior": name, "category": "c"} for n, name in enumerate(["", "0", "", "2", "0@0"])]
    examples = load_benchmark("jailbreakbench", lines(tmp_path / "j.jsonl", rows)).examples
    assert len({example.group for example in examples}) == len(examples) == 5


def test_parts_of_a_name_cannot_be_taken_for_another(tmp_path: Path) -> None:
    rows = [{"BehaviorID": a, "test_case": f"wug {a}", "method": b} for a, b in (("a/b", "c"), ("a", "b/c"))]
    examples = load_benchmark("harmbench_adversarial", lines(tmp_path / "h.jsonl", rows)).examples
    assert len({example.id for example in examples}) == 2


def test_an_attempt_without_an_id_is_not_the_attempt_of_its_number(tmp_path: Path) -> None:
    attempt = {"entry_type": "attempt", "probe_classname": "p.P", "outputs": ["a"]}
    rows = [attempt | {"prompt": f"wug {n}", "uuid": name} for n, name in enumerate([None, "0", "", "2", "2"])]
    loaded = load_benchmark("garak", lines(tmp_path / "g.jsonl", rows))
    assert [example.turns[0] for example in loaded.examples] == ["wug 0", "wug 1", "wug 2", "wug 3"]
    assert len({example.group for example in loaded.examples}) == 4
    assert loaded.report.dropped == {"an attempt that came before": 1}
