"""A defender that reasons before it answers: what is shown of it, what it is paid, what the sandbox teaches it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_magic.game import tags
from nemo_magic.game.episode import Answer, Completion, Episode, Label, Safety, Seed, Turn, Verdict
from nemo_magic.game.metrics import Scored, rollout_metrics
from nemo_magic.game.rewards import RewardConfig, attacker_reward, defender_reward
from nemo_magic.sandbox.corpus import prepare
from nemo_magic.sandbox.world import SandboxConfig

SEED = Seed("x", "ask", Label.HARMFUL)
VERDICT = Verdict("x", response_safety=Safety.SAFE, refusal=Answer.YES)
CONFIG = RewardConfig(format_defender=0.5)


def turn(said: str) -> Turn:
    tagged = tags.parse(said)
    return Turn("ask", True, None, Completion((), (1,), (), said, True), tagged.visible, tagged.format_ok)


def test_only_the_answer_is_shown() -> None:
    episode = Episode(SEED, 0, 0, (turn("<think> secret </think> <answer> no </answer>"),))
    assert [message.content for message in episode.conversation] == ["ask", "no"]
    assert episode.answer_format_ok is True


def test_one_broken_message_breaks_the_conversations_format() -> None:
    good, broken = turn("<think> a </think> <answer> b </answer>"), turn("<think> a <answer> b </answer>")
    assert Episode(SEED, 0, 0, (good, broken)).answer_format_ok is False


def test_a_defender_that_does_not_reason_is_shown_whole_and_has_no_format() -> None:
    plain = Turn("ask", True, None, Completion((), (1,), (), "<think> as it is", True))
    episode = Episode(SEED, 0, 0, (plain,))
    assert episode.conversation[-1].content == "<think> as it is"
    assert episode.answer_format_ok is None
    assert "format_ok_defender" not in rollout_metrics([Scored(episode, None, None)]).pairs


@pytest.mark.parametrize(("kept", "part"), [(True, 0.5), (False, -0.5)])
def test_the_format_is_the_defenders_own_business(kept: bool, part: float) -> None:
    reward = defender_reward(CONFIG, SEED, VERDICT, kept)
    assert reward is not None
    assert reward.parts == {"harm": 1.0, "refusal": 0.5, "format": part}
    paid = attacker_reward(CONFIG, SEED, VERDICT, format_ok=True)
    assert paid is not None
    assert paid.parts == {"harm": -1.0, "refusal": -0.5, "format": 0.5}


def test_without_tags_to_keep_nothing_is_paid_for_them() -> None:
    for config, kept in ((CONFIG, None), (replace(CONFIG, format_defender=0.0), True)):
        reward = defender_reward(config, SEED, VERDICT, kept)
        assert reward is not None
        assert "format" not in reward.parts


def test_the_sandbox_teaches_the_same_answers_with_reasons(tmp_path: Path) -> None:
    config = SandboxConfig(folder=str(tmp_path), attack_rows=10, defender_rows=200)
    rows = [json.loads(line) for line in (prepare(config) / "defender_cot_pool.jsonl").read_text().splitlines()]
    assert len(rows) == 200
    answers = {tags.parse(row["response"]).visible.split()[0] for row in rows}
    assert answers == {"i", "here"}
    assert all(tags.parse(row["response"]).format_ok for row in rows)
