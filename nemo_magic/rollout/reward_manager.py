"""Between the loop and the judge: one rank of each model-parallel group asks, all its ranks learn the same answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from nemo_magic.actors.distributed import World
from nemo_magic.game.diversity import with_diversity
from nemo_magic.game.episode import Episode, Role, Verdict
from nemo_magic.game.metrics import Scored
from nemo_magic.game.rewards import Reward, RewardConfig, attacker_reward, defender_reward
from nemo_magic.judge.audit import AuditCounts, Auditor
from nemo_magic.judge.client import JudgeClient, refuse_incapable, refuse_unknown
from nemo_magic.judge.config import JudgeConfig
from nemo_magic.judge.errors import JudgeError
from nemo_magic.judge.protocol import JudgeItem, to_request

_COUNTED = ("items", "duplicates", "unknown", "requests", "retries", "hedges", "protocol_errors")


class JudgeFailed(JudgeError):
    """The judge of some data-parallel rank could not be had; raised on every rank alike."""


@dataclass(frozen=True)
class PendingRewards:
    """Episodes under judgement. ``future`` exists on the speaking rank only, as do ``audited``: the items of which a
    second judge may be shown some."""

    episodes: Sequence[Episode]
    future: Future[list[Verdict]] | None
    audited: Sequence[JudgeItem] = ()


class RewardManager:
    """Asks for the verdicts that the rewards need, and for ``observe`` more fields for the record."""

    def __init__(self, world: World, judge: JudgeConfig, rewards: RewardConfig, observe: Sequence[str]) -> None:
        self._world = world
        self._judge = judge
        self._rewards = rewards
        self._fields = sorted(rewards.needs() | set(observe))
        self._client = JudgeClient(judge) if world.is_source else None
        self._auditor = Auditor(judge) if world.is_source and judge.audit_fraction else None
        self._told: Mapping[str, float] = {}
        self.guard = ""
        """Who judges, by its own name and revision; known once it was waited for."""

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until a judge answers; an error on one rank is an error on all.

        A judge that can never tell one of the fields which the run asks for is such an error.
        """
        error = None
        if self._client is not None:
            try:
                info = self._client.wait_ready(timeout_s)
                refuse_incapable(info, self._fields)
                self.guard = info.guard
            except Exception as caught:
                error = f"{type(caught).__name__}: {caught}"
        self._raise_together(error)
        self.guard = self._world.broadcast_model_parallel(self.guard)

    def submit(self, episodes: Sequence[Episode], audit: bool = False) -> PendingRewards:
        """Send episodes to the judge and return at once. ``audit``: some may be shown to the second judge later."""
        if self._client is None:
            return PendingRewards(episodes, None)
        items = [to_request(episode, self._fields) for episode in episodes]
        return PendingRewards(episodes, self._client.score(items), items if audit else ())

    def collect(self, pending: PendingRewards) -> list[Scored]:
        """Wait for the verdicts and pay rewards; a sample whose verdict leaves a needed field open is paid nothing.

        Raises:
            JudgeFailed: on every rank, when any rank's judge gave up or too many verdicts are unknown.
        """
        verdicts: list[Verdict] = []
        error = None
        if pending.future is not None:
            try:
                verdicts = pending.future.result()
                if self._auditor is not None and pending.audited:
                    self._auditor.compare(pending.audited, verdicts)
            except Exception as caught:
                # Value and error travel the same way: a rank that raised alone would leave its peers in a broadcast.
                error = f"{type(caught).__name__}: {caught}"
        verdicts, error = self._world.broadcast_model_parallel((verdicts, error))
        self._raise_together(error)
        scored = [self._pay(e, v) for e, v in zip(pending.episodes, verdicts, strict=True)]
        if self._rewards.diversity > 0:
            scored = with_diversity(scored, self._rewards.diversity)
        unknown, total = self._world.sum_data_parallel(sum(s.rewards is None for s in scored), len(scored))
        refuse_unknown(self._judge, int(unknown), int(total))
        return scored

    def figures(self) -> dict[str, float]:
        """The metrics ``judge/*`` since the last call and ``judge_audit/*``, over all ranks and equal on each."""
        told = self._client.stats() if self._client is not None else {}
        since = {name: value - self._told.get(name, 0.0) for name, value in told.items()}
        # A mean goes with its count, and comes back as one at the end.
        since["latency_sum_s"] = _latency_sum(told) - _latency_sum(self._told)
        self._told = told
        audited = self._auditor.counts() if self._auditor is not None else None
        ranks = self._world.gather_data_parallel(self._world.broadcast_model_parallel((since, audited)))
        found = {name: sum(since[name] for since, _ in ranks) for name in _COUNTED}
        found["outage_s"] = max(since["outage_s"] for since, _ in ranks)
        if answers := sum(since["answers"] for since, _ in ranks):
            found["latency_mean_s"] = sum(since["latency_sum_s"] for since, _ in ranks) / answers
        audits = [counts for _, counts in ranks if counts is not None]
        return {f"judge/{name}": value for name, value in found.items()} | (
            AuditCounts.merged(audits).figures() if audits else {}
        )

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        if self._auditor is not None:
            self._auditor.close()

    def _pay(self, episode: Episode, verdict: Verdict) -> Scored:
        defender = defender_reward(self._rewards, episode.seed, verdict, episode.answer_format_ok)
        attacker = attacker_reward(self._rewards, episode.seed, verdict, episode.format_ok)
        paid: dict[Role, Reward | None] = {Role.DEFENDER: defender, Role.ATTACKER: attacker}
        rewards = {role: reward.parts for role, reward in paid.items() if reward is not None}
        return Scored(episode, verdict, rewards or None)

    def _raise_together(self, error: str | None) -> None:
        errors = [e for e in self._world.gather_data_parallel(self._world.broadcast_model_parallel(error)) if e]
        if errors:
            raise JudgeFailed(errors[0])


def _latency_sum(told: Mapping[str, float]) -> float:
    return told.get("latency_mean_s", 0.0) * told.get("answers", 0.0)
