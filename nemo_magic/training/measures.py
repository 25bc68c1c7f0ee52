"""The metrics of a step: the game's, speed and memory, over all ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from nemo_magic.actors.distributed import World
from nemo_magic.actors.generation import Generator
from nemo_magic.actors.tokenizer import ChatTokenizer
from nemo_magic.config.schema import GameConfig
from nemo_magic.game.diversity import attack_distance
from nemo_magic.game.episode import Ending, Role
from nemo_magic.game.metrics import Ratios, Scored, rollout_metrics
from nemo_magic.runtime.errors import TrainingError
from nemo_magic.runtime.timers import Timers

_VALIDATION = ("timers/validate", "memory/validate_gib")


class Measures:
    """Metrics of what this rank and its peers did, equal on each. All methods are for all ranks."""

    def __init__(
        self, world: World, timers: Timers, generator: Generator, tokenizers: Sequence[ChatTokenizer] = ()
    ) -> None:
        self._world, self._timers, self._generator, self._tokenizers = world, timers, generator, tokenizers
        self._neutralised = 0

    def of_rollout(self, learner: Role, scored: Sequence[Scored]) -> dict[str, float]:
        """``train_rollouts/*`` of a step's episodes."""
        metrics = self._game("train_rollouts/", scored)
        if learner is Role.ATTACKER:
            distances = self._world.gather_data_parallel(attack_distance(scored))
            metrics |= Ratios.merged(distances).means("train_rollouts/")
        return metrics

    def of_validation(self, scored: Sequence[Scored], unanswered: Counter[str]) -> dict[str, float]:
        """``val_rollouts/*``, and seconds and peak memory of the validation as a whole: its parts have the names of a
        step's, whose metrics it is added to."""
        drained = self._drain()
        metrics = self._game("val_rollouts/", scored) | {name: drained[name] for name in _VALIDATION if name in drained}
        (count,) = self._world.sum_data_parallel(sum(unanswered.values()))
        return metrics | {"val_rollouts/unanswered": count}

    def of_speed(self, scored: Sequence[Scored]) -> dict[str, float]:
        """Seconds and peak memory by part of this step, and sampled tokens per second over all ranks."""
        timings = self._drain()
        messages = [message for s in scored for role in Role for message in s.episode.messages_of(role)]
        # A group that shares an attack shares one object: count it once.
        sampled = sum(len(message.response_ids) for message in {id(m): m for m in messages}.values())
        (tokens,) = self._world.sum_data_parallel(sampled)
        return timings | {"throughput/tokens_per_second": tokens / timings["timers/step"]} | self._of_messages()

    def _of_messages(self) -> dict[str, float]:
        """``generation/neutralised_tokens`` since the last call, over all ranks; nothing where there was none."""
        before, self._neutralised = self._neutralised, sum(chat.neutralised for chat in self._tokenizers)
        (count,) = self._world.sum_data_parallel(self._neutralised - before)
        return {"generation/neutralised_tokens": count} if count else {}

    def of_unplayed(self, played: int, unanswered: Counter[str], game: GameConfig) -> dict[str, float]:
        """The share of this step's episodes that could not be played, over all ranks, and how many messages a role's
        server gave no answer to, which are ``unanswered`` by reason here.

        Raises:
            TrainingError: the share is above ``game.max_unplayed_share``.
        """
        total, count = self._world.sum_data_parallel(played, sum(unanswered.values()))
        share = 1 - total / (game.batch_size * game.group_size)
        if share > game.max_unplayed_share:
            reasons: Counter[str] = sum(self._world.gather_data_parallel(unanswered), Counter())
            why = [f"a role's server gave no answer to {n} messages ({reason})" for reason, n in reasons.most_common(3)]
            too_long = (
                "their first message is longer than a role's model can read, "
                "see length_params and model.encoder_seq_length"
            )
            raise TrainingError(
                f"{share:.0%} of the games could not be played (game.max_unplayed_share="
                f"{game.max_unplayed_share:g}): {'; '.join(why) or too_long}"
            )
        return {"train_rollouts/unplayed_share": share, "train_rollouts/unanswered": count}

    def of_refill(self, unplayed: dict[str, float], unanswered: Counter[str]) -> dict[str, float]:
        """The step's unanswered messages with those of its refills."""
        name = "train_rollouts/unanswered"
        (count,) = self._world.sum_data_parallel(sum(unanswered.values()))
        return {name: unplayed[name] + count}

    def _game(self, prefix: str, scored: Sequence[Scored]) -> dict[str, float]:
        means = Ratios.merged(self._world.gather_data_parallel(rollout_metrics(scored))).means(prefix)
        rare = f"{prefix}ended_{Ending.NO_ATTACK}"
        return {name: value for name, value in means.items() if value or name != rare}

    def _drain(self) -> dict[str, float]:
        """Seconds, peak memory and the generator's metrics since the last call, of the rank that has most."""
        ranks = self._world.all_gather(self._timers.drain() | self._generator.drain())
        return {name: max(rank[name] for rank in ranks) for name in ranks[0]}
