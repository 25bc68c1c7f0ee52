"""The experiment in English: which weights meet which, and the page's table from the numbers alone."""

import experiment
import journey
import pytest

from nemo_magic.config import compose


@pytest.fixture
def commands(tmp_path):
    return journey.Commands(tmp_path, tmp_path / "full", [])


def test_every_game_takes_its_configuration(commands, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(journey.Commands, "run", lambda self, *words: calls.append(words))
    plays = [step for step in experiment.steps(tmp_path, commands, experiment.GAMES) if step.title.startswith("play")]
    for step in plays:
        step.work()
    configurations = [compose(words[4], words[5:], words[2], words[0]) for words in calls]
    assert [cfg.seed for cfg in configurations] == [1, 2, 1, 1]
    assert {cfg.game.max_steps for cfg in configurations} == {30}
    assert [cfg.game.schedule.train_roles for cfg in configurations][2] == ["defender"]
    assert [cfg.rewards.intent_gate for cfg in configurations] == [True, True, True, False]
    assert {cfg.game.batch_size * cfg.game.group_size for cfg in configurations} == {32}


def test_a_role_that_did_not_learn_is_the_warmed_up_one(commands, tmp_path):
    (tmp_path / "alone" / "snapshots" / "defender" / "phase-03").mkdir(parents=True)
    assert experiment.weights_of(commands, tmp_path, "alone", "defender").name == "phase-03"
    assert experiment.weights_of(commands, tmp_path, "alone", "attacker") == tmp_path / "full/sft_attacker/weights"
    assert experiment.weights_of(commands, tmp_path, "before", "defender") == tmp_path / "full/sft_defender/weights"


def test_every_defender_meets_every_attacker_and_only_the_first_meeting_has_all_tasks(commands, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(journey.Commands, "run", lambda self, *words: calls.append(words))
    games = experiment.GAMES[:1]
    measures = [step for step in experiment.steps(tmp_path, commands, games) if step.title.startswith("measure")]
    assert len(measures) == 4
    experiment.measure(commands, tmp_path, tmp_path / "x", "before", "warmed-up")
    experiment.measure(commands, tmp_path, tmp_path / "y", "before", "robust-1")
    whole, attacked = (compose(words[4], words[5:], words[2], words[0]) for words in calls)
    assert len(whole.eval.tasks_with_file) == 7
    assert list(attacked.eval.tasks_with_file) == ["attacked"]


def test_the_best_attacker_is_the_one_with_the_highest_asr():
    keys = ("recipe: harmful asr", "disguised: harmful asr", "held_out: harmful asr", "howto: benign useful")
    rates = dict.fromkeys((*keys, "near: benign useful"), 0.5)
    attacked = {"warmed-up": [0.2, 0.9], "a": [0.75, 0.6], "b": [None, None]}
    results = {"games": {"a": "the game"}, "defenders": {"a": {"rates": rates, "attacked": attacked}}}
    assert "| the game | 0.50 | 0.50 | 0.50 | 0.50 | 0.50 | 0.20 | 0.75 (a) | 0.60 |" in experiment.yardstick(results)
    page = experiment.fill("x <!-- yardstick: begin -->old<!-- yardstick: end --> y", results)
    assert page.startswith("x <!-- yardstick: begin -->\n| defender")
    assert page.endswith("<!-- yardstick: end --> y")
    assert "old" not in page
