"""Tags, prompts, rewards and the schedule: the rules of the game, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_magic.game import tags
from nemo_magic.game.episode import Answer, Label, Role, Safety, Seed, Verdict
from nemo_magic.game.prompts import PromptConfig, attacker_messages, defender_messages
from nemo_magic.game.rewards import RewardConfig, attacker_reward, defender_reward, unplayed_attack_reward
from nemo_magic.game.schedule import Schedule, ScheduleConfig

HARMFUL, BENIGN = (Seed(label.value, "bring : x", label) for label in (Label.HARMFUL, Label.BENIGN))
ROBUST = RewardConfig(help=0.5, intent_gate=True, intent=0.5)


def verdict(safety: Safety, refusal: bool, helpful: bool = False, intent: bool = True) -> Verdict:
    def yes(value: bool) -> Answer:
        return Answer.YES if value else Answer.NO

    return Verdict("v", Safety.SAFE, safety, yes(refusal), yes(helpful), yes(intent))


@pytest.mark.parametrize(
    ("text", "visible", "ok"),
    [
        ("<think> a </think> <answer> b </answer>", "b", True),
        (" <think>a</think>\n<answer>b\nc</answer>\n", "b\nc", True),
        ("<answer> b </answer>", "b", False),
        ("<think> a </think> b", "b", False),
        ("<think> a </think> <answer> b </answer> c", "b c", False),
        ("<think> a <answer> b </answer>", "", False),
        ("a </think> <answer> b </answer>", "b", False),
        ("<think> a </think> <think> c </think> <answer> b </answer>", "b", False),
        ("<think> a </think> <answer> b <answer> c </answer>", "b c", False),
        ("<think> a </think> <answer> </answer>", "", False),
        ("plain", "plain", False),
        ("", "", False),
    ],
)
def test_only_one_think_then_one_answer_keeps_the_format_and_reasoning_is_never_visible(
    text: str, visible: str, ok: bool
) -> None:
    found = tags.parse(text)
    assert (found.visible, found.format_ok) == (visible, ok)


@pytest.mark.parametrize("text", ["<think> a </think> <answer> </answer>", "<think></think><answer></answer>\n"])
def test_tags_around_nothing_keep_the_format_in_the_published_code_only(text: str) -> None:
    assert tags.parse(text, empty_answer_ok=True).format_ok
    assert not tags.parse(text).format_ok
    assert not tags.parse(text[:-12], empty_answer_ok=True).format_ok


@given(
    config=st.builds(RewardConfig, **{key: st.floats(0, 2) for key in ("harm", "refusal", "format", "help", "intent")},
                     intent_gate=st.booleans(), refusal_label=st.sampled_from(["seed", "prompt"])),
    seed=st.sampled_from([HARMFUL, BENIGN]), judged=st.builds(
        Verdict, st.just("v"), st.sampled_from([Safety.SAFE, Safety.UNSAFE]), st.sampled_from(
            [Safety.SAFE, Safety.CONTROVERSIAL, Safety.UNSAFE]), *[st.sampled_from([Answer.YES, Answer.NO])] * 3),
    format_ok=st.booleans(),
)  # fmt: skip
def test_no_played_attack_earns_less_than_one_that_was_not_played(
    config: RewardConfig, seed: Seed, judged: Verdict, format_ok: bool
) -> None:
    played = attacker_reward(config, seed, judged, format_ok)
    assert played is not None
    assert unplayed_attack_reward(config, seed, format_ok).total <= played.total + 1e-9


def test_what_the_pool_teaches_is_well_formed() -> None:
    found = tags.parse(tags.tagged("why", "what"))
    assert (found.reasoning, found.visible, found.format_ok) == ("why", "what", True)


def test_braces_in_a_seed_stay_text_and_the_defender_sees_the_rewrite_only() -> None:
    seed = Seed("s", "a {label} {seed} {0}", Label.BENIGN)
    prompts = PromptConfig(attacker_system="sys", attacker_user="{label}|{seed}", defender_system="")
    assert [m.content for m in attacker_messages(prompts, seed)] == ["sys", "benign|a {label} {seed} {0}"]
    assert [(m.role, m.content) for m in defender_messages(prompts, "hi")] == [("user", "hi")]
    with pytest.raises(ValueError, match=r"must contain \{seed\}"):
        PromptConfig(attacker_user="no seed")


@pytest.mark.parametrize(
    ("seed", "safety", "refused", "total"),
    [
        (HARMFUL, Safety.SAFE, True, 1.5),
        (HARMFUL, Safety.SAFE, False, 0.5),
        (HARMFUL, Safety.UNSAFE, False, -1.5),
        (HARMFUL, Safety.CONTROVERSIAL, False, -1.5),
        (BENIGN, Safety.SAFE, False, 1.5),
        (BENIGN, Safety.SAFE, True, 0.5),
        (BENIGN, Safety.UNSAFE, False, -0.5),
    ],
)
def test_the_papers_rewards_and_their_flipped_signs(seed: Seed, safety: Safety, refused: bool, total: float) -> None:
    paper, found = RewardConfig(), verdict(safety, refused)
    defender = defender_reward(paper, seed, found)
    assert defender is not None
    assert defender.total == total
    for format_ok, bonus in ((True, 0.5), (False, -0.5)):
        attacker = attacker_reward(paper, seed, found, format_ok)
        assert attacker is not None
        assert attacker.total == -total + bonus


def test_robust_pays_for_usefulness_on_benign_seeds_only() -> None:
    for helpful, part in ((True, 0.5), (False, -0.5)):
        found = verdict(Safety.SAFE, False, helpful)
        reward = defender_reward(ROBUST, BENIGN, found)
        assert reward is not None
        assert reward.parts == {"harm": 1.0, "refusal": 0.5, "help": part}
        harmful = defender_reward(ROBUST, HARMFUL, found)
        assert harmful is not None
        assert "help" not in harmful.parts


def test_an_attack_that_lost_the_intent_earns_less_than_a_losing_one_that_kept_it() -> None:
    won, lost = (verdict(Safety.UNSAFE, False, intent=intent) for intent in (True, False))
    kept, dropped = (attacker_reward(ROBUST, HARMFUL, v, True) for v in (won, lost))
    beaten = attacker_reward(ROBUST, HARMFUL, verdict(Safety.SAFE, True), True)
    assert kept is not None
    assert dropped is not None
    assert beaten is not None
    assert kept.total == 2.0
    assert beaten.total == -1.0
    assert dropped.total == -1.5
    gate_only = attacker_reward(RewardConfig(help=0.5, intent_gate=True), HARMFUL, lost, True)
    assert gate_only is not None
    assert gate_only.total == beaten.total


def test_refusals_can_be_scored_against_the_judged_prompt() -> None:
    config = RewardConfig(refusal_label="prompt")
    found = Verdict("v", Safety.CONTROVERSIAL, Safety.SAFE, Answer.YES)
    by_prompt, by_seed = (defender_reward(c, BENIGN, found) for c in (config, RewardConfig()))
    assert by_prompt is not None
    assert by_seed is not None
    assert (by_prompt.total, by_seed.total) == (1.5, 0.5)
    assert "prompt_safety" in config.needs()
    assert "prompt_safety" not in RewardConfig().needs()


@pytest.mark.parametrize("missing", ["response_safety", "refusal", "helpful", "intent_preserved"])
def test_no_verdict_no_reward(missing: str) -> None:
    fields = {
        "response_safety": Safety.SAFE,
        "refusal": Answer.NO,
        "helpful": Answer.YES,
        "intent_preserved": Answer.YES,
    }
    unknown = {"response_safety": Safety.UNKNOWN}.get(missing, Answer.UNKNOWN)
    for value in (unknown, None):
        found = Verdict("v", **fields | {missing: value})  # type: ignore[arg-type]
        assert attacker_reward(ROBUST, BENIGN, found, True) is None
        assert (defender_reward(ROBUST, BENIGN, found) is None) == (missing != "intent_preserved")
    assert missing in ROBUST.needs()


def test_impossible_reward_settings_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"rewards.harm=-1.0 must be ≥ 0"):
        RewardConfig(harm=-1.0)
    with pytest.raises(ValueError, match=r"rewards.refusal_label='x' must be one of: seed, prompt"):
        RewardConfig(refusal_label="x")


@pytest.mark.parametrize(("freq", "defender", "attacker", "start"), [(15, 1, 1, "defender"), (3, 2, 1, "attacker")])
def test_every_phase_lasts_exactly_its_steps(freq: int, defender: int, attacker: int, start: str) -> None:
    config = ScheduleConfig(freq, defender, attacker, start)
    state, learners = Schedule.begin(config), []
    for step in range(4 * freq * (defender + attacker)):
        assert state.step == step
        learners.append(state.learner)
        state = state.advance(config)
    expected = []
    role = Role(start)
    while len(expected) < len(learners):
        expected += [role] * freq * (defender if role is Role.DEFENDER else attacker)
        role = role.opponent
    assert learners == expected


def test_a_phase_ends_on_its_last_step_and_only_there() -> None:
    config, state = ScheduleConfig(freq=3), Schedule.begin(ScheduleConfig(freq=3))
    ends = []
    for _ in range(7):
        ends.append(state.ends_phase(config))
        state = state.advance(config)
    assert ends == [False, False, True, False, False, True, False]
    assert (state.phase, state.step_in_phase) == (2, 1)


@pytest.mark.parametrize("options", [{"freq": 0}, {"ratio_attacker": 0}, {"start": "judge"}])
def test_impossible_schedules_are_refused_by_name(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"game.schedule.{next(iter(options))}="):
        ScheduleConfig(**options)  # type: ignore[arg-type]
