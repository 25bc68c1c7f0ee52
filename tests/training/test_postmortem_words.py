"""``nemo-magic postmortem`` reads what a dying node left, which may be anything."""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemo_magic.cli import main
from nemo_magic.runtime.postmortem import report
from nemo_magic.runtime.watchdog import FOLDER, HOSTS, RankPosition

POSITION = asdict(RankPosition("1.0", 0, 2, "node", 1, 3, "update", 5, 1.0, {"main": ["f (a.py:1)"]}))
KEYS = st.sampled_from(["main", "names", "attempt", "state"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=2),
    max_leaves=5,
)


@pytest.mark.parametrize("name", ["none", "file"])
def test_a_folder_that_is_not_there_is_no_healthy_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    assert main(["postmortem", str(tmp_path / name)]) == 1
    printed = capsys.readouterr()
    assert printed.err == f"nemo-magic postmortem: {tmp_path / name}: no such folder; give the folder of a run\n"
    assert not printed.out


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(field=st.sampled_from(sorted(POSITION)), value=JSON, hosts=JSON, trace=JSON)
def test_no_content_of_its_files_ends_it(tmp_path: Path, field: str, value: Any, hosts: Any, trace: Any) -> None:
    hangs, logs = tmp_path / FOLDER, tmp_path / "logs" / "1.0"
    for folder in (hangs, logs, logs / "rank-0007.log"):
        folder.mkdir(parents=True, exist_ok=True)
    (hangs / "rank-1.json").write_text(json.dumps(POSITION | {"rank": 1}))
    (hangs / "rank-0.json").write_text(json.dumps(POSITION | {field: value}))
    (hangs / HOSTS).write_text(json.dumps(hosts))
    for number, content in enumerate(
        (trace, {"entries": trace}, {"entries": [{"state": "x", "seq_id": trace}, trace]})
    ):
        (logs / f"nccl_trace_rank_{number}").write_bytes(pickle.dumps(content))
    (logs / "nccl_trace_rank_8").write_bytes(pickle.dumps([1] * 99)[:-3])
    (logs / "rank-x.log").write_text("ValueError: x\n")
    (logs / "rank-0001.log").write_bytes(b"\xff\nValueError: wug\n")
    lines = list(report(tmp_path))
    assert "rank 1 said last: ValueError: wug" in lines
