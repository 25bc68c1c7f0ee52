"""What wandb and TensorBoard are shown of a run beside its curves: the report's figures, by wandb's own means."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nemo_magic.config.analysis import AnalysisConfig
from nemo_magic.config.experiment import ExpManagerConfig
from nemo_magic.report.media import Table, collect_media
from nemo_magic.report.records import StepRecord
from nemo_magic.report.run_folder import RunFolder
from nemo_magic.tracking.metric_logger import MetricLogger
from tests.report.made_up_run import make_run

STEPS = 20


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the sandbox that ended, and whose final report went to wandb, offline, and TensorBoard."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "shown", steps=STEPS, league=True)
    settings = ExpManagerConfig(explicit_log_dir=str(folder), create_wandb_logger=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("WANDB_SILENT", "true")
        with MetricLogger(settings, is_main=True, resume_step=STEPS, analysis=AnalysisConfig()) as logger:
            logger.write_final_report()
    return folder


def tables(run: Path) -> dict[str, dict[str, Any]]:
    """wandb's tables, and those behind its charts, by their names."""
    folders = list(run.glob("wandb/offline-run-*/files/media/table/report"))
    assert len(folders) == 1
    found = {path.name.rsplit("_", 2)[0]: json.loads(path.read_text()) for path in folders[0].glob("*.table.json")}
    assert found
    return found


@pytest.mark.process
def test_wandb_has_a_table_or_a_chart_of_everything_that_the_report_shows(run: Path) -> None:
    assert set(tables(run)) == {
        "trade_table", "crossplay", "worst_saved_attacker_table", "crossplay_intervals", "strategies",
        "strategy_mix_table", "attack_shares_table", "attack_likeness_table", "probe", "phases", "alarms",
        "conversations",
    }  # fmt: skip
    # The charts are drawn by wandb itself, from its own specifications.
    (records,) = run.glob("wandb/offline-run-*/*.wandb")
    for chart in (b"wandb/lineseries/v0", b"wandb/bar/v0", b"wandb/scatter/v0"):
        assert chart in records.read_bytes()


@pytest.mark.process
def test_wandbs_tables_say_what_the_runs_files_say(run: Path) -> None:
    found = tables(run)
    matrix = json.loads((run / "crossplay.json").read_text())
    assert found["crossplay"]["columns"] == ["attacker", *matrix["defenders"]]
    assert [row[1:] for row in found["crossplay"]["data"]][: len(matrix["asr"])] == matrix["asr"]
    with (run / "attacks" / "strategies.csv").open() as file:
        table = [(row["strategy"], int(row["attacks"])) for row in csv.DictReader(file)]
    assert [(row[0], row[1]) for row in found["strategies"]["data"]] == table
    attacks = json.loads((run / "attacks" / "attacks.json").read_text())
    hybrid = [(x, y) for x, key, y in found["attack_shares_table"]["data"] if key == "several strategies at once"]
    assert [y for _, y in hybrid] == [one["hybrid_share"] for one in attacks["bins"]]
    assert hybrid[0][0] == attacks["bins"][0]["first"]


@pytest.mark.process
def test_texts_are_shown_to_wandb_and_tensorboard_only_where_that_was_asked_for(run: Path) -> None:
    hidden = tables(run)["conversations"]
    assert "conversation" not in hidden["columns"]
    assert len(hidden["data"]) == 8 * STEPS
    for path in (*run.glob("wandb/**/*"), *run.glob("tensorboard/*")):
        assert path.is_dir() or b"bring :" not in path.read_bytes(), path
    (asked,) = [one for one in collect_media(RunFolder(run), texts=True) if one.key == "conversations"]
    assert isinstance(asked, Table)
    assert asked.columns[-1] == "conversation"
    assert all("bring" in str(row[-1]) for row in asked.rows)


@pytest.mark.process
def test_tensorboard_has_the_tables_as_text(run: Path) -> None:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    named = {name.removesuffix("/text_summary") for name in events.Tags()["tensors"]}
    assert {"report/crossplay", "report/strategies", "report/conversations", "report/phases"} <= named
    text = events.Tensors("report/crossplay/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert text.splitlines()[0] == "| attacker | start | phase-00 | phase-02 | phase-04 |"


def test_attacks_are_analysed_with_each_report_of_a_sandbox_run_and_with_none_of_another(tmp_path: Path) -> None:
    for name in ("sandbox", "real"):
        folder = make_run(tmp_path / name, steps=3)
        if name == "real":
            config = folder / "config.yaml"
            config.write_text(config.read_text().replace("world: world.json", "model: {}"))
        settings = ExpManagerConfig(explicit_log_dir=str(folder), create_tensorboard_logger=False)
        with MetricLogger(settings, is_main=True, resume_step=3, analysis=AnalysisConfig()) as logger:
            logger.record(StepRecord(4, "attacker", 0, "attacker", {"val_rollouts/asr": 0.5}))
        assert (folder / "report.html").exists()
        assert (folder / "attacks" / "attacks.json").exists() == (name == "sandbox")


def test_attacks_that_cannot_be_analysed_are_said_once_and_cost_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path / "run", steps=3)
    settings = ExpManagerConfig(explicit_log_dir=str(folder), create_tensorboard_logger=False)
    analysis = AnalysisConfig(pool="/no/such.jsonl")
    with MetricLogger(settings, is_main=True, resume_step=3, analysis=analysis) as logger:
        logger.write_final_report()
        logger.write_final_report()
    assert capsys.readouterr().out.count("attacks/attacks.json is not written: DataError") == 1
    assert (folder / "report.html").exists()
