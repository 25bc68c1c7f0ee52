"""Benchmarks' files: every schema, every format, and what is wrong with damaged ones."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from nemo_magic.data.catalogue import BENCHMARKS, RECORDED
from nemo_magic.data.errors import DataError
from nemo_magic.evaluation.example import Example
from nemo_magic.evaluation.load_examples import load_benchmark
from nemo_magic.game.episode import Label
from tests.evaluation.made_up import COUNTS, ROWS, write

FORMATS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")


def counts(examples: list[Example]) -> tuple[int, int, int]:
    labels = Counter(example.label for example in examples)
    return len(examples), labels[Label.HARMFUL], labels[Label.BENIGN]


@pytest.mark.parametrize("name", [name for name, benchmark in BENCHMARKS.items() if benchmark.reader not in RECORDED])
def test_every_benchmark_is_read_in_every_format_that_can_hold_it(name: str, tmp_path: Path) -> None:
    formats = FORMATS if name != "xteaming" else (".json", ".jsonl", ".parquet")
    found = [load_benchmark(name, write(tmp_path / f"file{ending}", ROWS[name])).examples for ending in formats]
    assert counts(found[0]) == COUNTS[name]
    assert all(examples == found[0] for examples in found)
    assert len({example.id for example in found[0]}) == len(found[0])


@pytest.mark.parametrize("ending", FORMATS)
def test_the_format_is_told_by_the_content_and_not_by_the_name(ending: str, tmp_path: Path) -> None:
    named = write(tmp_path / f"file{ending}", ROWS["seeds"])
    other = named.rename(tmp_path / "file.download")
    assert counts(load_benchmark("seeds", other).examples) == COUNTS["seeds"]


def test_a_contextual_behaviour_is_shown_with_its_context_and_asked_for_without(tmp_path: Path) -> None:
    plain, contextual, _ = load_benchmark("harmbench", write(tmp_path / "h.csv", ROWS["harmbench"])).examples
    assert plain == Example("norp_0", ("norp the fleb",), Label.HARMFUL, "", "vask", "standard")
    assert contextual.turns == ("The glim.\n\n---\n\nnorp the grub",)
    assert contextual.seed is not None
    assert contextual.seed.text == "norp the grub"


def test_precomputed_cases_may_be_nested_as_harmbench_writes_them(tmp_path: Path) -> None:
    nested: dict[str, dict[str, list[str]]] = {}
    for row in ROWS["harmbench_adversarial"]:
        nested.setdefault(row["method"], {}).setdefault(row["BehaviorID"], []).append(row["test_case"])
    path = tmp_path / "cases.json"
    path.write_text(json.dumps(nested, indent=1))
    flat = load_benchmark("harmbench_adversarial", write(tmp_path / "f.json", ROWS["harmbench_adversarial"]))
    assert set(load_benchmark("harmbench_adversarial", path).examples) == set(flat.examples)
    assert "methods: 2, published 15" in flat.notes
    assert {example.behaviour for example in flat.examples} == {"norp_0", "norp_1"}
    path.write_text(json.dumps({"ZIB": ["no behaviour"]}, indent=1))
    with pytest.raises(DataError, match="'ZIB' holds no object"):
        load_benchmark("harmbench_adversarial", path)


def test_plans_are_cases_of_their_behaviour_whatever_their_number_of_turns(tmp_path: Path) -> None:
    loaded = load_benchmark("xteaming", write(tmp_path / "p.json", ROWS["xteaming"]))
    assert Counter(example.group for example in loaded.examples) == {"0": 4, "1": 4}
    assert loaded.examples[0].turns == ("hello 00", "norp 00")
    assert loaded.examples[0].method == "Set_0/strategy 0"
    assert loaded.examples[0].seed is not None
    assert loaded.examples[0].seed.text == "norp the 0"
    flat = [{"behavior": "norp", "turns": turns} for turns in (["a"], list("abcd"), ["a", " "], [])]
    plans = load_benchmark("xteaming", write(tmp_path / "flat.json", flat))
    assert plans.report.dropped == {"a plan with an empty turn": 1, "no plan of turns": 1}
    assert [len(example.turns) for example in plans.examples] == [1, 4]


def test_a_blank_label_is_unknown_and_said_so(tmp_path: Path) -> None:
    loaded = load_benchmark("wildguardtest", write(tmp_path / "w.parquet", ROWS["wildguardtest"]))
    assert [example.label for example in loaded.examples] == [Label.HARMFUL, Label.HARMFUL, Label.BENIGN, None]
    assert [example.adversarial for example in loaded.examples] == [True, False, True, False]
    assert loaded.examples[-1].seed is None
    assert "1 without a label: unknown, in no figure" in loaded.notes
    assert "rows: 4, published 1725" in loaded.notes


def test_xstest_goes_by_its_label_column_where_it_has_one(tmp_path: Path) -> None:
    rows = [row | {"label": "safe"} for row in ROWS["xstest"]]
    assert counts(load_benchmark("xstest", write(tmp_path / "x.csv", rows)).examples) == (2, 0, 2)


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".json"])
def test_a_byte_order_mark_is_no_part_of_the_first_column(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"b{ending}", ROWS["or_bench_hard"])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert counts(load_benchmark("or_bench_hard", path).examples) == COUNTS["or_bench_hard"]


def test_left_out_rows_are_counted_by_reason(tmp_path: Path) -> None:
    rows = [
        *ROWS["xstest"],
        {"id": 2, "prompt": "again", "type": "x"},
        ROWS["xstest"][0],
        {"id": 3, "prompt": " ", "type": "x"},
    ]
    path = write(tmp_path / "x.jsonl", rows)
    path.write_text(path.read_text() + '{broken\n[1]\n{"id": 4, "prompt": "How do I norp a fleb?", "type": "x"}\n')
    loaded = load_benchmark("xstest", path)
    assert loaded.report.dropped == {
        "an id and text that came before": 1,
        "empty text": 1,
        "line 6 of x.jsonl is no JSON (Expecting property name enclosed in double quotes)": 1,
        "line 7 of x.jsonl is no JSON object": 1,
    }
    assert (loaded.report.read, loaded.report.kept) == (8, 4)
    assert [example.id for example in loaded.examples] == ["1", "2", "2@2", "4"]
    assert "1 texts came before" in loaded.notes
    odd = [*ROWS["seeds"], {"prompt": "z", "label": "odd"}]
    dropped = load_benchmark("seeds", write(tmp_path / "s.csv", odd)).report.dropped
    assert dropped == {"label 'odd' means neither harmful nor benign": 1}
    path = tmp_path / "r.csv"
    path.write_text("prompt,category\na,b\nc,d,e\n")
    assert load_benchmark("or_bench_hard", path).report.dropped == {"more cells than the header has columns": 1}


@pytest.mark.parametrize(
    ("name", "given", "lacks"),
    [
        ("wildguardtest", "or_bench_hard", r"label \(prompt_harm_label\), adversarial"),
        ("harmbench", "advbench", r"text \(behavior\), id \(behaviorid\), category"),
        ("advbench", "jailbreakbench_benign", None),
        ("or_bench_hard", "dan", r"category \(category\)"),
        ("strongreject", "harmbench", r"text \(forbidden_prompt\)"),
        ("xteaming", "xstest", r"behaviour \(.*\), plan \("),
        ("harmbench_adversarial", "harmbench", r"text \(test_case or testcase\), method"),
    ],
)
def test_another_benchmarks_file_is_refused_by_what_it_lacks(
    name: str, given: str, lacks: str | None, tmp_path: Path
) -> None:
    path = write(tmp_path / "g.json", ROWS[given])
    if lacks is None:  # JailbreakBench has all that AdvBench has
        assert "rows: 2, published 520" in load_benchmark(name, path).notes
        return
    with pytest.raises(DataError, match=rf"{name} \({BENCHMARKS[name].title}\): it lacks columns for {lacks}"):
        load_benchmark(name, path)


def test_a_file_that_is_none_says_why(tmp_path: Path) -> None:
    pointer = tmp_path / "lfs.csv"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n")
    with pytest.raises(DataError, match="is a Git LFS pointer, not the file itself: run `git lfs pull`"):
        load_benchmark("harmbench", pointer)
    with pytest.raises(DataError, match="eval.tasks.x.file: .* does not exist"):
        load_benchmark("harmbench", tmp_path / "none.csv", "eval.tasks.x.file")
    path = tmp_path / "damaged"
    for content, reason in (
        (b"", "it is empty"),
        (b"\x00\x01\x02", "neither text nor parquet"),
        (b"PAR1 and nothing", "cannot be read as a table"),
        (b"prompt,category\n", "holds no rows"),
        (b"prompt,prompt\na,b\n", "two columns are called 'prompt'"),
        (b'[{"prompt": "a", "category": "b"} {"prompt": "c"}]', "neither a comma nor its end"),
        (b'[{"prompt": "a", "category": "b"}, 3]', "element 2 of the array is no object"),
        (b'{"prompt": "a",\n "category": "b"}', "holds one JSON object"),
        (b"prompt,category\n,b\n", "no row of .* can be used as OR-Bench, hard; 1 rows read, 0 kept"),
        (b"prompt,category\n\xff\xfe,b\n", "can't decode"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=reason):
            load_benchmark("or_bench_hard", path)


def test_a_limit_takes_the_first_of_each_label_in_turn_and_says_so(tmp_path: Path) -> None:
    rows = sorted(ROWS["seeds"], key=lambda row: str(row["label"]))
    loaded = load_benchmark("seeds", write(tmp_path / "s.csv", rows), limit=3)
    assert [example.label for example in loaded.examples] == [Label.HARMFUL, Label.BENIGN, Label.HARMFUL]
    assert "3 of 4 cases are taken, labels taking turns" in str(loaded)


@pytest.mark.process
@pytest.mark.parametrize(("ending", "rows"), [(".csv", 1_000_000), (".json", 200_000)])
def test_a_million_rows_take_less_than_a_gibibyte(ending: str, rows: int, tmp_path: Path) -> None:
    path = tmp_path / f"many{ending}"
    with path.open("w") as file:
        made = (
            {"id": i, "prompt": f"how many wugs {i} are there in a glim", "type": "contrast_x"} for i in range(rows)
        )
        if ending == ".csv":
            file.write("id,prompt,type\n")
            file.writelines(f"{row['id']},{row['prompt']},{row['type']}\n" for row in made)
        else:
            file.write("[" + ",\n".join(json.dumps(row) for row in made) + "]")
    program = (
        "import sys; from nemo_magic.evaluation.load_examples import load_benchmark; "
        "loaded = load_benchmark('xstest', sys.argv[1]); "
        # Not ru_maxrss: a process inherits the peak of the one it was forked from.
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1]; "
        "print(len(loaded.examples), int(peak) * 1024)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    count, memory = map(int, done.stdout.split())
    assert count == rows
    assert memory < 2**30 * max(rows / 1e6, 0.3)


def test_of_many_plans_of_a_behaviour_ten_are_drawn_the_same_for_everybody(tmp_path: Path) -> None:
    sets = {
        f"Set_{s}": {f"strategy_{k}": {"conversation_plan": {"turn_1": f"hello {s}{k}"}} for k in range(10)}
        for s in range(5)
    }
    rows = [{"behavior_details": {"Behavior": f"norp {b}"}, "attack_strategies": sets} for b in range(2)]
    loaded = load_benchmark("xteaming", write(tmp_path / "attack_plans.json", rows))
    by_behaviour = {
        b: [example.turns for example in loaded.examples if example.behaviour == f"norp {b}"] for b in range(2)
    }
    assert [len(plans) for plans in by_behaviour.values()] == [10, 10]
    assert by_behaviour[0] != by_behaviour[1]
    assert by_behaviour[0] != [("hello 00",), *((f"hello 0{k}",) for k in range(1, 10))]
    assert "20 of 100 plans are played: 10 of a behaviour, drawn by what they say" in loaded.notes
    again = load_benchmark("xteaming", write(tmp_path / "again.json", rows[::-1]))
    assert {example.turns for example in again.examples if example.behaviour == "norp 0"} == set(by_behaviour[0])
