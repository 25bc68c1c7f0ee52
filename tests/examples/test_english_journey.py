"""``make english``: the configurations compose, what is done is not done again, and the time left is said."""

import json
from pathlib import Path

import journey
import pytest
import table
import talk

from nemo_magic.config import compose

from .conftest import ENGLISH

FOLDER = str(ENGLISH)


@pytest.fixture
def commands(monkeypatch):
    """The command lines that a step would run."""
    calls = []
    monkeypatch.setattr(journey.Commands, "run", lambda self, *words: calls.append(words))
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 8, journey.FULL_STEPS])
def test_every_command_of_the_journey_takes_its_configuration(tmp_path, commands, steps):
    into = tmp_path / "english"
    (into / f"{'full' if steps >= journey.FULL_STEPS else f'taste-{steps}'}/game/snapshots/defender/phase-00").mkdir(
        parents=True
    )
    for step in journey.journey(into, steps):
        if step.title.startswith(("warm up", "measure", "play")):
            step.work()
    assert [words[0] for words in commands] == ["sft", "sft", "evaluate", "train", "evaluate"]
    for words in commands:
        name, flag_folder, folder, flag_name, config, *overrides = words
        assert (flag_folder, folder, flag_name) == ("-cd", FOLDER, "-cn")
        cfg = compose(config, overrides, folder, name)
        assert str(into) in cfg.exp_manager.explicit_log_dir
        assert cfg.judge.guard == "house:HouseRules"


def test_adapters_have_a_folder_of_their_own(tmp_path):
    for name, folder in ((None, "full-adapters-16"), ("current", "current-adapters-16")):
        steps = journey.journey(tmp_path, journey.FULL_STEPS, name=name, adapters=16)
        assert steps[-1].result == tmp_path / folder / "table.md"


def step_of(path, log, seconds=60.0, fails=False):
    def work():
        log.append(path.name)
        if fails:
            raise KeyboardInterrupt
        path.write_text("done")

    return journey.Step(path.name, seconds, path, work)


def test_after_a_kill_it_goes_on_where_it_was(tmp_path):
    log = []
    steps = [
        step_of(tmp_path / "one", log),
        step_of(tmp_path / "two", log, fails=True),
        step_of(tmp_path / "three", log),
    ]
    with pytest.raises(KeyboardInterrupt):
        journey.do_all(steps)
    steps[1] = step_of(tmp_path / "two", log)
    journey.do_all(steps)
    assert log == ["one", "two", "two", "three"]


def test_it_says_how_long_the_rest_takes_and_learns_the_machines_pace(tmp_path, capsys, monkeypatch):
    clock = iter(range(0, 10_000, 240))
    monkeypatch.setattr(journey.time, "monotonic", lambda: float(next(clock)))
    journey.do_all([step_of(tmp_path / name, [], 120) for name in ("one", "two", "three")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[1 of 3] one: about 2 min, 6 min to the end"
    assert lines[1] == "[2 of 3] two: about 4 min, 8 min to the end"


def test_a_step_that_made_nothing_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="was not made"):
        journey.do_all([journey.Step("nothing", 1, tmp_path / "x", lambda: None)])


def test_the_whole_is_planned_for_an_hour_and_the_taste_for_ten_minutes():
    whole, taste = (
        sum(step.seconds for step in journey.journey(Path("x"), steps)) for steps in (journey.FULL_STEPS, 8)
    )
    assert whole <= 60 * 60
    assert taste <= 10 * 60


def test_without_a_snapshot_there_is_nothing_to_measure(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights"):
        journey.last_snapshot(tmp_path, "defender")


def results(folder, rates):
    folder.mkdir(parents=True)
    figures = [{"task": task, "figure": figure, "rate": rate} for (task, figure), rate in rates.items()]
    (folder / "results.json").write_text(json.dumps({"figures": figures}))


def test_what_the_warm_up_left_stands_beside_what_it_should_leave(tmp_path, capsys):
    rates = {(task, figure): 0.3 for _, task, figure, _, _ in table.WINDOWS}
    results(tmp_path / "before", rates | {("near", "benign useful"): None})
    table.write_before(tmp_path / "before")
    lines = (tmp_path / "before" / "game.md").read_text().splitlines()
    assert [line for line in lines if "disguised" in line and "0.30" in line and "outside" not in line]
    assert [line for line in lines if "recipes, refused" in line and "outside" in line]
    assert [line for line in lines if "near misses, useful" in line and "–" in line]
    assert capsys.readouterr().out.strip() == "\n".join(lines).strip()


def test_the_table_has_before_and_after(tmp_path):
    for name, rate in (("before", 0.25), ("after", 0.75)):
        results(tmp_path / name, {(task, figure): rate for _, task, figure in table.ROWS})
    table.write_after(tmp_path)
    rows = (tmp_path / "table.md").read_text().splitlines()[2:]
    assert len(rows) == len(table.ROWS)
    assert all("0.25" in row and "0.75" in row for row in rows)


def test_the_dialogue_has_every_question_and_every_model(tmp_path, monkeypatch):
    monkeypatch.setattr(talk, "ask", lambda folder, questions: [f"{folder.name} says {q}" for q in questions])
    talk.write(tmp_path / "page.md", {"before": Path("a"), "after": Path("b")}, ["Who?", "Why?"])
    text = (tmp_path / "page.md").read_text()
    assert "**Who?**\n\n- before: a says Who?\n- after: b says Who?" in text
