"""The co-evolution loop: Algorithm 1 of the paper. Every rank runs the same program.

Other modules hold what an episode is (game), how it is played (rollout) and rewarded (rollout.reward_manager), the
policy update (trainer), past opponents (opponents), what is saved (state), and what happens around a step (runtime).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack

from nemo_magic.actors.distributed import DeviceMemory
from nemo_magic.actors.snapshots import SnapshotCache
from nemo_magic.config import MagicConfig
from nemo_magic.data.seeds import SeedSampler, interleaved, load_seeds
from nemo_magic.game.alarms import LIVE_ROWS, PHASE_LIVE_ROWS
from nemo_magic.game.episode import Episode, Role, Seed
from nemo_magic.game.metrics import Scored
from nemo_magic.game.pool import GIB
from nemo_magic.game.schedule import Schedule
from nemo_magic.game.stopping import total_steps
from nemo_magic.league.participants import START, LeagueSeeds
from nemo_magic.report.records import StepRecord
from nemo_magic.rollout.attack_prefetch import AttackPrefetcher
from nemo_magic.rollout.engine import build_rollout_engine
from nemo_magic.rollout.reward_manager import RewardManager
from nemo_magic.runtime.failures import consistent_on_failure
from nemo_magic.runtime.resume import Resume, start_weights
from nemo_magic.runtime.timers import Timers
from nemo_magic.training.final_evaluation import final_evaluation
from nemo_magic.training.measures import Measures
from nemo_magic.training.opponents import Opponents
from nemo_magic.training.policies import PolicyPair, build_policies
from nemo_magic.training.refill import Refill
from nemo_magic.training.run import Run
from nemo_magic.training.state import GameState
from nemo_magic.training.trainer import Trainer


def train(cfg: MagicConfig, resume: Resume) -> None:
    """Play and learn until ``game.max_steps``, then play everyone against everyone and report.

    Raises:
        TrainingError: the run cannot go on; its message says what is saved.
        Preempted: the run was asked to end; it has saved and goes on when it is started again.
        JudgeError: the judge failed before the first step, or in the final evaluation; a failure within a step is a
            TrainingError.
    """
    with build_policies(cfg, start_weights(cfg, resume.checkpoint)) as pair:
        lengths = {role: cfg.actors.of(role).length_params.max_length for role in Role}
        rewards = RewardManager(
            pair.world, cfg.judge, cfg.rewards, cfg.game.extra_verdict_fields, pair.preemption, lengths
        )
        try:
            rewards.wait_ready(cfg.judge.give_up_after)
            Coevolution(cfg, pair, rewards).run_to_end(resume)
        finally:
            rewards.close()


class Coevolution:
    """A game of two policies. ``state`` is what it remembers; everything else follows from the configuration."""

    def __init__(self, cfg: MagicConfig, pair: PolicyPair, rewards: RewardManager) -> None:
        self.cfg, self.pair, self.world, self.rewards = cfg, pair, pair.world, rewards
        self.timers = Timers(DeviceMemory())
        self.rollouts = build_rollout_engine(cfg, pair.policies, self.timers)
        self.trainer = Trainer(self.world, cfg.grpo)
        tokenizers = [policy.actor.chat for policy in pair.unique.values()]
        self.measures = Measures(self.world, self.timers, pair.generator, tokenizers)
        data = load_seeds(cfg.data)
        self.sampler = SeedSampler(data.train, cfg.game.batch_size, cfg.data.harmful_share, cfg.seed)
        self.held_out = interleaved(data.validation)[: cfg.game.num_val_samples]
        self.test = data.test or data.validation
        if cfg.game.crossplay.enabled:  # refused now, and not at the end
            LeagueSeeds.of_run(list(enumerate(self.test)), cfg.game.crossplay.num_seeds)
        total = total_steps(cfg.game.max_steps, cfg.game.max_epochs, cfg.game.batch_size, len(data.train))
        self.run = Run(cfg, self.world, self.timers, total, pair.preemption)
        self.run.note(str(data.report))
        self.state = GameState(Schedule.begin(cfg.game.schedule), snapshots={name: [] for name in pair.unique})
        cache = SnapshotCache(cfg.game.pool.max_host_gib * GIB)
        self.opponents = Opponents(cfg, pair, self.rollouts, self.state, cache, self.run)
        self.refill = Refill(
            self.world, self.trainer, rewards, self.sampler, self.play_more, cfg.game.batch_size, cfg.grpo.refill_rounds
        )
        self.prefetcher = AttackPrefetcher(
            self.world, self.opponents, lambda step: self.share(self.sampler.batch(step))
        )

    def run_to_end(self, resume: Resume) -> None:
        """Play the game from its beginning, or from where a checkpoint left it, and measure how it ended."""
        with ExitStack() as logging:
            resumed = self.restore(resume)
            with self.run.watch(logging, self.state.step if resumed else None, lambda: self.state.step + 1):
                if not resumed:
                    self.begin()
                self.play()
            final_evaluation(
                self.cfg, self.pair, self.rollouts, self.rewards, self.state.snapshots, self.test, self.run
            )

    def play(self) -> None:
        """Algorithm 1: in a phase one role learns and its opponents stay as they are; then the roles switch."""
        while not self.is_over():
            phase, learner = self.state.schedule.phase, self.state.schedule.learner
            while self.state.schedule.phase == phase and not self.is_over():
                self.run.before_step(self.state.step, self.save, self.state.alarms.stop_reason(self.cfg.alarms))
                with self.protected_step(learner):
                    metrics, scored = self.step(learner)
                    self.after_step(metrics, scored)
            if self.keeps_phase_end():
                self.opponents.keep(learner, f"phase-{phase:02d}", phase)
            if self.state.schedule.phase != phase:
                self.opponents.draw(self.state.schedule)
        self.save(wait=True)

    def step(self, learner: Role) -> tuple[dict[str, float], list[Scored]]:
        """Roll out, judge, reward, learn. Returns the step's metrics and its scored episodes."""
        timers = self.timers
        with timers("step"):
            policy = self.pair.set_learner(learner)
            episodes = self.collect(learner)
            self.pair.generator.release()
            unplayed = self.measures.of_unplayed(len(episodes), self.rollouts.take_unanswered(), self.cfg.game)
            pending = self.rewards.submit(episodes, audit=True)
            with timers("logprobs"):  # the judge works meanwhile
                batch = self.trainer.prepare(policy, learner, episodes)
            with timers("judge_wait"):
                scored = self.rewards.collect(pending)
            batch, scored, refilled = self.refill.complete(policy, learner, self.state.step, batch, scored)
            unplayed |= self.measures.of_refill(unplayed, self.rollouts.take_unanswered())
            with timers("update"):
                metrics = self.trainer.update(policy, batch, scored)
        metrics |= unplayed | refilled
        metrics |= self.measures.of_rollout(learner, scored) | self.rewards.metrics()
        return metrics | self.measures.of_speed(scored), scored

    def collect(self, learner: Role) -> list[Episode]:
        """The step's episodes on this rank.

        Attacker phase: G attacks per seed, one response to each. Defender phase: one attack per seed, shared by its
        group of G responses; the attacker does not change meanwhile, so its attacks may be generated ahead.
        """
        step = self.state.step
        if learner is Role.ATTACKER:
            self.prefetcher.invalidate()
            with self.opponents.opponent_for(learner, step):
                return self.rollouts.attacker_rollout(self.share(self.sampler.batch(step)), step)
        openings = self.prefetcher.get(step, self.prefetch_steps())
        with self.opponents.opponent_for(learner, step):
            return self.rollouts.defender_rollout(openings, step)

    def play_more(self, learner: Role, pairs: Sequence[tuple[int, Seed]]) -> list[Episode]:
        """As ``collect`` for more seeds of this rank, whose attacks nobody has generated ahead; what follows learns, so
        that the generator gives its memory back."""
        step = self.state.step
        if learner is Role.ATTACKER:
            with self.opponents.opponent_for(learner, step):
                episodes = self.rollouts.attacker_rollout(pairs, step)
        else:
            openings = self.opponents.defender_openings({step: pairs})[step]
            with self.opponents.opponent_for(learner, step):
                episodes = self.rollouts.defender_rollout(openings, step)
        self.pair.generator.release()
        return episodes

    def after_step(self, metrics: dict[str, float], scored: Sequence[Scored]) -> None:
        """Validate, watch for alarms, log, and move the schedule on.

        The order matters: win rates belong to this step's opponents, alarms look at the validation too, and the record
        names the phase that the step was in.
        """
        cfg, before = self.cfg, self.state.schedule
        done = before.step + 1
        if self.is_validated(done):
            metrics |= self.validate()
        metrics |= self.opponents.update_win_rates(before.learner, before.step, scored)
        self.state.live_rows += metrics[LIVE_ROWS] * cfg.grpo.minibatches  # the metric is of one update
        phase_ends = before.ends_phase(cfg.game.schedule, metrics)
        is_known = phase_ends or done == self.run.total_steps
        known = metrics | ({PHASE_LIVE_ROWS: self.state.live_rows} if is_known else {})
        self.state.alarms, events, ratios = self.state.alarms.after(cfg.alarms, done, before.learner, known)
        metrics |= ratios
        if phase_ends:
            self.state.live_rows = 0.0
        self.run.logger.record(StepRecord(done, before.learner, before.phase, before.learner, metrics), scored, events)
        self.state.metrics = metrics
        self.state.schedule = before.advance(cfg.game.schedule, metrics)
        self.state.early_stop = self.state.early_stop.after(cfg.game.early_stop, done, metrics)

    def validate(self) -> dict[str, float]:
        """The pair as it is, on held-out seeds, at temperature 0."""
        with self.timers("validate"):
            scored = self.rewards.collect(self.rewards.submit(self.rollouts.greedy_rollout(self.share(self.held_out))))
        return self.measures.of_validation(scored, self.rollouts.take_unanswered())

    # --- what depends on where the game is

    def is_over(self) -> bool:
        """Whether all steps are done, or an early stop was reached."""
        early = self.state.early_stop.stop_reason(self.cfg.game.early_stop, self.state.step) is not None
        return early or self.state.step >= self.run.total_steps

    def is_validated(self, done: int) -> bool:
        """Whether the step that ends with ``done`` steps is followed by a validation."""
        last = (self.run.total_steps, self.cfg.game.early_stop.at_step)
        return done % self.cfg.game.val_check_interval == 0 or done in last

    def keeps_phase_end(self) -> bool:
        """Whether the learner is kept as it is at a phase's end; in self-play phases may be single steps, and only
        validated ones are kept."""
        return not self.cfg.game.self_play or self.is_validated(self.state.step) or self.is_over()

    def prefetch_steps(self) -> int:
        """For how many steps to generate attacks at once: at most those that this attacker is certain to play."""
        limit, schedule = self.cfg.game.attack_prefetch_steps, self.state.schedule
        certain = min(schedule.steps_left(self.cfg.game.schedule), self.run.total_steps - schedule.step)
        return 1 if self.cfg.game.self_play else certain if limit is None else min(limit, certain)

    def share(self, seeds: Sequence[Seed]) -> list[tuple[int, Seed]]:
        """This data-parallel rank's (group, seed) pairs: whole groups, so that their statistics never cross ranks."""
        return list(enumerate(seeds))[self.world.dp_rank :: self.world.dp_size]

    # --- beginning, saving, going on

    def begin(self) -> None:
        """Before the first step: keep everyone's first self, measure the pair, and save."""
        for role in self.pair.trainable:
            self.opponents.keep(role, START, -1)
        self.opponents.draw(self.state.schedule)
        self.state.metrics = self.validate()
        self.pair.set_learner(self.state.schedule.learner)  # before a save, which wants every role's moments
        self.run.logger.record(StepRecord(0, "start", 0, None, self.state.metrics))
        self.save()

    def protected_step(self, learner: Role) -> AbstractContextManager[None]:
        """Within the context a failure ends the run where it can go on: before the step, or at the last checkpoint."""
        policy, checkpoints = self.pair.trainable[learner], self.run.checkpoints
        skipped, baselines = policy.skipped_updates, self.trainer.baselines

        def save_as_before() -> None:
            policy.skipped_updates, self.trainer.baselines = skipped, baselines
            self.save(wait=True)

        return consistent_on_failure(
            self.state.step, lambda: policy.actor.weights_version, save_as_before, checkpoints.finish
        )

    def save(self, wait: bool = False) -> None:
        """Commit the game as it is between two steps."""
        self.state.baselines = self.trainer.baselines
        self.state.save(self.run.checkpoints, self.pair, self.prefetcher, self.cfg, wait)

    def restore(self, resume: Resume) -> bool:
        """Take up the game where a checkpoint left it; whether there is one."""
        path = self.run.checkpoint_of(resume)
        if path is None:
            return False
        self.state = GameState.load(path, self.run.checkpoints, self.pair, self.prefetcher)
        self.opponents.state = self.state
        self.trainer.baselines = self.state.baselines
        self.run.has_resumed(resume, path, self.state.step, self.save)
        return True
