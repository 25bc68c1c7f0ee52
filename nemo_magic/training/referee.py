"""Between the loop and the judge: one rank of each model-parallel group asks, all its ranks learn the same answer."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from nemo_magic.actors.world import World
from nemo_magic.game.diversity import with_diversity
from nemo_magic.game.episode import Episode, Role, Verdict
from nemo_magic.game.metrics import Scored
from nemo_magic.game.rewards import Reward, RewardConfig, attacker_reward, defender_reward
from nemo_magic.judge.client import JudgeClient, refuse_unknown
from nemo_magic.judge.config import JudgeConfig
from nemo_magic.judge.errors import JudgeError
from nemo_magic.judge.protocol import to_request


class JudgeFailed(JudgeError):
    """The judge of some data-parallel rank could not be had; raised on every rank alike."""


@dataclass(frozen=True)
class Pending:
    """Episodes under judgement. ``future`` exists on the speaking rank only."""

    episodes: Sequence[Episode]
    future: Future[list[Verdict]] | None


class Referee:
    """Asks for the verdicts that the rewards need, and for ``observe`` more fields for the record."""

    def __init__(self, world: World, judge: JudgeConfig, rewards: RewardConfig, observe: Sequence[str]) -> None:
        self._world = world
        self._judge = judge
        self._rewards = rewards
        self._fields = sorted(rewards.needs() | set(observe))
        self._client = JudgeClient(judge) if world.speaks else None

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until a judge answers; an error on one rank is an error on all."""
        error = None
        if self._client is not None:
            try:
                self._client.wait_ready(timeout_s)
            except Exception as caught:
                error = f"{type(caught).__name__}: {caught}"
        self._raise_together(error)

    def submit(self, episodes: Sequence[Episode]) -> Pending:
        """Send episodes to the judge and return at once."""
        future = None
        if self._client is not None:
            future = self._client.score([to_request(episode, self._fields) for episode in episodes])
        return Pending(episodes, future)

    def collect(self, pending: Pending) -> list[Scored]:
        """Wait for the verdicts and pay rewards; a sample whose verdict leaves a needed field open is paid nothing.

        Raises:
            JudgeFailed: on every rank, when any rank's judge gave up or too many verdicts are unknown.
        """
        verdicts: list[Verdict] = []
        error = None
        if pending.future is not None:
            try:
                verdicts = pending.future.result()
            except Exception as caught:
                # Value and error travel the same way: a rank that raised alone would leave its peers in a broadcast.
                error = f"{type(caught).__name__}: {caught}"
        verdicts, error = self._world.share((verdicts, error))
        self._raise_together(error)
        scored = [self._pay(e, v) for e, v in zip(pending.episodes, verdicts, strict=True)]
        if self._rewards.diversity > 0:
            scored = with_diversity(scored, self._rewards.diversity)
        unknown, total = self._world.total(sum(s.rewards is None for s in scored), len(scored))
        refuse_unknown(self._judge, int(unknown), int(total))
        return scored

    def stats(self) -> dict[str, float]:
        """The client's counters, for the log; empty on ranks that do not ask."""
        return self._client.stats() if self._client is not None else {}

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def _pay(self, episode: Episode, verdict: Verdict) -> Scored:
        defender = defender_reward(self._rewards, episode.seed, verdict, episode.answer_format_ok)
        attacker = attacker_reward(self._rewards, episode.seed, verdict, episode.format_ok)
        paid: dict[Role, Reward | None] = {Role.DEFENDER: defender, Role.ATTACKER: attacker}
        rewards = {role: reward.parts for role, reward in paid.items() if reward is not None}
        return Scored(episode, verdict, rewards or None)

    def _raise_together(self, error: str | None) -> None:
        errors = [e for e in self._world.gather(self._world.share(error)) if e]
        if errors:
            raise JudgeFailed(errors[0])
