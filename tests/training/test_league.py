"""``nemo-magic cross-play``: the whole command on a small run, and what its cache takes for the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_magic.config import ConfigError, compose
from nemo_magic.data.errors import DataError
from nemo_magic.data.seeds import load_seeds
from nemo_magic.game.episode import Label, Seed
from nemo_magic.league.participants import LeagueSeeds, Participant, attackers, in_order, weights_digest
from tests.training.program import Game, run, start, wait_for

ATTACKERS, DEFENDERS = ["no rewrite", "start", "phase-01"], ["start", "phase-00", "phase-02"]


def cross_play(folder: Path, *words: str) -> tuple[dict[str, Any], str]:
    said = run("cross-play", str(folder), "game.crossplay.num_seeds=20", *words).stdout
    return json.loads((folder / "cross-play" / "league.json").read_text()), said


def copied(unbroken: Path, folder: Path) -> Path:
    """The same run elsewhere, without what was made of it."""
    shutil.copytree(unbroken, folder, ignore=shutil.ignore_patterns("cross-play", "checkpoints"))
    return folder


@pytest.fixture(scope="module")
def league(unbroken: Path) -> dict[str, Any]:
    """Played on the two ranks that the run was played on."""
    return cross_play(unbroken)[0]


@pytest.mark.process
def test_everyone_meets_everyone_in_the_order_of_the_game(unbroken: Path, league: dict[str, Any]) -> None:
    assert (league["attackers"], league["defenders"]) == (ATTACKERS, DEFENDERS)
    for name in ("asr", "payoff"):
        assert [len(row) for row in league[name]["matrix"]] == [3, 3, 3]
        for row, low, high in zip(*(league[name][key] for key in ("matrix", "low", "high")), strict=True):
            assert all(a <= b <= c for a, b, c in zip(low, row, high, strict=True))
        assert sum(league[name]["equilibrium"]["defenders"].values()) == pytest.approx(1)
        assert league[name]["last_defender"]["exploitability"]["value"] >= 0
    assert league["games"]["start"] == {"harmful": 20, "benign": 20, "undecided": 0}
    assert league["judge"].startswith("rules@")
    table = (unbroken / "cross-play" / "league.txt").read_text()
    assert table.index("no rewrite") < table.index("phase-01")


@pytest.mark.process
def test_another_layout_and_another_place_give_the_same_matrix(
    unbroken: Path, league: dict[str, Any], tmp_path: Path
) -> None:
    found, _ = cross_play(copied(unbroken, tmp_path / "run"), "model.tensor_model_parallel_size=2")
    assert found == league


@pytest.mark.process
def test_what_was_played_is_not_played_again_and_what_is_new_is(
    unbroken: Path, league: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder, ignore=shutil.ignore_patterns("checkpoints"))
    again, said = cross_play(folder, "trainer.devices=1")
    assert again == league
    assert "writes" not in said
    assert said.count(": 0 attackers to meet") == 3
    (folder / "seeds.jsonl").write_text(
        "".join(
            json.dumps({"prompt": seed.text, "rewrite": f"polite {seed.text}"}) + "\n"
            for seed in load_seeds(compose("config", [], str(folder)).data).test[:30]
        )
    )
    warm = unbroken / "snapshots" / "attacker" / "start"
    more, said = cross_play(
        folder, "trainer.devices=1", "--attacker", f"polite={folder / 'seeds.jsonl'}", "--attacker", f"again={warm}"
    )
    assert more["attackers"] == [*ATTACKERS, "polite", "again"]
    assert "attacker polite writes" in said
    # The same weights under another name are the same attacker: nothing to write, nothing to play.
    assert "attacker again writes" not in said
    assert said.count(": 1 attackers to meet") == 3
    for old, new in ((1, 4), (0, 0)):
        assert more["asr"]["matrix"][new] == league["asr"]["matrix"][old]
    _, said = cross_play(folder, "trainer.devices=1", "rewards.harm=2.0")
    assert said.count(": 3 attackers to meet") == 3  # other rewards, other payoffs
    assert "writes" not in said  # and the same attacks


@pytest.mark.process
def test_a_league_that_is_killed_goes_on_and_ends_as_the_unbroken_one(
    unbroken: Path, league: dict[str, Any], tmp_path: Path
) -> None:
    folder, log = copied(unbroken, tmp_path / "run"), tmp_path / "log"
    pairs = folder / "cross-play" / "pairs"
    words = ["cross-play", str(folder), "game.crossplay.num_seeds=20"]
    playing = start(*words, log=log)
    wait_for(lambda: len(list(pairs.glob("*.json"))) >= 2, playing, log)
    os.killpg(playing.pid, signal.SIGKILL)
    playing.wait()
    kept = {path: path.stat().st_mtime_ns for path in pairs.glob("*.json")}
    assert 2 <= len(kept) < 9
    found, _ = cross_play(folder)
    assert found == league
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list(pairs.glob("*.json"))) == 9


@pytest.mark.process
def test_a_league_of_a_game_with_a_server_or_one_model_names_its_one_self(game: Game) -> None:
    words = game.quick(
        "league_self", "ablation=self_play", "actors.attacker.restore_from_path=null", "game.schedule.freq=1",
        "trainer.devices=1", "game.max_steps=2",
    )  # fmt: skip
    run(*words)
    found, _ = cross_play(game.folder("league_self"))
    assert found["attackers"] == ["no rewrite", "start", "phase-01"]
    assert found["defenders"] == ["start", "phase-01"]


@pytest.mark.process
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}", "--attacker", "x={run}"], "give a folder of weights"),
        (["{run}", "--attacker", "start={run}/snapshots/attacker/start"], "there is another attacker of this name"),
        (["{run}", "--confidence", "95"], "--confidence 95.0 must be between 0 and 1"),
        (["{run}", "--replicates", "1"], "--replicates 1 must be at least 2"),
        (["{run}", "game.crosplay.num_seeds=3"], "game.crossplay"),
        (["{run}/snapshots"], "config.yaml: no such file; give the folder of a run"),
    ],
)
def test_what_cannot_be_played_is_said_at_once(unbroken: Path, words: list[str], message: str) -> None:
    assert message in run("cross-play", *(word.format(run=unbroken) for word in words), status=2).stderr


def test_snapshots_are_in_the_order_of_training_not_of_the_alphabet() -> None:
    assert in_order(["phase-100", "phase-02", "start", "phase-11"]) == ["start", "phase-02", "phase-11", "phase-100"]


def test_weights_are_told_apart_by_what_is_in_them(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, end in zip(folders, (b"x", b"x", b"y"), strict=True):
        folder.mkdir()
        (folder / "shard").write_bytes(b"\0" * 5_000_000 + end)
    assert weights_digest(folders[0]) == weights_digest(folders[1]) != weights_digest(folders[2])


@pytest.mark.process
def test_a_table_without_rewrites_is_refused_with_its_columns(unbroken: Path, tmp_path: Path) -> None:
    cfg = compose("config", [], str(unbroken))
    table = tmp_path / "t.jsonl"
    table.write_text('{"prompt": "a", "other": "b"}\n')
    with pytest.raises(DataError, match="no column for the rewrite .* its columns are: prompt, other"):
        attackers(cfg, unbroken, [str(table)])
    table.write_text('{"prompt": "a", "rewrite": "b"}\n{"prompt": "a", "rewrite": "c"}\n')
    assert attackers(cfg, unbroken, [str(table)])[-1].rewrites == {"a": ["b", "c"]}


def test_a_table_without_a_rewrite_of_any_seed_is_refused_before_anything_is_played() -> None:
    seeds = LeagueSeeds([(0, Seed("a", "ask", Label.HARMFUL)), (1, Seed("b", "tell", Label.HARMFUL))], [], 1)
    table = Participant("pairs", "x", rewrites={"ask": ["please"], "other": ["no"]})
    assert seeds.covered_by(table) == "--attacker pairs: its table has rewrites of 1 of the 2 harmful seeds"
    with pytest.raises(ConfigError, match=r"--attacker pairs: .* 0 of the 2 .*data\.test_files"):
        seeds.covered_by(replace(table, rewrites={"Ask": ["please"]}))


@pytest.mark.process
def test_a_run_that_kept_nobody_is_no_league(unbroken: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no weights"):
        attackers(compose("config", [], str(unbroken)), tmp_path)


@pytest.mark.process
def test_few_seeds_are_attacked_often_and_many_once(unbroken: Path) -> None:
    data = load_seeds(compose("config", [], str(unbroken)).data)
    few = LeagueSeeds.of(replace(data, test=data.test[:6]), 40)
    assert few.per_seed * len(few.harmful) == pytest.approx(40, abs=len(few.harmful))
    many = LeagueSeeds.of(data, 5)
    assert (len(many.harmful), len(many.benign), many.per_seed) == (5, 5, 1)
    assert len({group for group, _ in many.harmful + many.benign}) == 10
    with pytest.raises(ValueError, match="needs harmful test seeds"):
        LeagueSeeds.of(replace(data, test=[s for s in data.test if s.label is Label.BENIGN]), 5)


def test_the_end_of_a_run_plays_seeds_by_their_place_and_attacks_the_harmful_ones() -> None:
    seeds = [Seed(str(i), "ask", Label.HARMFUL if i % 2 else Label.BENIGN) for i in range(6)]
    found = LeagueSeeds.of_run(list(enumerate(seeds)), 7)
    assert [group for group, _ in found.numbered] == [1, 3, 5, 0, 2, 4]
    assert [(spec.group, spec.sample) for spec in found.rollout_specs()] == [(g, i) for g in (1, 3, 5) for i in (0, 1)]
    assert found.attacks_per_pair == 6
    few = LeagueSeeds.of_run(list(enumerate(seeds)), 2)
    assert ([group for group, _ in few.numbered], few.per_seed) == ([1, 3, 0, 2], 1)
    with pytest.raises(ValueError, match="needs harmful test seeds"):
        LeagueSeeds.of_run([(0, seeds[0])], 7)


@pytest.mark.process
def test_an_attacker_is_old_until_it_is_the_newest(unbroken: Path) -> None:
    found: list[Participant] = attackers(compose("config", [], str(unbroken)), unbroken)
    assert [one.name for one in found if one.old] == ["no rewrite", "start"]
