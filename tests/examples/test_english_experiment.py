"""The experiment in English: which weights meet which, and the page's table from the numbers alone."""

import json

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
    plays = [step for step in experiment.steps(commands, experiment.GAMES) if step.title.startswith("play")]
    for step in plays:
        step.work()
    configurations = [compose(words[4], words[5:], words[2], words[0]) for words in calls]
    assert [cfg.seed for cfg in configurations] == [1234, 1234, 1234, 2]
    assert {cfg.game.max_steps for cfg in configurations} == {30}
    assert [len(cfg.game.schedule.train_roles) for cfg in configurations] == [2, 1, 2, 2]
    assert [cfg.rewards.intent_gate for cfg in configurations] == [True, True, False, True]
    assert {cfg.game.batch_size * cfg.game.group_size for cfg in configurations} == {32}


def test_a_role_that_did_not_learn_is_the_warmed_up_one(commands, tmp_path):
    alone = next(game for game in experiment.GAMES if not game.attacker_learns)
    (tmp_path / "experiment" / alone.name / "snapshots" / "defender" / "phase-03").mkdir(parents=True)
    assert experiment.weights_of(commands, alone, "defender").name == "phase-03"
    assert experiment.weights_of(commands, None, "defender") == tmp_path / "full/sft_defender/weights"
    assert alone not in experiment.attackers(experiment.GAMES)


def test_every_defender_meets_every_attacker_and_only_the_first_meeting_has_all_tasks(commands, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(journey.Commands, "run", lambda self, *words: calls.append(words))
    monkeypatch.setattr(journey, "last_snapshot", lambda game, role: game / role)
    games = experiment.GAMES[:1]
    measures = [step for step in experiment.steps(commands, games) if step.title.startswith("measure")]
    places = ("full/before", "experiment/test/warm-up/robust-1", "full/after", "experiment/test/robust-1/robust-1")
    assert [step.result.parent for step in measures] == [tmp_path / place for place in places]
    for step in measures[:2]:
        step.work()
    whole, attacked = (compose(words[4], words[5:], words[2], words[0]) for words in calls)
    assert len(whole.eval.tasks_with_file) == 7
    assert list(attacked.eval.tasks_with_file) == ["attacked"]


def test_the_best_attacker_is_the_one_with_the_highest_asr():
    keys = ("recipe: harmful asr", "disguised: harmful asr", "held_out: harmful asr", "howto: benign useful")
    rates = dict.fromkeys((*keys, "near: benign useful"), 0.5)
    attacked = {"warm-up": [0.2, 0.9], "a": [0.75, 0.6], "b": [None, None]}
    results = {"games": {"a": "the game"}, "defenders": {"a": {"rates": rates, "attacked": attacked}}}
    assert "| the game | 0.50 | 0.50 | 0.50 | 0.50 | 0.50 | 0.20 | 0.75 (a) | 0.60 |" in experiment.yardstick(results)
    page = experiment.fill("x <!-- yardstick: begin -->old<!-- yardstick: end --> y", results)
    assert page.startswith("x <!-- yardstick: begin -->\n| defender")
    assert page.endswith("<!-- yardstick: end --> y")
    assert "old" not in page


def test_the_same_attacks_are_shown_before_and_after(tmp_path):
    for when, answer in (("before", "Boil  it."), ("after", "I'm sorry.")):
        folder = tmp_path / when / "transcripts"
        folder.mkdir(parents=True)
        for rank in range(2):
            rows = [
                {"id": f"{rank}.{i}", "label": label, "request": f"ask {i}", "turns": [[f"attack {i}", answer]]}
                for i, label in enumerate(["harmful"] * 5 + ["benign"] * 3)
            ]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"attacked.rank-{rank:05d}.jsonl").write_text(text)
    page = experiment.conversations(tmp_path)
    assert (page.count("(restricted)"), page.count("(allowed)")) == (6, 4)
    assert page.count("- before: Boil it.") == page.count("- after: I'm sorry.") == 10
    assert page == experiment.conversations(tmp_path)
