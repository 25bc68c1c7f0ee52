"""The picture of a run: what is drawn, and what is said where something is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from nemo_magic.game.payoff import CrossPlay
from nemo_magic.report.game_picture import build_figure, draw_game, phase_spans
from nemo_magic.report.records import StepRecord


def a_game(steps: int = 8, freq: int = 2) -> list[StepRecord]:
    records = [StepRecord(0, "start", 0, None, {"val_rollouts/asr": 0.8, "val_rollouts/useful": 0.9})]
    for step in range(1, steps + 1):
        phase = (step - 1) // freq
        role = ("defender", "attacker")[phase % 2]
        figures = {"train_rollouts/asr": 0.5}
        if step % freq == 0:
            figures |= {"val_rollouts/asr": 0.1, "val_rollouts/useful": 0.9, "val_rollouts/over_refusal": 0.1}
        records.append(StepRecord(step, role, phase, role, figures))
    return records


def said(figure: Figure) -> set[str]:
    return {text.get_text() for axes in figure.axes for text in axes.texts}


def test_a_phase_is_shaded_from_its_first_step_to_its_last() -> None:
    assert phase_spans(a_game()) == [
        (0.0, 2.0, "defender"),
        (2.0, 4.0, "attacker"),
        (4.0, 6.0, "defender"),
        (6.0, 8.0, "attacker"),
    ]


def test_every_cell_of_the_matrix_is_written_in_percent() -> None:
    figure = build_figure(a_game(), CrossPlay(["a", "b"], ["x", "y"], [[0.734, 0.02], [0.911, 0.0]], 64))
    assert {"73.4", "2.0", "91.1", "0.0", "ASR in percent, 64 seeds a cell"} <= said(figure)


def test_curves_that_end_together_have_their_figures_written_apart() -> None:
    figure = build_figure(a_game(), None)
    figure.draw_without_rendering()
    heights = [text.xy[1] for text in figure.axes[0].texts if text.get_text() in ("10.0", "90.0")]
    assert len(heights) == 3
    assert all(abs(a - b) >= 5 for i, a in enumerate(heights) for b in heights[:i])


def test_the_legend_names_every_curve_and_who_learns() -> None:
    legend = build_figure(a_game(), None).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [
        "attack success (ASR), held out",
        "over-refusal, held out",
        "useful answers, held out",
        "ASR in training rollouts",
        "defender learns",
        "attacker learns",
    ]


def test_a_run_without_cross_play_still_has_its_curves(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1, "phase": "defender", "phase_index": 0, "learner": "defender", "time": "t"}\n')
    picture = draw_game(metrics, tmp_path / "not-there.json", tmp_path / "out" / "game.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_run_without_a_step_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "cut')
    with pytest.raises(ValueError, match="holds no step to draw"):
        draw_game(tmp_path / "metrics.jsonl", None, tmp_path / "game.png")
