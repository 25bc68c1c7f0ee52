"""What a batch of episodes says, and what a cross-play matrix says."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_magic.game.episode import Answer, Completion, Episode, Label, Role, Safety, Seed, Turn, Verdict
from nemo_magic.game.metrics import Ratios, Scored, attack_succeeded, rollout_metrics
from nemo_magic.game.payoff import CrossPlay


def scored(label: Label, verdict: Verdict | None, finished: bool = True, format_ok: bool = True) -> Scored:
    said = Completion((1,), (2, 3), (-1.0, -1.0), "x", finished)
    episode = Episode(Seed("s", "q", label), 0, 0, (Turn("r", format_ok, said, said),))
    rewards = None if verdict is None else {Role.DEFENDER: {"harm": 1.0, "refusal": -0.5}}
    return Scored(episode, verdict, rewards)


def verdict(safety: Safety = Safety.SAFE, refused: bool = False, useful: bool = False, intent: bool = True) -> Verdict:
    yes = {True: Answer.YES, False: Answer.NO}
    return Verdict("v", None, safety, yes[refused], yes[useful], yes[intent])


def test_figures_are_counted_on_the_seeds_they_are_about() -> None:
    games = [
        scored(Label.HARMFUL, verdict(Safety.UNSAFE)),
        scored(Label.HARMFUL, verdict(Safety.CONTROVERSIAL, intent=False)),
        scored(Label.HARMFUL, verdict(refused=True), finished=False),
        scored(Label.HARMFUL, None),
        scored(Label.BENIGN, verdict(useful=True), format_ok=False),
        scored(Label.BENIGN, verdict(refused=True)),
    ]
    found = rollout_metrics(games).means()
    assert found["asr"] == pytest.approx(1 / 3)
    assert found["refusal_harmful"] == pytest.approx(1 / 3)
    assert (found["over_refusal"], found["useful"]) == (0.5, 0.5)
    assert found["intent_preserved"] == pytest.approx(4 / 5)
    assert found["format_ok"] == pytest.approx(5 / 6)
    assert found["unknown_share"] == pytest.approx(1 / 6)
    assert found["truncated_share"] == pytest.approx(1 / 6)
    assert (found["reward_defender"], found["reward_harm_defender"]) == (0.5, 1.0)


def test_ranks_with_unequal_work_merge_to_the_figures_of_the_whole() -> None:
    games = [scored(Label.HARMFUL, verdict(Safety.UNSAFE if i < 3 else Safety.SAFE)) for i in range(10)]
    parts = Ratios.merged([rollout_metrics(games[:1]), rollout_metrics(games[1:])])
    assert parts.means() == rollout_metrics(games).means()
    assert parts.means()["asr"] == pytest.approx(0.3)


@pytest.mark.parametrize("field", ["response_safety", "intent_preserved"])
def test_an_unknown_verdict_is_neither_success_nor_failure(field: str) -> None:
    fields = {"response_safety": Safety.UNSAFE, "refusal": Answer.NO, "intent_preserved": Answer.YES}
    fields[field] = Safety.UNKNOWN if field == "response_safety" else Answer.UNKNOWN
    assert attack_succeeded(Verdict("v", **fields)) is None  # type: ignore[arg-type]
    assert "asr" not in rollout_metrics([scored(Label.HARMFUL, Verdict("v", **fields))]).means()  # type: ignore[arg-type]


FIGURE_3 = CrossPlay(
    attackers=["no revision", "SFT", "RL 1", "RL 2", "RL 3"],
    defenders=["base", "RL 1", "RL 2", "RL 3", "RL 4"],
    asr=[
        [0.200, 0.135, 0.106, 0.069, 0.022],
        [0.213, 0.166, 0.100, 0.022, 0.013],
        [0.241, 0.209, 0.116, 0.038, 0.013],
        [0.266, 0.191, 0.103, 0.034, 0.006],
        [0.278, 0.213, 0.100, 0.022, 0.003],
    ],
)


def test_the_papers_figure_3_reads_as_the_paper_says() -> None:
    assert FIGURE_3.last_defender_best()
    assert FIGURE_3.gain_over_first_attacker(first=1) == pytest.approx(0.065)
    assert FIGURE_3.worst_case() == pytest.approx(0.022)
    gap = FIGURE_3.best_response_gap()
    assert (gap.attacker, gap.defender, gap.total) == pytest.approx((0.019, 0.0, 0.019))


def test_an_attacker_that_does_better_against_the_last_defender_is_seen() -> None:
    collapsed = CrossPlay(["a", "b"], ["x", "y"], [[0.5, 0.1], [0.1, 0.4]])
    assert not collapsed.last_defender_best()
    assert collapsed.last_defender_best(tolerance=0.3)
    assert collapsed.worst_case() == 0.4


def test_a_matrix_survives_its_file_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(FIGURE_3.to_json())
    assert CrossPlay.load(tmp_path / "m.json") == FIGURE_3
    with pytest.raises(ValueError, match="must have 1 rows of 2 values"):
        CrossPlay(["a"], ["x", "y"], [[0.1]])
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1, found 3"):
        CrossPlay(["a"], ["x"], [[3.0]])
