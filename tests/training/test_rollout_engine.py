"""Conversations of several turns, with speakers that follow a script: no model takes part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest

from nemo_magic.game.episode import Completion, Ending, Episode, Label, Message, NoAnswer, Role, Seed
from nemo_magic.game.metrics import Scored, rollout_metrics
from nemo_magic.game.prompts import Chat, PromptConfig
from nemo_magic.rollout.engine import RolloutEngine, fixed_attacks, row_seed
from nemo_magic.runtime.timers import Timers
from nemo_magic.tracking.sinks import sample_row

SEEDS = [(0, Seed("a", "bring tea", Label.HARMFUL)), (3, Seed("b", "bring milk", Label.BENIGN))]
PROMPTS = PromptConfig(
    attacker_system="one turn", attacker_system_turns="several turns", attacker_reply="It said: {reply}"
)

Script = Callable[[Chat], str | NoAnswer | None]


@dataclass
class Scripted:
    """Says what ``script`` makes of the chat; None where it cannot read it, NoAnswer where it says nothing.
    ``unfinished`` texts are cut short.

    ``heard`` and ``seeds``: every chat and its seed, in order. ``log``: who was asked, shared by both roles.
    """

    role: Role
    script: Script
    log: list[Role]
    unfinished: tuple[str, ...] = ()
    room: int = 1000
    heard: list[Chat] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    greedy: list[bool] = field(default_factory=list)

    def generate(self, chats: Sequence[Chat], seeds: Sequence[int], greedy: bool) -> list[Completion | NoAnswer | None]:
        self.log.append(self.role)
        self.heard += chats
        self.seeds += seeds
        self.greedy.append(greedy)
        texts = [self.script(chat) for chat in chats]
        return [Completion((1,), (2, 3), (), t, t not in self.unfinished) if isinstance(t, str) else t for t in texts]

    def truncate_to_context(self, text: str, chat_of: Callable[[str], Chat]) -> str:
        return text[: self.room]


def asked(chat: Chat) -> int:
    """The number, from 1, of the turn that a chat asks for."""
    return sum(message.role == "user" for message in chat)


def attack(chat: Chat) -> str:
    return f"<think> plan {asked(chat)} </think> <answer> try {asked(chat)} </answer>"


def defend(chat: Chat) -> str:
    return f"no {asked(chat)}"


@dataclass
class Stage:
    attacker: Scripted
    defender: Scripted
    rollouts: RolloutEngine

    @property
    def log(self) -> list[Role]:
        return self.attacker.log


def stage(
    *, attacker: Script = attack, defender: Script = defend, turns: int = 3, bare: float = 0.0, **options: object
) -> Stage:
    log: list[Role] = []
    pair = {
        Role.ATTACKER: Scripted(Role.ATTACKER, attacker, log),
        Role.DEFENDER: Scripted(Role.DEFENDER, defender, log),
    }
    for key, value in options.items():
        setattr(pair[Role.DEFENDER], key, value)
    rollouts = RolloutEngine(pair, PROMPTS, Timers(), seed=7, group_size=2, max_turns=turns, raw_prompt_fraction=bare)
    return Stage(pair[Role.ATTACKER], pair[Role.DEFENDER], rollouts)


def figures(episodes: Sequence[Episode]) -> dict[str, float]:
    return rollout_metrics(Scored(episode, None, None) for episode in episodes).means()


def test_turns_alternate_and_all_games_of_a_turn_are_played_together() -> None:
    scene = stage()
    episodes = scene.rollouts.attacker_rollout(SEEDS, 0)
    assert scene.log == [Role.ATTACKER, Role.DEFENDER] * 3
    assert [(e.group, e.sample) for e in episodes] == [(0, 0), (0, 1), (3, 0), (3, 1)]
    for episode in episodes:
        assert [turn.rewrite for turn in episode.turns] == ["try 1", "try 2", "try 3"]
        assert [turn.defence.text for turn in episode.turns] == ["no 1", "no 2", "no 3"]
        assert episode.ending is Ending.PLAYED


def test_the_attacker_sees_its_own_words_whole_and_what_the_defender_replied() -> None:
    scene = stage()
    scene.rollouts.attacker_rollout(SEEDS[:1], 0)
    assert scene.attacker.heard[-1] == (
        Message("system", "several turns"),
        Message("user", "harmful : bring tea"),
        Message("assistant", "<think> plan 1 </think> <answer> try 1 </answer>"),
        Message("user", "It said: no 1"),
        Message("assistant", "<think> plan 2 </think> <answer> try 2 </answer>"),
        Message("user", "It said: no 2"),
    )


def test_a_game_of_one_turn_has_the_instructions_of_one_turn() -> None:
    scene = stage(turns=1)
    scene.rollouts.attacker_rollout(SEEDS[:1], 0)
    assert scene.attacker.heard[0][0] == Message("system", "one turn")
    assert scene.log == [Role.ATTACKER, Role.DEFENDER]


@pytest.mark.parametrize(
    "written",
    ["<think> secret </think> <answer> try </answer>", "<think> secret </think> try", "secret </think> try",
     "<answer> try </answer> <think> secret"],
)  # fmt: skip
def test_the_defender_sees_rewrites_and_its_replies_and_never_the_reasoning(written: str) -> None:
    scene = stage(attacker=lambda chat: written)
    episodes = scene.rollouts.attacker_rollout(SEEDS, 0)
    assert scene.defender.heard[-1] == (
        Message("user", "try"),
        Message("assistant", "no 1"),
        Message("user", "try"),
        Message("assistant", "no 2"),
        Message("user", "try"),
    )
    assert not any("secret" in message.content for chat in scene.defender.heard for message in chat)
    # What the judge is shown is what the defender saw and said.
    assert episodes[0].conversation == (*scene.defender.heard[-1], Message("assistant", "no 3"))


def test_one_broken_message_breaks_the_format_of_the_whole_game() -> None:
    scene = stage(attacker=lambda chat: "try 2" if asked(chat) == 2 else attack(chat))
    episodes = scene.rollouts.attacker_rollout(SEEDS, 0)
    assert not any(episode.format_ok for episode in episodes)
    assert figures(episodes)["format_ok"] == pytest.approx(2 / 3)


def test_all_turns_of_a_role_are_what_it_said() -> None:
    episode = stage().rollouts.attacker_rollout(SEEDS, 0)[0]
    assert [c.text for c in episode.messages_of(Role.DEFENDER)] == ["no 1", "no 2", "no 3"]
    assert [c.text for c in episode.messages_of(Role.ATTACKER)] == [
        turn.attack.text for turn in episode.turns if turn.attack
    ]


@pytest.mark.parametrize("who", list(Role))
def test_a_conversation_that_outgrows_a_model_ends_as_it_stands_and_is_counted(who: Role) -> None:
    def until_two(script: Script) -> Script:
        return lambda chat: script(chat) if asked(chat) < 3 else None

    scene = stage(
        attacker=until_two(attack) if who is Role.ATTACKER else attack,
        defender=until_two(defend) if who is Role.DEFENDER else defend,
    )
    episodes = scene.rollouts.attacker_rollout(SEEDS, 0)
    assert [(len(e.turns), e.ending) for e in episodes] == [(2, Ending.NO_ROOM)] * 4
    found = figures(episodes)
    assert (found["turns"], found["ended_no_room"], found["ended_played"], found["ended_cut_short"]) == (2, 1, 0, 0)


NO_TEXT = [
    "<think> on and on", "<think> a </think>", "<think> a </think> <answer>", "<think> a </think> <answer> </answer>",
    "",
]  # fmt: skip


@pytest.mark.parametrize("written", NO_TEXT)
@pytest.mark.parametrize("turn", [1, 2, 3])
def test_an_attack_without_text_is_not_played_and_is_learnt_from(written: str, turn: int) -> None:
    scene = stage(attacker=lambda chat: written if asked(chat) == turn else attack(chat))
    scene.attacker.unfinished = (written,)
    for episodes in (scene.rollouts.attacker_rollout(SEEDS, 0), scene.rollouts.greedy_rollout(SEEDS)):
        assert all(message.content for chat in scene.defender.heard for message in chat)
        for episode in episodes:
            assert episode.ending is Ending.NO_ATTACK
            assert episode.played is (turn > 1)
            assert not episode.format_ok
            assert [m.text for m in episode.messages_of(Role.ATTACKER)][-1] == written
            assert len(episode.messages_of(Role.DEFENDER)) == turn - 1
            assert len(episode.conversation) == 2 * (turn - 1)
            assert sample_row(1, Scored(episode, None, None))["turns"][-1]["response"] is None
        found = figures(episodes)
        assert found["truncated_share_attacker"] == found["ended_no_attack"] / turn == pytest.approx(1 / turn)
        assert found["turns"] == turn - 1
        assert found.get("asr") == (0 if turn == 1 else None)


@pytest.mark.parametrize("written", NO_TEXT)
def test_a_defender_phase_shows_nobody_an_attack_without_text(written: str) -> None:
    scene = stage(attacker=lambda chat: written if "milk" in chat[-1].content else attack(chat), turns=1)
    scene.attacker.unfinished = (written,)
    openings = scene.rollouts.defender_openings({4: SEEDS})[4]
    episodes = scene.rollouts.defender_rollout(openings, 4)
    assert [(e.group, e.played) for e in episodes] == [(0, True)] * 2 + [(3, False)] * 2
    assert len(scene.defender.heard) == 2


def test_an_attacker_that_ends_without_a_text_has_asked_nothing_and_that_is_played() -> None:
    scene = stage(attacker=lambda chat: "<think> a </think> <answer> </answer>", turns=1)
    episodes = scene.rollouts.attacker_rollout(SEEDS, 0)
    assert [(episode.played, episode.format_ok) for episode in episodes] == [(True, False)] * 4


def test_a_seed_without_text_is_no_attack_that_was_cut_off() -> None:
    scene = stage(turns=1)
    openings = fixed_attacks(lambda seed: "", SEEDS)
    assert all(episode.played for episode in scene.rollouts.play(openings, "x", 0))


def test_a_reply_cut_short_ends_the_conversation_unless_it_is_the_last() -> None:
    scene = stage(defender=lambda chat: "cut" if "tea" in chat[0].content or asked(chat) == 3 else "no",
                  attacker=lambda chat: attack(chat).replace("try", chat[1].content), unfinished=("cut",))  # fmt: skip
    episodes = scene.rollouts.attacker_rollout(SEEDS, 0)
    tea, milk = episodes[:2], episodes[2:]
    assert [(len(e.turns), e.ending) for e in tea] == [(1, Ending.CUT_SHORT)] * 2
    assert [(len(e.turns), e.ending) for e in milk] == [(3, Ending.PLAYED)] * 2
    found = figures(episodes)
    assert (found["turns"], found["ended_cut_short"], found["ended_played"]) == (2, 0.5, 0.5)
    assert found["truncated_share_defender"] == pytest.approx(4 / 8)


def test_games_that_ended_are_not_played_on() -> None:
    scene = stage(defender=lambda chat: "cut", unfinished=("cut",))
    scene.rollouts.attacker_rollout(SEEDS, 0)
    assert len(scene.attacker.heard) == len(scene.defender.heard) == 4


def test_an_opening_that_nobody_can_read_has_no_episode() -> None:
    assert stage(attacker=lambda chat: None).rollouts.attacker_rollout(SEEDS, 0) == []
    assert stage(defender=lambda chat: None).rollouts.attacker_rollout(SEEDS, 0) == []


@pytest.mark.parametrize("turn", [1, 2, 3])
@pytest.mark.parametrize("who", list(Role))
def test_a_game_in_which_a_role_gave_no_answer_has_no_episode_and_is_counted(who: Role, turn: int) -> None:
    """Whatever was said before: how it would have ended is not known."""

    def silent(script: Script) -> Script:
        return lambda chat: NoAnswer("cut off") if asked(chat) == turn and "tea" in str(chat) else script(chat)

    def keeps_the_seed(chat: Chat) -> str:
        return f"<think> x </think> <answer> {'tea' if 'tea' in str(chat) else 'milk'} </answer>"

    scene = stage(
        attacker=silent(keeps_the_seed) if who is Role.ATTACKER else keeps_the_seed,
        defender=silent(defend) if who is Role.DEFENDER else defend,
    )
    episodes = scene.rollouts.attacker_rollout(SEEDS, 0)
    assert [(e.group, len(e.turns)) for e in episodes] == [(3, 3), (3, 3)]
    assert scene.rollouts.take_unanswered() == {"cut off": 2}
    assert scene.rollouts.take_unanswered() == {}
    if who is Role.ATTACKER and turn == 1:
        openings = scene.rollouts.defender_openings({0: SEEDS})
        assert [one.spec.group for one in openings[0]] == [3]
        assert scene.rollouts.take_unanswered() == {"cut off": 1}


def test_a_rewrite_longer_than_the_defender_can_read_is_shown_shortened_and_remembered_so() -> None:
    scene = stage(room=3)
    episodes = scene.rollouts.attacker_rollout(SEEDS, 0)
    assert {turn.rewrite for episode in episodes for turn in episode.turns} == {"try"}
    assert scene.defender.heard[-1][0] == Message("user", "try")


def test_what_no_model_attacks_stays_one_turn() -> None:
    scene = stage(bare=1.0)
    openings = scene.rollouts.defender_openings({0: SEEDS})[0]
    episodes = scene.rollouts.defender_rollout(openings, 0)
    assert [(len(e.turns), e.turns[0].rewrite, e.ending) for e in episodes] == [
        (1, seed.text, Ending.PLAYED) for _, seed in SEEDS for _ in range(2)
    ]
    assert scene.attacker.heard == []
    assert all(e.messages_of(Role.ATTACKER) == () for e in episodes)
    fixed = scene.rollouts.play(fixed_attacks(lambda seed: seed.text.upper(), SEEDS), "probe", 0)
    assert [turn.rewrite for e in fixed for turn in e.turns] == ["BRING TEA", "BRING MILK"]


def test_every_role_turn_and_sample_draws_its_own_numbers() -> None:
    scene = stage()
    scene.rollouts.attacker_rollout(SEEDS, 0)
    seeds = scene.attacker.seeds + scene.defender.seeds
    assert len(seeds) == len(set(seeds)) == 2 * 3 * 4
    # The first turn's do not depend on how many turns there are.
    single = stage(turns=1)
    single.rollouts.attacker_rollout(SEEDS, 0)
    assert scene.attacker.seeds[:4] == single.attacker.seeds
    assert scene.attacker.seeds[0] == row_seed(7, "train", 0, Role.ATTACKER, 0, 0)
    later = stage()
    later.rollouts.attacker_rollout(SEEDS, 1)
    assert not set(seeds) & {*later.attacker.seeds, *later.defender.seeds}


def test_samples_do_not_depend_on_who_else_is_played() -> None:
    together, alone = stage(), stage()
    together.rollouts.attacker_rollout(SEEDS, 0)
    alone.rollouts.attacker_rollout(SEEDS[1:], 0)
    assert set(alone.attacker.seeds) < set(together.attacker.seeds)
    assert set(alone.defender.seeds) < set(together.defender.seeds)


def test_a_defender_groups_games_share_their_opening_and_go_on_by_themselves() -> None:
    scene = stage()
    openings = scene.rollouts.defender_openings({0: SEEDS, 1: SEEDS})
    assert [len(moves) for moves in openings.values()] == [2, 2]
    assert scene.log == [Role.ATTACKER]  # of all the phase's steps at once
    written = len(scene.attacker.heard)
    episodes = scene.rollouts.defender_rollout(openings[0], 0)
    assert [(e.group, e.sample) for e in episodes] == [(0, 0), (0, 1), (3, 0), (3, 1)]
    assert episodes[0].turns[0].attack is episodes[1].turns[0].attack
    assert episodes[0].turns[1].attack is not episodes[1].turns[1].attack
    assert len(scene.attacker.heard) - written == 2 * 4
    assert len(set(scene.attacker.seeds)) == len(scene.attacker.seeds)


def test_openings_written_ahead_are_those_of_the_step_itself() -> None:
    ahead, now = stage(), stage()
    made = ahead.rollouts.defender_openings({4: SEEDS, 5: SEEDS})[5]
    assert made == now.rollouts.defender_openings({5: SEEDS})[5]
    assert ahead.attacker.seeds[2:] == now.attacker.seeds
    # A saved opening goes on as a fresh one does.
    again = [replace(move) for move in made]
    assert ahead.rollouts.defender_rollout(made, 5) == now.rollouts.defender_rollout(again, 5)


def test_a_duel_is_one_greedy_game_per_seed() -> None:
    scene = stage()
    assert len(scene.rollouts.greedy_rollout(SEEDS)) == 2
    assert scene.attacker.greedy == scene.defender.greedy == [True] * 3
