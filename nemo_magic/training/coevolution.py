"""The co-evolution loop: Algorithm 1 of the paper, every rank running the same program.

Left to other modules: what an episode is (game), who plays (cast), how it is played (arena), judged (referee), learned
from (learner), kept (checkpoints) and measured at the end (finale).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemo_magic.actors.distributed import DeviceMemory
from nemo_magic.actors.errors import RemoteError
from nemo_magic.actors.snapshots import Snapshot, SnapshotCache, save_snapshot
from nemo_magic.config import MagicConfig
from nemo_magic.data.seeds import SeedSampler, interleaved, load_seeds
from nemo_magic.game.alarms import Alarms
from nemo_magic.game.diversity import attack_distance
from nemo_magic.game.episode import Episode, Role, Seed
from nemo_magic.game.metrics import Ratios, Scored, rollout_metrics
from nemo_magic.game.pool import GIB, Pool
from nemo_magic.game.schedule import Schedule
from nemo_magic.game.stopping import EarlyStop, total_steps
from nemo_magic.judge.errors import JudgeError
from nemo_magic.league.participants import START
from nemo_magic.report.records import StepRecord
from nemo_magic.rollout.attack_prefetch import AttackPrefetcher
from nemo_magic.rollout.engine import build_rollout_engine
from nemo_magic.rollout.reward_manager import RewardManager
from nemo_magic.runtime.checkpoint_manager import CheckpointManager, layout_of
from nemo_magic.runtime.checkpoint_paths import STATE
from nemo_magic.runtime.errors import Preempted, TrainingError
from nemo_magic.runtime.preemption import Preemption
from nemo_magic.runtime.resume import Resume, start_weights
from nemo_magic.runtime.timers import Timers
from nemo_magic.runtime.watchdog import Watchdog, host_of_process
from nemo_magic.tracking.metric_logger import MetricLogger
from nemo_magic.training.final_evaluation import final_evaluation
from nemo_magic.training.opponents import Opponents, clear_out
from nemo_magic.training.policies import PolicyPair, build_policies
from nemo_magic.training.trainer import Trainer

REWRITES = "rewrites.json"


def train(cfg: MagicConfig, resume: Resume) -> None:
    """Play and learn until ``game.max_steps``, then play everyone against everyone and report.

    Raises:
        TrainingError: the run cannot go on, or was asked not to; it has saved and goes on when it is started again.
        JudgeFailed: no judge was there to begin with.
    """
    with build_policies(cfg, start_weights(cfg, resume.checkpoint)) as pair:
        reward_manager = RewardManager(pair.world, cfg.judge, cfg.rewards, cfg.game.extra_verdict_fields)
        try:
            reward_manager.wait_ready(cfg.judge.give_up_after)
            _Coevolution(cfg, pair, reward_manager).run(resume)
        finally:
            reward_manager.close()


class _Coevolution:
    def __init__(self, cfg: MagicConfig, pair: PolicyPair, reward_manager: RewardManager) -> None:
        self.cfg = cfg
        self.pair = pair
        self.world = pair.world
        self.reward_manager = reward_manager
        self.timers = Timers(DeviceMemory())
        self.folder = Path(cfg.exp_manager.explicit_log_dir)
        self.rollouts = build_rollout_engine(cfg, pair.policies, self.timers)
        self.learner = Trainer(self.world, cfg.grpo)
        data = load_seeds(cfg.data)
        self.say(str(data.report))
        self.sampler = SeedSampler(data.train, cfg.game.batch_size, cfg.data.harmful_share, cfg.seed)
        self.snapshots: dict[str, list[Snapshot]] = {name: [] for name in pair.unique}
        snapshot_cache = SnapshotCache(cfg.game.pool.max_host_gib * GIB)
        self.opponents = Opponents(cfg, pair, self.rollouts, self.snapshots, snapshot_cache)
        self.prefetcher = AttackPrefetcher(
            self.world, self.opponents, lambda step: self.share_of(self.sampler.batch(step))
        )
        self.held_out = interleaved(data.validation)[: cfg.game.num_val_samples]
        self.test = data.test or data.validation
        self.total = total_steps(cfg.game.max_steps, cfg.game.max_epochs, cfg.game.batch_size, len(data.train))
        self.checkpoints = CheckpointManager(
            self.world, self.folder, cfg.exp_manager.checkpoint_callback_params, self.say
        )
        # What follows is, with snapshots and opponents, the game's state, and is saved as one.
        self.schedule = Schedule.begin(cfg.game.schedule)
        self.early_stop = EarlyStop()
        self.alarms = Alarms()
        self.metrics: Mapping[str, float] = {}

    def run(self, resume: Resume) -> None:
        cfg = self.cfg
        done = self.restore(resume)
        with ExitStack() as to_the_end:
            logger = self.play_on(done, to_the_end)
            final_evaluation(
                cfg, self.pair, self.rollouts, self.reward_manager, self.snapshots, self.test, self.folder, logger
            )

    def play_on(self, done: int | None, to_the_end: ExitStack) -> MetricLogger:
        """All rounds after step ``done``; who observes them is needed afterwards."""
        cfg, exp = self.cfg, self.cfg.exp_manager
        with self.watchdog(), Preemption(self.world, exp.max_seconds) as preemption:
            logger = to_the_end.enter_context(
                MetricLogger(
                    exp,
                    is_main=self.world.is_main,
                    resume_step=done,
                    total_steps=self.total,
                    title=cfg.name,
                    config=asdict(cfg),
                    analysis=cfg.analysis,
                )
            )
            self.checkpoints.say = logger.note
            if done is None:
                self.begin(logger)
            while not self.over():
                self.refuse_alarmed()
                self.checkpoints.poll()
                try:
                    metrics, scored = self.step()
                except (JudgeError, RemoteError, TrainingError) as error:
                    # Nothing of this step counts yet: it is played again when the run goes on.
                    self.save(wait=True)
                    raise TrainingError(
                        f"step {self.schedule.step + 1}: {error}; saved after {self.schedule.step}"
                    ) from error
                try:
                    self.finish_step(metrics, scored, logger)
                except (JudgeError, RemoteError) as error:
                    # The learner has moved on and the game has not: this is no state to go on from.
                    self.checkpoints.finish()
                    raise TrainingError(
                        f"validation after step {self.schedule.step + 1}: {error}; goes on from the last checkpoint"
                    ) from error
                if (reason := preemption.reason()) and not self.over():
                    self.save(wait=True)
                    raise Preempted(f"{reason}: saved after {self.schedule.step} of {self.total} steps")
            self.save(wait=True)
        return logger

    def watchdog(self) -> Watchdog:
        hosts = self.world.all_gather(host_of_process())
        return Watchdog(
            self.folder,
            self.cfg.exp_manager.hang_timeout,
            self.world.rank,
            hosts,
            self.timers,
            lambda: self.schedule.step + 1,
        )

    def step(self) -> tuple[dict[str, float], list[Scored]]:
        """One round of Algorithm 1: sample, play, judge, reward, learn."""
        role, timers = self.schedule.learner, self.timers
        with timers("step"):
            policy = self.pair.set_learner(role)
            episodes = self.play(role)
            self.pair.generator.release()
            unplayed = self.unplayed_share(len(episodes))
            pending = self.reward_manager.submit(episodes, audit=True)
            with timers("logprobs"):  # the judge works meanwhile
                said = self.learner.said(policy, role, episodes)
            with timers("judge_wait"):
                scored = self.reward_manager.collect(pending)
            advantages = self.learner.advantages(role, scored)
            with timers("update"):
                metrics = self.learner.update(policy, scored, said, advantages)
        metrics |= {"train_rollouts/unplayed_share": unplayed}
        metrics |= self.figures("train_rollouts/", scored) | self.reward_manager.figures()
        if role is Role.ATTACKER:
            ranks = self.world.gather_data_parallel(attack_distance(scored))
            metrics |= Ratios.merged(ranks).means("train_rollouts/")
        return metrics | self.speed(scored), scored

    def play(self, role: Role) -> list[Episode]:
        """Attacker phase: G attacks per seed, one response to each. Defender phase: one attack per seed, shared by its
        group of G responses; the attacker does not change meanwhile, so its attacks may be written ahead."""
        step = self.schedule.step
        if role is Role.ATTACKER:
            self.prefetcher.invalidate()
            with self.opponents.opponent_for(role, step):
                return self.rollouts.attacker_rollout(self.share_of(self.sampler.batch(step)), step)
        openings = self.prefetcher.get(step, self.ahead())
        with self.opponents.opponent_for(role, step):
            return self.rollouts.defender_rollout(openings, step)

    def unplayed_share(self, played: int) -> float:
        """The share of this step's games that could not be played, over all ranks.

        Raises:
            TrainingError: it is above ``game.max_unplayed_share``.
        """
        (total,) = self.world.sum_data_parallel(played)
        share = 1 - total / (self.cfg.game.batch_size * self.cfg.game.group_size)
        if share > self.cfg.game.max_unplayed_share:
            raise TrainingError(
                f"{share:.0%} of the games could not be played (game.max_unplayed_share="
                f"{self.cfg.game.max_unplayed_share:g}): their first message is longer than a role's model can read, "
                "see length_params and model.encoder_seq_length"
            )
        return share

    def ahead(self) -> int:
        """How many steps' attacks to write at once: at most what is certain to be played by this attacker."""
        wanted = self.cfg.game.attack_prefetch_steps
        certain = min(self.schedule.steps_left(self.cfg.game.schedule), self.total - self.schedule.step)
        return 1 if self.cfg.game.self_play else certain if wanted is None else min(wanted, certain)

    def finish_step(self, metrics: dict[str, float], scored: Sequence[Scored], logger: MetricLogger) -> None:
        """Validate and record what was played, move on, and keep what is to be kept."""
        cfg, before = self.cfg, self.schedule
        done = before.step + 1
        validated = done % cfg.game.val_check_interval == 0 or done == self.total
        if validated:
            metrics |= self.validate() | self.drained()
        metrics |= self.opponents.update_win_rates(before.learner, before.step, scored)
        self.alarms, events, ratios = self.alarms.after(cfg.alarms, done, before.learner, metrics)
        metrics |= ratios
        record = StepRecord(done, before.learner, before.phase, before.learner, metrics)
        logger.record(record, scored, events)
        self.metrics = metrics
        self.schedule = before.advance(cfg.game.schedule, metrics)
        self.early_stop = self.early_stop.after(cfg.game.early_stop, done, metrics)
        ended = self.schedule.phase != before.phase and (validated or not cfg.game.self_play)
        if ended or self.over():
            self.keep(before.learner, f"phase-{before.phase:02d}", before.phase)
        if self.schedule.phase != before.phase:
            self.opponents.draw(self.schedule)
        if done % cfg.exp_manager.checkpoint_callback_params.every_n_train_steps == 0:
            self.save()

    def refuse_alarmed(self) -> None:
        """Also when the run goes on: what was stopped for does not go away by starting again.

        Raises:
            TrainingError: an alarm sounds whose action is stop; the game is saved.
        """
        if reason := self.alarms.stop_reason(self.cfg.alarms):
            self.save(wait=True)
            raise TrainingError(f"{reason}; saved after {self.schedule.step}")

    def over(self) -> bool:
        reached = self.early_stop.stop_reason(self.cfg.game.early_stop, self.schedule.step)
        return self.schedule.step >= self.total or reached is not None

    def validate(self) -> dict[str, float]:
        """The pair as it is, on held-out seeds, at temperature 0."""
        with self.timers("validate"):
            scored = self.reward_manager.collect(
                self.reward_manager.submit(self.rollouts.greedy_rollout(self.share_of(self.held_out)))
            )
        return self.figures("val_rollouts/", scored)

    # --- what is kept

    def begin(self, logger: MetricLogger) -> None:
        """Before the first step: everyone's first self is kept, the pair measured, and the run can be resumed."""
        for role in self.pair.trainable:
            self.keep(role, START, -1)
        self.opponents.draw(self.schedule)
        self.metrics = self.validate() | self.drained()
        logger.record(StepRecord(0, "start", 0, None, self.metrics))
        self.save()

    def keep(self, role: Role, name: str, phase: int) -> None:
        """Keep a player's weights as they are now, to be played against later and at the end.

        Where it was kept under this name, its run ended within the phase and went on: it has learned since.
        """
        policy = self.pair.trainable[role]
        owner = next(key for key, one in self.pair.unique.items() if one is policy)
        if name == START and START in (kept.name for kept in self.snapshots[owner]):
            return  # one player is both roles' first self
        # Megatron has one queue of write results per process: two writes at a time would be told each other's.
        self.checkpoints.finish()
        taken = save_snapshot(policy.actor, self.folder / "snapshots" / owner / name)
        self.snapshots[owner] = [kept for kept in self.snapshots[owner] if kept.name != name] + [taken]
        for of_role, out in self.opponents.add(role, taken, phase):
            self.snapshots[of_role] = [kept for kept in self.snapshots[of_role] if kept.name != out]
        if self.cfg.game.pool.max_disk_gib is not None:
            clear_out(self.world, self.folder, self.snapshots)

    def save(self, wait: bool = False) -> None:
        """Commit the game's state as it is between two steps."""
        state = {
            "step": self.schedule.step,
            "schedule": self.schedule.to_dict(),
            "early_stop": self.early_stop.to_dict(),
            "alarms": self.alarms.to_dict(),
            "pool": self.opponents.pool.to_dict(),
            "snapshots": {name: [kept.name for kept in taken] for name, taken in self.snapshots.items()},
            "skipped_updates": {name: policy.skipped_updates for name, policy in self.pair.unique.items()},
            "layout": layout_of(self.world, self.pair.unique),
            "config": asdict(self.cfg),
        }
        documents = {STATE: state, REWRITES: self.prefetcher.to_rows(self.schedule.step)}
        self.checkpoints.save(self.schedule.step, self.pair.unique, documents, self.metrics, wait)

    def restore(self, resume: Resume) -> int | None:
        """Take up the game where a checkpoint left it; the step to go on after, or None for a new game."""
        path = self.checkpoints.newest() if resume.newest else resume.checkpoint
        if path is None:
            return None
        state: Mapping[str, Any] = self.checkpoints.restore(path, self.pair.unique)
        self.schedule = Schedule.from_dict(state["schedule"])
        self.early_stop = EarlyStop.from_dict(state["early_stop"])
        # Older checkpoints have none; they are gone on from only where nobody is drawn from it (decide).
        self.opponents.pool = Pool.from_dict(state["pool"]) if "pool" in state else Pool()
        self.alarms = Alarms.from_dict(state["alarms"]) if "alarms" in state else Alarms()
        taken = path.parent.parent / "snapshots"
        for name, policy in self.pair.unique.items():
            policy.skipped_updates = state["skipped_updates"][name]
            self.snapshots[name] = [Snapshot(kept, taken / name / kept) for kept in state["snapshots"][name]]
        rows = json.loads((path / REWRITES).read_text(encoding="utf-8"))
        self.prefetcher.from_rows(rows, lambda group: group % self.world.dp_size == self.world.dp_rank)
        self.say(f"resumed from {path}: {self.schedule.step} of {self.total} steps are done")
        return self.schedule.step

    # --- all ranks together

    def say(self, text: str) -> None:
        if self.world.is_main:
            print(text, flush=True)

    def share_of(self, seeds: Sequence[Seed]) -> list[tuple[int, Seed]]:
        """This data-parallel rank's (group, seed) pairs: whole groups, so that their statistics never cross ranks."""
        return list(enumerate(seeds))[self.world.dp_rank :: self.world.dp_size]

    def figures(self, prefix: str, scored: Sequence[Scored]) -> dict[str, float]:
        """The game's figures over all ranks."""
        return Ratios.merged(self.world.gather_data_parallel(rollout_metrics(scored))).means(prefix)

    def drained(self) -> dict[str, float]:
        """Seconds and peak memory by part, and the generator's figures, of the rank that has most."""
        ranks = self.world.all_gather(self.timers.drain() | self.pair.generator.drain())
        return {name: max(rank[name] for rank in ranks) for name in ranks[0]}

    def speed(self, scored: Sequence[Scored]) -> dict[str, float]:
        """Timings of this step, and sampled tokens per second over all ranks."""
        timings = self.drained()
        said = [completion for s in scored for role in Role for completion in s.episode.completions_of(role)]
        # A group that shares an attack shares one object: count it once.
        sampled = sum(len(completion.response_ids) for completion in {id(c): c for c in said}.values())
        (tokens,) = self.world.sum_data_parallel(sampled)
        return timings | {"throughput/tokens_per_second": tokens / timings["timers/step"]}
