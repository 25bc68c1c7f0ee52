"""Damaged files are refused by their line, or their rows are counted: nothing swallows what comes after it."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_magic.cli import main
from nemo_magic.data.errors import DataError
from nemo_magic.data.seeds import DataConfig, load_seeds
from nemo_magic.data.streams import read_table
from nemo_magic.data.tables import DropReport
from nemo_magic.evaluation.load_examples import load_benchmark

WORDS = st.text("ab \n,\t\"'é☂", max_size=8)


def table(rows: list[list[str]], delimiter: str, quoting: int) -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator="\n").writerows(rows)
    return text.getvalue()


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("broken", [0, 3, 1500, 2999])
@pytest.mark.parametrize("opening", ['"wug norp', '"wug" norp"', '"wug "norp" it"'])
def test_a_quote_that_is_not_closed_is_refused_by_its_line(
    delimiter: str, quoting: int, broken: int, opening: str, tmp_path: Path
) -> None:
    lines = table([["prompt", "label"], *([f"wug {n}", "benign"] for n in range(3000))], delimiter, quoting).split("\n")
    lines[broken + 1] = f"{opening}{delimiter}harmful"
    path = tmp_path / "q.txt"
    path.write_text("\n".join(lines))
    with pytest.raises(
        DataError, match=rf"data.train_files: .*q.txt cannot be read.* line {broken + 2}: a quote opens"
    ):
        load_seeds(DataConfig(train_files=[str(path)]))
    with pytest.raises(DataError, match=f"line {broken + 2}: a quote opens"):
        load_benchmark("seeds", path)


@given(
    st.lists(st.tuples(WORDS, st.sampled_from(["harmful", "benign"])), min_size=1, max_size=6), st.sampled_from(",\t")
)
def test_what_a_csv_writer_writes_is_read_back(rows: list[tuple[str, str]], delimiter: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("t.tsv" if delimiter == "\t" else "t.csv")
        path.write_bytes(table([["prompt", "label"], *map(list, rows)], delimiter, csv.QUOTE_MINIMAL).encode())
        assert [(row["prompt"], row["label"]) for row in read_table(path, DropReport()).rows] == rows


def test_rows_of_another_length_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("prompt,label\nwug,benign\nglim\nnorp,benign,x\nfleb,ben")
    report = DropReport()
    assert len(read_table(path, report).rows) == 2
    assert report.dropped == {
        "fewer cells than the header has columns": 1,
        "more cells than the header has columns": 1,
    }


@pytest.mark.parametrize("rest", ["x", '[{"prompt": "b"}]', "]", '\n{"prompt": "b"}'])
def test_what_comes_after_the_end_of_an_array_is_not_dropped(rest: str, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text('[{"prompt": "a"}]\n \n' + rest)
    with pytest.raises(DataError, match=r"line [34]: the array has ended after 1 elements, and the file goes on"):
        read_table(path, DropReport())


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_what_is_nested_too_deeply_is_said_in_words(suffix: str, tmp_path: Path) -> None:
    deep = '{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}"
    path = tmp_path / f"s{suffix}"
    path.write_text(f'[{{"prompt": "a"}},{deep}]' if suffix == ".json" else f'{{"prompt": "a"}}\n{deep}\n')
    report = DropReport()
    if suffix == ".json":
        with pytest.raises(DataError, match="cannot be read as a table: maximum recursion depth"):
            read_table(path, report)
    else:
        assert len(read_table(path, report).rows) == 1
        assert report.dropped.total() == 1


HALF = "half \ud83d"


def with_halves(path: Path) -> Path:
    """Two rows in four are no Unicode: in the text, and in a cell that is not read."""
    rows = [{"prompt": "a", "label": 1}, {"prompt": HALF, "label": 0}, {"prompt": "b", "label": 0, "x": [{HALF: 1}]}]
    rows += [{"prompt": "whole \U0001f600", "label": 0}]
    text = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text('{"data": ' + text + "}" if path.stem == "data" else text)
    return path


@pytest.mark.parametrize("name", ["s.jsonl", "s.json", "data.json"])
def test_half_a_surrogate_pair_stops_at_the_door_and_is_counted(name: str, tmp_path: Path) -> None:
    path = with_halves(tmp_path / name)
    seeds = load_seeds(DataConfig(train_files=[str(path)], validation_fraction=1.0))
    assert {seed.text for seed in seeds.validation} == {"a", "whole \U0001f600"}
    loaded = load_benchmark("seeds", path)
    for report in (seeds.report, loaded.report):
        assert (report.read, report.kept) == (4, 2)
        assert report.dropped == {"half of a surrogate pair, which is no text": 2}


def test_half_a_surrogate_pair_in_harmbenchs_nesting_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "cases.json"
    path.write_text(json.dumps({"GCG": {"b1": [HALF, "t"], "b2": None, HALF: ["u"], "b3": ["v", {"x": 1}, True]}}))
    loaded = load_benchmark("harmbench_adversarial", path)
    assert [example.turns for example in loaded.examples] == [("t",), ("u",), ("v",)]
    assert loaded.report.dropped == {"text is no text": 3, "empty text": 1}
    json.dumps([example.id for example in loaded.examples], ensure_ascii=False).encode()


def test_an_export_that_fails_leaves_the_file_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds, out = with_halves(tmp_path / "s.jsonl"), tmp_path / "seeds.json"
    assert main(["seeds-export", str(seeds), "--format", "garak", "--out", str(out), "--label", "all"]) == 0
    assert json.loads(out.read_text())["payloads"] == ["a", "whole \U0001f600"]
    assert "half of a surrogate pair, which is no text: 2" in capsys.readouterr().out


def test_many_reasons_are_ten_and_a_count(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text('{"prompt": "a", "label": 1}\n' + "{broken\n" * 500)
    text = str(load_seeds(DataConfig(train_files=[str(path)], validation_fraction=1.0)).report)
    assert text.startswith("501 rows read, 1 kept (dropped ")
    assert text.count("is no JSON") == 10
    assert "490 other reasons: 490" in text
