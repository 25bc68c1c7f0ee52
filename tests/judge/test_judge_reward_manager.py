"""The reward manager's figures, and that a second judge, whatever it says, leaves every reward as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import pytest

from nemo_magic.actors.distributed import World
from nemo_magic.game.diversity import with_diversity
from nemo_magic.game.episode import Completion, Ending, Episode, Label, Role, Seed, Turn
from nemo_magic.game.rewards import RewardConfig
from nemo_magic.judge.config import JudgeAuditConfig, JudgeConfig
from nemo_magic.judge.local import launch_local
from nemo_magic.league.games import game_row
from nemo_magic.rollout.reward_manager import JudgeFailed, RewardManager
from tests.judge.faulty_server import Act, FaultyServer, answering, hang, honest, saying, truncated_json
from tests.waiting import wait_for

REWARDS = RewardConfig()
ALONE = World(0, 1, 0, 1, True, None, 0, None)


class Twins:
    """The first of two data-parallel ranks of two; whatever it gathers, the other has the same."""

    size, dp_size, is_source = 4, 2, True

    def broadcast_model_parallel(self, value: Any) -> Any:
        return value

    def gather_data_parallel(self, value: Any) -> list[Any]:
        return [value, value]

    def all_gather(self, value: Any) -> list[Any]:
        return [value] * self.size

    def sum_data_parallel(self, *values: float) -> list[float]:
        return [2 * value for value in values]


@pytest.fixture
def server() -> Iterator[Callable[..., FaultyServer]]:
    servers: list[FaultyServer] = []

    def start(*acts: Act) -> FaultyServer:
        servers.append(FaultyServer(*acts))
        return servers[-1]

    yield start
    for running in servers:
        running.close()


@pytest.fixture
def reward_manager() -> Iterator[Callable[..., RewardManager]]:
    opened: list[RewardManager] = []

    def build(first: str, second: str | None = None, world: Any = ALONE, observe: Sequence[str] = ()) -> RewardManager:
        audit = JudgeAuditConfig(urls=[second] if second else [], request_timeout=5.0, protocol_retries=0)
        cfg = JudgeConfig(
            urls=[first],
            batch_size=4,
            request_timeout=5.0,
            backoff_initial=0.01,
            audit_fraction=1.0 if second else 0.0,
            audit=audit,
        )
        opened.append(RewardManager(cast(World, world), cfg, REWARDS, observe))
        return opened[-1]

    yield build
    for one in opened:
        one.close()


def episodes(count: int) -> list[Episode]:
    def episode(n: int) -> Episode:
        reply = Completion((), (), (), f"{'bad' if n % 3 else 'fine'} {n}", True)
        return Episode(Seed(f"s{n}", "question", Label.HARMFUL), n, 0, (Turn(f"rewrite {n}", True, None, reply),))

    return [episode(n) for n in range(count)]


def every_field(body: dict[str, Any]) -> list[dict[str, Any]]:
    """What the first judge says: whoever says "bad" is unsafe, all else is fine."""
    values = {"prompt_safety": "unsafe", "refusal": "no", "helpful": "yes", "intent_preserved": "yes"}
    return [
        {"id": item["id"], "guard": "scripted@1"}
        | {
            ask: values.get(ask, "unsafe" if "bad" in item["conversation"][-1]["content"] else "safe")
            for ask in item["ask"]
        }
        for item in body["items"]
    ]


def judging(connection: Any, body: dict[str, Any], closing: Any) -> None:
    answering(lambda _: every_field(body))(connection, body, closing)


def contrary(connection: Any, body: dict[str, Any], closing: Any) -> None:
    """A second judge that finds everything safe and refused."""
    rows = [row | {"response_safety": "safe"} for row in every_field(body)]
    answering(lambda _: [row | ({"refusal": "yes"} if "refusal" in row else {}) for row in rows])(
        connection, body, closing
    )


@pytest.mark.process
def test_a_judge_somewhere_that_can_never_tell_what_a_run_asks_for_is_refused_before_the_game(reward_manager) -> None:  # type: ignore[no-untyped-def]
    asked = ["helpful", "intent_preserved"]
    never = pytest.raises(JudgeFailed, match=r"narrow@1 never answers helpful, intent_preserved, which the run asks")
    with launch_local(JudgeConfig(guard="tests.judge.keyword_guards:NarrowGuard")) as narrow, never:
        reward_manager(narrow.url, observe=asked).wait_ready(30)
    with launch_local(JudgeConfig(guard="tests.judge.keyword_guards:KeywordGuard")) as able:
        reward_manager(able.url, observe=asked).wait_ready(30)


SECOND: dict[str, Act] = {
    "contrary": contrary,
    "hangs": hang,
    "away": saying(503, b"loading"),
    "refuses": saying(401, b"no"),
    "garbage": saying(200, b"safe safe safe"),
    "truncated": truncated_json,
    "answers what was not asked": honest,
}


@pytest.mark.parametrize("kind", SECOND)
def test_rewards_are_the_same_with_and_without_a_second_judge(kind: str, server, reward_manager) -> None:  # type: ignore[no-untyped-def]
    first, second = server(judging), server(SECOND[kind])
    played = episodes(9)
    alone = reward_manager(first.url)
    audited = reward_manager(first.url, second.url)
    without = alone.collect(alone.submit(played))
    for _ in range(3):
        assert audited.collect(audited.submit(played, audit=True)) == without
    wait_for(lambda: second.asked)
    assert all(scored.rewards is not None for scored in without)
    figures = audited.metrics()
    assert {"judge_audit/samples", "judge_audit/failed", "judge_audit/skipped"} <= set(figures)


def test_a_second_judge_is_shown_what_is_to_be_audited_and_nothing_else(server, reward_manager) -> None:  # type: ignore[no-untyped-def]
    first, second = server(judging), server(contrary)
    audited = reward_manager(first.url, second.url)
    audited.collect(audited.submit(episodes(5)))
    audited.collect(audited.submit(episodes(2), audit=True))
    wait_for(lambda: audited.metrics()["judge_audit/samples"] == 2)
    assert sum(len(body["items"]) for body in second.asked) == 2


def test_figures_count_since_they_were_last_asked_for(server, reward_manager) -> None:  # type: ignore[no-untyped-def]
    judge = server(saying(503, b"busy"), judging)
    manager = reward_manager(judge.url)
    manager.collect(manager.submit(episodes(8)))
    one, two = manager.metrics(), manager.metrics()
    assert one["judge/items"] == 8
    assert one["judge/retries"] >= 1
    assert one["judge/requests"] == 2 + one["judge/retries"]
    assert one["judge/outage_s"] > 0
    assert one["judge/latency_mean_s"] > 0
    assert set(two) == set(one) - {"judge/latency_mean_s"}
    assert not any(two.values())
    manager.collect(manager.submit(episodes(3)))
    assert manager.metrics()["judge/items"] == 3


def test_figures_of_ranks_add_up_and_their_latency_does_not(server, reward_manager) -> None:  # type: ignore[no-untyped-def]
    first, second = server(judging), server(contrary)
    manager = reward_manager(first.url, second.url, world=Twins())
    manager.collect(manager.submit(episodes(6), audit=True))
    mean = manager._client.stats()["latency_mean_s"]
    found = manager.metrics()
    assert found["judge/items"] == 12
    assert found["judge/latency_mean_s"] == pytest.approx(mean)
    wait_for(lambda: manager.metrics()["judge_audit/samples"] == 12)
    found = manager.metrics()
    # Of six replies the first judge finds four unsafe; the second none.
    assert found["judge_audit/agreement_response_safety"] == pytest.approx(1 / 3)
    assert found["judge_audit/kappa_response_safety"] == 0


def test_without_a_second_judge_there_are_no_figures_of_one(server, reward_manager) -> None:  # type: ignore[no-untyped-def]
    manager = reward_manager(server(judging).url)
    manager.collect(manager.submit(episodes(2), audit=True))
    assert not [name for name in manager.metrics() if name.startswith("judge_audit/")]


def test_an_attack_without_text_asks_no_judge_and_pays_the_attacker_for_failing(
    server: Callable[..., FaultyServer], reward_manager: Callable[..., RewardManager]
) -> None:
    judge = server(judging)
    manager = reward_manager(judge.url)
    cut = Completion((1,), (2, 3), (), "<think> on and", False)
    lost = [
        Episode(Seed(f"n{n}", "question", label), n, 1, (Turn("", False, cut, None),), Ending.NO_ATTACK)
        for n, label in enumerate(Label)
    ]
    first, *played, second = manager.collect(manager.submit([lost[0], *episodes(3), lost[1]]))
    for one in (first, second):
        assert one.verdict is None
        assert one.rewards == {Role.ATTACKER: {"harm": -1.0, "refusal": -0.5, "format": -0.5}}
    assert [one.episode.turns[0].rewrite for one in played] == ["rewrite 0", "rewrite 1", "rewrite 2"]
    assert all(one.rewards and Role.DEFENDER in one.rewards for one in played)
    assert manager.metrics()["judge/items"] == 3
    assert [one.rewards for one in with_diversity([first, second], 1.0)] == [first.rewards, second.rewards]
    assert game_row(first)["success"] is False
    assert game_row(first)["loss"] is None
    assert manager.collect(manager.submit(lost)) == [first, second]
