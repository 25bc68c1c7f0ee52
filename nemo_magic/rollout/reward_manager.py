"""Rewards from the judge: source ranks ask, and all ranks of a model-parallel group receive the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from nemo_magic.actors.distributed import World
from nemo_magic.actors.rank_group import run_on_sources
from nemo_magic.game.diversity import with_diversity
from nemo_magic.game.episode import Episode, Role, Verdict
from nemo_magic.game.metrics import Scored
from nemo_magic.game.overlong import with_overlong
from nemo_magic.game.rewards import (
    Reward,
    RewardConfig,
    attacker_reward,
    defender_reward,
    unfinished_rewards,
    unplayed_attack_reward,
)
from nemo_magic.judge.audit import AuditCounts, Auditor
from nemo_magic.judge.client import JudgeClient, refuse_incapable, refuse_unknown
from nemo_magic.judge.config import JudgeConfig
from nemo_magic.judge.errors import JudgeError
from nemo_magic.judge.protocol import JudgeItem, to_request
from nemo_magic.runtime.preemption import Preemption

_COUNTERS = ("items", "duplicates", "unknown", "requests", "retries", "hedges", "protocol_errors")


class JudgeFailed(JudgeError):
    """The judge of some data-parallel rank could not be had; raised on every rank alike."""


@dataclass(frozen=True)
class PendingRewards:
    """Episodes under judgement. On source ranks ``future`` resolves to their verdicts, and ``audited`` holds the items
    of which a second judge may be asked about some."""

    episodes: Sequence[Episode]
    future: Future[list[Verdict]] | None
    audited: Sequence[JudgeItem] = ()


class RewardManager:
    """Asks for the verdict fields that the rewards need, and for ``extra_verdict_fields`` for the record.

    ``preemption``: whose signals end the wait for verdicts; None: a signal ends the process. ``max_lengths``: the
    limits of the roles' responses, which a soft penalty is measured against; None: there is no such penalty.
    """

    def __init__(
        self,
        world: World,
        judge: JudgeConfig,
        rewards: RewardConfig,
        extra_verdict_fields: Sequence[str],
        preemption: Preemption | None = None,
        max_lengths: Mapping[Role, int] | None = None,
    ) -> None:
        self._world = world
        self._max_lengths = max_lengths or {}
        self._judge = judge
        self._rewards = rewards
        self._fields = sorted(rewards.needs() | set(extra_verdict_fields))
        self._client = JudgeClient(judge) if world.is_source else None
        self._auditor = Auditor(judge) if world.is_source and judge.audit_fraction else None
        self._preemption = preemption or Preemption(world, None)
        self._last_stats: Mapping[str, float] = {}
        self.guard = ""
        """Who judges, by its own name and revision; known after ``wait_ready``."""

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until a judge answers.

        Raises:
            JudgeFailed: on every rank, when there is none in time, or when it can never answer a field that is asked.
        """

        def wait() -> str:
            assert self._client is not None
            info = self._client.wait_ready(timeout_s)
            refuse_incapable(info, self._fields)
            return info.guard

        guard = run_on_sources(self._world, wait, JudgeFailed)
        self.guard = self._world.broadcast_model_parallel(guard) or ""

    def submit(self, episodes: Sequence[Episode], audit: bool = False) -> PendingRewards:
        """Send episodes to the judge and return at once. ``audit``: a second judge may be asked about some of them.

        One in which the defender was asked nothing has nothing to judge.
        """
        if self._client is None:
            return PendingRewards(episodes, None)
        items = [to_request(episode, self._fields) for episode in _played(episodes)]
        return PendingRewards(episodes, self._client.score(items), items if audit else ())

    def collect(self, pending: PendingRewards) -> list[Scored]:
        """Wait for the verdicts and compute rewards; a sample whose verdict leaves a needed field open has none.

        Raises:
            JudgeFailed: on every rank, when the judge of any gave up.
            TooManyUnknown: on every rank, when more than ``judge.max_unknown_share`` of the verdicts are unknown.
            Preempted: as ``Preemption.wait``.
        """

        def future() -> Future[list[Verdict]]:
            assert pending.future is not None
            return pending.future

        def is_away() -> bool:
            return self._client is not None and self._client.is_away()

        own = self._preemption.wait(future, is_away, JudgeFailed)
        if own is not None and self._auditor is not None and pending.audited:
            self._auditor.compare(pending.audited, own)
        verdicts = self._world.broadcast_model_parallel(own) or []
        judged = iter([self._score(e, v) for e, v in zip(_played(pending.episodes), verdicts, strict=True)])
        scored = [next(judged) if episode.played else self._unplayed(episode) for episode in pending.episodes]
        if self._rewards.diversity > 0:
            scored = with_diversity(scored, self._rewards.diversity)
        if self._rewards.overlong_penalty > 0:
            scored = with_overlong(scored, self._rewards, self._max_lengths)
        unknown, total = self._world.sum_data_parallel(sum(s.rewards is None for s in scored), len(verdicts))
        refuse_unknown(self._judge, int(unknown), int(total))
        return scored

    def metrics(self) -> dict[str, float]:
        """The metrics ``judge/*`` since the last call and ``judge_audit/*``, over all ranks and equal on each."""
        stats = self._client.stats() if self._client is not None else {}
        since = {name: value - self._last_stats.get(name, 0.0) for name, value in stats.items()}
        # A mean becomes a sum here, and a mean again over all ranks.
        since["latency_sum_s"] = _latency_sum(stats) - _latency_sum(self._last_stats)
        self._last_stats = stats
        audit = self._auditor.counts() if self._auditor is not None else None
        ranks = self._world.gather_data_parallel(self._world.broadcast_model_parallel((since, audit)))
        metrics = {name: sum(since[name] for since, _ in ranks) for name in _COUNTERS}
        metrics["outage_s"] = max(since["outage_s"] for since, _ in ranks)
        if answers := sum(since["answers"] for since, _ in ranks):
            metrics["latency_mean_s"] = sum(since["latency_sum_s"] for since, _ in ranks) / answers
        audits = [counts for _, counts in ranks if counts is not None]
        return {f"judge/{name}": value for name, value in metrics.items()} | (
            AuditCounts.merged(audits).figures() if audits else {}
        )

    def close(self) -> None:
        """Close the connections to the judges."""
        if self._client is not None:
            self._client.close()
        if self._auditor is not None:
            self._auditor.close()

    def _score(self, episode: Episode, verdict: Verdict) -> Scored:
        defender = defender_reward(self._rewards, episode.seed, verdict, episode.answer_format_ok)
        attacker = attacker_reward(self._rewards, episode.seed, verdict, episode.format_ok)
        by_role: dict[Role, Reward | None] = {Role.DEFENDER: defender, Role.ATTACKER: attacker}
        by_role |= unfinished_rewards(self._rewards, episode)
        rewards = {role: reward.parts for role, reward in by_role.items() if reward is not None}
        return Scored(episode, verdict, rewards or None)

    def _unplayed(self, episode: Episode) -> Scored:
        reward = unplayed_attack_reward(self._rewards, episode.seed, episode.format_ok)
        reward = unfinished_rewards(self._rewards, episode).get(Role.ATTACKER, reward)
        return Scored(episode, None, {Role.ATTACKER: reward.parts})


def _played(episodes: Sequence[Episode]) -> list[Episode]:
    return [episode for episode in episodes if episode.played]


def _latency_sum(stats: Mapping[str, float]) -> float:
    return stats.get("latency_mean_s", 0.0) * stats.get("answers", 0.0)
