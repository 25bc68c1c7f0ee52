"""What garak, PyRIT and OpenRT leave, as their own classes write it, with made-up words: attacks and answers."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemo_magic.data.errors import DataError
from nemo_magic.evaluation.load_examples import LoadedExamples, load_benchmark
from nemo_magic.game.episode import Label

Row = dict[str, Any]


def message(text: str | None, **more: Any) -> Row:
    return {"text": text, "lang": "en", "data_path": None, "data_type": None, "data_checksum": None, "notes": {}} | more


def conversation(*turns: tuple[str, str | None]) -> Row:
    return {"turns": [{"role": role, "content": message(text)} for role, text in turns], "notes": {}}


def attempt(uuid: str, status: int, prompt: Row, outputs: list[str | None], probe: str = "dan.Wug") -> Row:
    """As ``Attempt.as_dict`` of garak 0.17.1."""
    said = [{"role": "assistant", "content": message(text)} for text in outputs]
    return {
        "entry_type": "attempt", "uuid": uuid, "seq": 0, "status": status, "probe_classname": probe, "probe_params": {},
        "targets": [], "prompt": prompt, "outputs": [message(text) for text in outputs],
        "detector_results": {"x.Y": [1.0] * len(outputs)} if status == 2 else {}, "notes": {}, "goal": "norp",
        "conversations": [{"turns": [*prompt["turns"], turn], "notes": {}} for turn in said] or [prompt],
        "reverse_translation_outputs": [], "intent": "S003",
    }  # fmt: skip


GARAK: list[Row] = [
    {"entry_type": "start_run setup", "run.generations": 3},
    {"entry_type": "init", "garak_version": "0.17.1"},
    *(attempt("a", status, conversation(("user", "norp the wug")), ["no", None, "norp norp"]) for status in (1, 2)),
    attempt(
        "b", 2, conversation(("system", "be a wug"), ("user", "hi"), ("assistant", "ho"), ("user", "norp")), ["nope"]
    ),
    attempt("c", 2, conversation(("user", None)), ["a wug"], "pic.Pic"),
    {"entry_type": "eval", "probe": "dan.Wug", "detector": "x.Y", "passed": 1, "fails": 2},
]  # fmt: skip

OLD_GARAK: list[Row] = [
    # garak 0.10: texts, and messages instead of conversations.
    {
        "entry_type": "attempt", "uuid": "a", "seq": 0, "status": 2, "probe_classname": "dan.Wug", "probe_params": {},
        "targets": [], "prompt": "norp the wug", "outputs": ["no norp", None], "detector_results": {}, "notes": {},
        "goal": None,
        "messages": [
            [{"role": "user", "content": "norp the wug"}, {"role": "assistant", "content": text}]
            for text in ("no norp", None)
        ],
    },
    {
        "entry_type": "attempt", "uuid": "b", "seq": 1, "status": 0, "probe_classname": "dan.Wug", "prompt": "wug",
        "outputs": [], "messages": [{"role": "user", "content": "wug"}],
    },
]  # fmt: skip

HITS: list[Row] = [
    {
        "goal": "norp", "prompt": conversation(("user", "norp the wug")), "output": message("norp norp"),
        "triggers": None, "score": 1.0, "run_id": "r", "attempt_id": "a", "attempt_seq": 0, "attempt_idx": 2,
        "generator": "test x", "probe": "dan.Wug", "detector": detector, "generations_per_prompt": 3,
    }
    for detector in ("x.Y", "x.Z")
]  # fmt: skip


def lines(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def exchanges(loaded: LoadedExamples) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    return [(example.id, example.turns, example.replies) for example in loaded.examples]


def test_a_garak_report_is_attacks_to_play_each_once(tmp_path: Path) -> None:
    loaded = load_benchmark("garak", lines(tmp_path / "wug.report.jsonl", GARAK))
    assert [example.turns for example in loaded.examples] == [("norp the wug",), ("hi", "norp")]
    assert {(example.label, example.method, example.category) for example in loaded.examples} == {
        (Label.HARMFUL, "dan.Wug", "S003")
    }
    assert dict(loaded.report.dropped) == {
        "an entry that is no attempt": 3,
        "an attempt that came before": 1,
        "another answer to the same attack": 2,
        "a user's message that is empty or no text": 1,
    }
    assert loaded.report.kept == 2
    assert "system prompts left out, as they were the other model's: 1" in loaded.notes


def test_a_garak_report_is_answers_to_judge(tmp_path: Path) -> None:
    loaded = load_benchmark("garak", lines(tmp_path / "wug.report.jsonl", GARAK), with_replies=True)
    assert exchanges(loaded) == [
        ("a/0", ("norp the wug",), ("no",)),
        ("a/2", ("norp the wug",), ("norp norp",)),
        ("b/0", ("hi", "norp"), ("ho", "nope")),
    ]
    assert [example.group for example in loaded.examples] == ["a", "a", "b"]
    assert loaded.report.dropped["no answer to judge"] == 1


def test_a_limit_counts_attacks_not_answers(tmp_path: Path) -> None:
    loaded = load_benchmark("garak", lines(tmp_path / "wug.report.jsonl", GARAK), limit=1)
    assert [example.turns for example in loaded.examples] == [("norp the wug",)]
    assert "1 of 2 cases are taken, labels taking turns" in loaded.notes


def test_the_garak_of_before_is_read_too(tmp_path: Path) -> None:
    path = lines(tmp_path / "old.report.jsonl", OLD_GARAK)
    assert [example.turns for example in load_benchmark("garak", path).examples] == [("norp the wug",), ("wug",)]
    assert exchanges(load_benchmark("garak", path, with_replies=True)) == [("a/0", ("norp the wug",), ("no norp",))]


def test_a_hit_of_two_detectors_is_one_hit(tmp_path: Path) -> None:
    path = lines(tmp_path / "wug.hitlog.jsonl", HITS)
    assert exchanges(load_benchmark("garak", path, with_replies=True)) == [("a/2", ("norp the wug",), ("norp norp",))]


def piece(conversation: str, role: str, sequence: int, text: str, **more: Any) -> Row:
    """As ``MessagePiece.model_dump(mode="json")`` of PyRIT 1.1.0, without the keys that are not read."""
    return {
        "id": f"{conversation}{sequence}", "role": role, "conversation_id": conversation, "sequence": sequence,
        "original_value": text, "original_value_data_type": "text", "converted_value": text,
        "converted_value_data_type": "text", "response_error": "none", "converter_identifiers": [],
    } | more  # fmt: skip


PYRIT: list[Row] = [
    # Out of order, as another process may have written in between.
    piece("c1", "assistant", 2, "no"),
    piece("c1", "system", 0, "be a wug"),
    piece("c1", "user", 1, "norp", converted_value="prn norp", converter_identifiers=[{"class_name": "Prn"}]),
    piece("c2", "user", 0, "wug it", attack_identifier={"__type__": "Wugging"}),
    piece("c1", "user", 3, "please norp"),
    piece("c1", "user", 3, "pretty please"),
    piece("c1", "simulated_assistant", 4, "fine, norp"),
    piece("c2", "assistant", 1, "{'status_code': 400}", converted_value_data_type="error", response_error="blocked"),
    piece("c3", "user", 0, "/a.png", converted_value_data_type="image_path"),
    piece("c4", "tool", 0, "wug"),
    piece("", "user", 0, "wug"),
]


@pytest.mark.parametrize("ending", ["json", "csv"])
def test_pyrits_pieces_are_put_together_to_conversations(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"pieces.{ending}"
    if ending == "json":
        path.write_text(json.dumps(PYRIT, indent=4))
    else:
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, sorted({key for row in PYRIT for key in row}))
            table.writeheader()
            table.writerows(PYRIT)
    loaded = load_benchmark("pyrit", path)
    assert [(example.id, example.turns, example.method) for example in loaded.examples] == [
        ("c1", ("prn norp", "please norp\npretty please"), "Prn"),
        ("c2", ("wug it",), "Wugging"),
    ]
    assert loaded.report.dropped == {
        "a piece without a conversation_id": 1,
        "a user's message that is empty or no text": 1,
        "a message of 'tool'": 1,
    }
    assert loaded.report.kept == 2
    answered = load_benchmark("pyrit", path, with_replies=True)
    assert exchanges(answered) == [("c1", ("prn norp", "please norp\npretty please"), ("no", "fine, norp"))]
    assert answered.report.dropped["no answer to judge"] == 1


def result(target: object, prompt: str, answer: str, method: str = "", image: str = "") -> Row:
    """As ``asdict(AttackResult)`` of OpenRT 0.0.2."""
    return {
        "target": target, "success": True, "final_prompt": prompt, "output_text": answer, "history": [{"round": 1}],
        "cost": {}, "method": method, "image_path": image, "judge_success": None, "judge_reason": None,
    }  # fmt: skip


OPENRT = [
    result("norp", "please norp", "norp norp", "direct_attack"),
    result({"prompt": "wug", "method": "unknown"}, "wug!", ""),
    result("fleb", "", ""),
    result("pic", "see", "x", image="/a.png"),
]


def test_openrts_results_keep_the_request_beside_the_attack(tmp_path: Path) -> None:
    path = tmp_path / "tiny_PAIR_1_attack_result.json"
    path.write_text(json.dumps(OPENRT, indent=2))
    loaded = load_benchmark("openrt", path)
    assert [(example.turns, example.request, example.method) for example in loaded.examples] == [
        (("please norp",), "norp", "direct_attack"), (("wug!",), "wug", "unknown")
    ]  # fmt: skip
    assert loaded.report.dropped == {
        "an attack that shows an image": 1,
        "a user's message that is empty or no text": 1,
    }
    assert exchanges(load_benchmark("openrt", path, with_replies=True)) == [("0", ("please norp",), ("norp norp",))]


def jailbreak(behaviour: str, prompt: str | None, response: str | None) -> Row:
    """As ``JailbreakInfo.model_dump`` of JailbreakBench 1.0.0."""
    return {
        "index": 0, "goal": f"norp the {behaviour}", "behavior": behaviour, "category": "plim", "prompt": prompt,
        "response": response, "number_of_queries": 3, "queries_to_jailbreak": None, "prompt_tokens": 2,
        "response_tokens": None, "jailbroken": False,
    }  # fmt: skip


JBB = [jailbreak("Wug", "please norp", "norp norp"), jailbreak("Fleb", None, None), jailbreak("Glim", "norp?", None)]


def artifact(path: Path, rows: list[Row]) -> Path:
    """As ``AttackArtifact.model_dump_json`` of JailbreakBench 1.0.0."""
    parameters = {"method": "PAIR", "model": "vicuna-13b-v1.5", "attack_type": "black_box", "defense": None}
    path.write_text(json.dumps({"parameters": parameters, "jailbreaks": rows}))
    return path


def test_an_artifact_of_jailbreakbench_is_attacks_to_play_and_answers_to_judge(tmp_path: Path) -> None:
    path = artifact(tmp_path / "vicuna-13b-v1.5.json", JBB)
    loaded = load_benchmark("jailbreakbench_artifacts", path)
    assert [
        (example.turns, example.request, example.behaviour, example.category, example.method)
        for example in loaded.examples
    ] == [
        (("please norp",), "norp the Wug", "Wug", "plim", "PAIR"), (("norp?",), "norp the Glim", "Glim", "plim", "PAIR")
    ]  # fmt: skip
    assert loaded.report.dropped == {"a behaviour without a prompt": 1}
    assert (loaded.report.read, loaded.report.kept) == (3, 2)
    assert any(note.startswith("1 of 3 behaviours have no prompt") for note in loaded.notes)
    answered = load_benchmark("jailbreakbench_artifacts", path, with_replies=True)
    assert exchanges(answered) == [("Wug", ("please norp",), ("norp norp",))]
    rows = lines(tmp_path / "rows.jsonl", [{**row, "method": "GCG"} for row in JBB])
    assert [example.method for example in load_benchmark("jailbreakbench_artifacts", rows).examples] == ["GCG", "GCG"]


@pytest.mark.parametrize("name", ["jailbreakbench", "jailbreakbench_benign"])
def test_an_artifact_is_not_the_behaviours_and_another_object_is_no_artifact(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="it is JailbreakBench's artifacts, by its column jailbroken"):
        load_benchmark(name, lines(tmp_path / "rows.jsonl", JBB))
    for jailbreaks in (None, {}, ["norp"]):
        path = tmp_path / "x.json"
        path.write_text(json.dumps({"jailbreaks": jailbreaks, "parameters": None}))
        with pytest.raises(DataError, match="is no artifact of JailbreakBench: it has no list of jailbreaks"):
            load_benchmark("jailbreakbench_artifacts", path)


def test_another_tools_file_is_refused_by_the_columns_it_lacks(tmp_path: Path) -> None:
    path = lines(tmp_path / "wug.report.jsonl", GARAK)
    with pytest.raises(DataError, match="is no file of openrt .*: it lacks columns for request .target., text"):
        load_benchmark("openrt", path)
    with pytest.raises(DataError, match="is no file of pyrit .*conversation_id"):
        load_benchmark("pyrit", path)
    with pytest.raises(DataError, match="no row of .* can be used as garak.*no answer to judge: 1"):
        load_benchmark("garak", lines(tmp_path / "new.jsonl", OLD_GARAK[1:]), with_replies=True)


EMPTY = attempt("y", 2, {"turns": []}, [])


@pytest.mark.parametrize(
    ("benchmark", "row", "turns", "replies"),
    [
        ("garak", EMPTY | {"prompt": "wug", "conversations": ["x"], "outputs": ["a"]}, [("wug",)], [("a",)]),
        ("garak", EMPTY | {"prompt": {"turns": None}, "conversations": [], "outputs": ["a"]}, [], []),
        ("garak", EMPTY | {"prompt": ["x"], "conversations": None, "messages": "m"}, [("x",)], []),
        ("garak", EMPTY | {"prompt": 3, "conversations": [None, conversation(("user", "w"))]}, [("w",)], []),
        ("pyrit", piece("c", "user", 0, "") | {"converted_value": {"a": 1}}, [], []),
        ("pyrit", piece("c", "user", 0, "") | {"converted_value": [1], "converter_identifiers": "(" * 9999}, [], []),
        ("openrt", result({"prompt": "x"}, ["a", "b"], "y"), [], []),
        ("openrt", result({"prompt": ["a", 1]}, "wug", "y"), [], []),
        ("openrt", result("x", "wug", {"x": 1}), [("wug",)], []),
        ("jailbreakbench_artifacts", {**JBB[0], "prompt": {"a": 1}}, [], []),
        ("jailbreakbench_artifacts", {**JBB[0], "response": [1, 2]}, [("please norp",)], []),
    ],
)  # fmt: skip
def test_values_of_another_type_are_never_their_spelling(
    benchmark: str, row: Row, turns: list[Any], replies: list[Any], tmp_path: Path
) -> None:
    whole = {
        "garak": GARAK[2], "pyrit": PYRIT[0] | {"role": "user"}, "openrt": OPENRT[0],
        "jailbreakbench_artifacts": jailbreak("Z", "z", "z"),
    }[benchmark]  # fmt: skip
    loaded = load_benchmark(benchmark, lines(tmp_path / "r.jsonl", [row, whole]))
    assert [example.turns for example in loaded.examples[:-1]] == turns
    assert loaded.report.kept == len(loaded.examples)
    answered = load_benchmark(benchmark, lines(tmp_path / "r.jsonl", [row, *ANSWERED[benchmark]]), with_replies=True)
    assert [example.replies for example in answered.examples[:-1]] == replies
    assert answered.report.kept == len(answered.examples)


ANSWERED = {
    "garak": [attempt("z", 2, conversation(("user", "z")), ["z"])],
    "jailbreakbench_artifacts": [jailbreak("Z", "z", "z")],
    "openrt": [result("z", "z", "z")],
    "pyrit": [piece("z", "user", 0, "z"), piece("z", "assistant", 1, "z")],
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.text("a{['(", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["turns", "role", "content", "text", "prompt", "data_path"]), inner, max_size=2
        )
    ),
    max_leaves=6,
)
FIELDS = [
    (name, field)
    for name, row in {
        "garak": GARAK[2], "pyrit": PYRIT[2], "openrt": OPENRT[0], "jailbreakbench_artifacts": JBB[0],
    }.items()
    for field in row
]  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(place=st.sampled_from(FIELDS), value=JSON, with_replies=st.booleans())
def test_whatever_stands_in_a_field_every_row_is_read_or_counted(
    place: tuple[str, str], value: Any, with_replies: bool, tmp_path: Path
) -> None:
    name, field = place
    good = {
        "garak": [GARAK[3]], "pyrit": PYRIT[:3], "openrt": [OPENRT[0]], "jailbreakbench_artifacts": [JBB[0]],
    }[name]  # fmt: skip
    path = lines(tmp_path / "r.jsonl", [{**good[-1], field: value}, *({**row, "conversation_id": "z"} for row in good)])
    try:
        loaded = load_benchmark(name, path, with_replies=with_replies)
    except DataError as error:
        kept = str(error)
        loaded = None
    if loaded is None:
        assert "0 kept" in kept
        return
    assert loaded.report.kept == len(loaded.examples)
    assert all(isinstance(text, str) for example in loaded.examples for text in (*example.turns, *example.replies))
