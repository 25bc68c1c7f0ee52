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

from nemo_magic.actors.errors import RemoteError
from nemo_magic.actors.snapshots import Snapshot, Wardrobe, take
from nemo_magic.actors.world import DeviceMemory
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
from nemo_magic.report.records import StepRecord
from nemo_magic.training.arena import arena_of
from nemo_magic.training.cast import Cast, assemble
from nemo_magic.training.checkpoints import Checkpointer, layout_of
from nemo_magic.training.entrants import START
from nemo_magic.training.errors import Preempted, TrainingError
from nemo_magic.training.finale import finale
from nemo_magic.training.interruption import Interruption
from nemo_magic.training.learner import Learner
from nemo_magic.training.observe import Observer
from nemo_magic.training.opponents import Opponents, clear_out
from nemo_magic.training.referee import Referee
from nemo_magic.training.resume import Resume, start_weights
from nemo_magic.training.rewrites import Rewrites
from nemo_magic.training.shelf import STATE
from nemo_magic.training.timers import Timers
from nemo_magic.training.watchdog import Watchdog, host_of_process

REWRITES = "rewrites.json"


def train(cfg: MagicConfig, resume: Resume) -> None:
    """Play and learn until ``game.max_steps``, then play everyone against everyone and report.

    Raises:
        TrainingError: the run cannot go on, or was asked not to; it has saved and goes on when it is started again.
        JudgeFailed: no judge was there to begin with.
    """
    with assemble(cfg, start_weights(cfg, resume.checkpoint)) as cast:
        referee = Referee(cast.world, cfg.judge, cfg.rewards, cfg.game.observe)
        try:
            referee.wait_ready(cfg.judge.give_up_after)
            _Coevolution(cfg, cast, referee).run(resume)
        finally:
            referee.close()


class _Coevolution:
    def __init__(self, cfg: MagicConfig, cast: Cast, referee: Referee) -> None:
        self.cfg = cfg
        self.cast = cast
        self.world = cast.world
        self.referee = referee
        self.timers = Timers(DeviceMemory())
        self.folder = Path(cfg.exp_manager.explicit_log_dir)
        self.arena = arena_of(cfg, cast.speakers, self.timers)
        self.learner = Learner(self.world, cfg.grpo)
        data = load_seeds(cfg.data)
        self.say(str(data.report))
        self.sampler = SeedSampler(data.train, cfg.game.batch_size, cfg.data.harmful_share, cfg.seed)
        self.snapshots: dict[str, list[Snapshot]] = {name: [] for name in cast.named}
        wardrobe = Wardrobe(cfg.game.pool.max_host_gib * GIB)
        self.opponents = Opponents(cfg, cast, self.arena, self.snapshots, wardrobe)
        self.rewrites = Rewrites(self.world, self.opponents, lambda step: self.share_of(self.sampler.batch(step)))
        self.held_out = interleaved(data.validation)[: cfg.game.num_val_samples]
        self.test = data.test or data.validation
        self.total = total_steps(cfg.game.max_steps, cfg.game.max_epochs, cfg.game.batch_size, len(data.train))
        self.checkpoints = Checkpointer(self.world, self.folder, cfg.exp_manager.checkpoint_callback_params, self.say)
        # What follows is, with snapshots and opponents, the game's state, and is saved as one.
        self.schedule = Schedule.begin(cfg.game.schedule)
        self.early_stop = EarlyStop()
        self.alarms = Alarms()
        self.metrics: Mapping[str, float] = {}

    def run(self, resume: Resume) -> None:
        cfg = self.cfg
        done = self.restore(resume)
        with ExitStack() as to_the_end:
            observer = self.play_on(done, to_the_end)
            finale(cfg, self.cast, self.arena, self.referee, self.snapshots, self.test, self.folder, observer)

    def play_on(self, done: int | None, to_the_end: ExitStack) -> Observer:
        """All rounds after step ``done``; who observes them is needed afterwards."""
        cfg, exp = self.cfg, self.cfg.exp_manager
        with self.watchdog(), Interruption(self.world, exp.max_seconds) as interruption:
            observer = to_the_end.enter_context(
                Observer(
                    exp,
                    is_main=self.world.is_main,
                    resume_step=done,
                    total_steps=self.total,
                    title=cfg.name,
                    config=asdict(cfg),
                    analysis=cfg.analysis,
                )
            )
            self.checkpoints.say = observer.note
            if done is None:
                self.begin(observer)
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
                    self.finish_step(metrics, scored, observer)
                except (JudgeError, RemoteError) as error:
                    # The learner has moved on and the game has not: this is no state to go on from.
                    self.checkpoints.finish()
                    raise TrainingError(
                        f"validation after step {self.schedule.step + 1}: {error}; goes on from the last checkpoint"
                    ) from error
                if (reason := interruption.reason()) and not self.over():
                    self.save(wait=True)
                    raise Preempted(f"{reason}: saved after {self.schedule.step} of {self.total} steps")
            self.save(wait=True)
        return observer

    def watchdog(self) -> Watchdog:
        hosts = self.world.everyone(host_of_process())
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
            player = self.cast.learns(role)
            episodes = self.play(role)
            self.cast.generator.release()
            unplayed = self.unplayed_share(len(episodes))
            pending = self.referee.submit(episodes, audit=True)
            with timers("logprobs"):  # the judge works meanwhile
                said = self.learner.said(player, role, episodes)
            with timers("judge_wait"):
                scored = self.referee.collect(pending)
            advantages = self.learner.advantages(role, scored)
            with timers("update"):
                metrics = self.learner.update(player, scored, said, advantages)
        metrics |= {"train_rollouts/unplayed_share": unplayed}
        metrics |= self.figures("train_rollouts/", scored) | self.referee.figures()
        if role is Role.ATTACKER:
            ranks = self.world.gather(attack_distance(scored))
            metrics |= Ratios.merged(ranks).means("train_rollouts/")
        return metrics | self.speed(scored), scored

    def play(self, role: Role) -> list[Episode]:
        """Attacker phase: G attacks per seed, one response to each. Defender phase: one attack per seed, shared by its
        group of G responses; the attacker does not change meanwhile, so its attacks may be written ahead."""
        step = self.schedule.step
        if role is Role.ATTACKER:
            self.rewrites.forget()
            with self.opponents.facing(role, step):
                return self.arena.attacker_rollout(self.share_of(self.sampler.batch(step)), step)
        openings = self.rewrites.take(step, self.ahead())
        with self.opponents.facing(role, step):
            return self.arena.defender_rollout(openings, step)

    def unplayed_share(self, played: int) -> float:
        """The share of this step's games that could not be played, over all ranks.

        Raises:
            TrainingError: it is above ``game.max_unplayed_share``.
        """
        (total,) = self.world.total(played)
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
        wanted = self.cfg.game.rewrites_ahead
        certain = min(self.schedule.steps_left(self.cfg.game.schedule), self.total - self.schedule.step)
        return 1 if self.cfg.game.self_play else certain if wanted is None else min(wanted, certain)

    def finish_step(self, metrics: dict[str, float], scored: Sequence[Scored], observer: Observer) -> None:
        """Validate and record what was played, move on, and keep what is to be kept."""
        cfg, before = self.cfg, self.schedule
        done = before.step + 1
        validated = done % cfg.game.val_check_interval == 0 or done == self.total
        if validated:
            metrics |= self.validate() | self.drained()
        metrics |= self.opponents.count(before.learner, before.step, scored)
        self.alarms, events, pressures = self.alarms.after(cfg.alarms, done, before.learner, metrics)
        metrics |= pressures
        record = StepRecord(done, before.learner, before.phase, before.learner, metrics)
        observer.record(record, scored, events)
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
        if reason := self.alarms.stops(self.cfg.alarms):
            self.save(wait=True)
            raise TrainingError(f"{reason}; saved after {self.schedule.step}")

    def over(self) -> bool:
        reached = self.early_stop.reached(self.cfg.game.early_stop, self.schedule.step)
        return self.schedule.step >= self.total or reached is not None

    def validate(self) -> dict[str, float]:
        """The pair as it is, on held-out seeds, at temperature 0."""
        with self.timers("validate"):
            scored = self.referee.collect(self.referee.submit(self.arena.duel(self.share_of(self.held_out))))
        return self.figures("val_rollouts/", scored)

    # --- what is kept

    def begin(self, observer: Observer) -> None:
        """Before the first step: everyone's first self is kept, the pair measured, and the run can be resumed."""
        for role in self.cast.players:
            self.keep(role, START, -1)
        self.opponents.draw(self.schedule)
        self.metrics = self.validate() | self.drained()
        observer.record(StepRecord(0, "start", 0, None, self.metrics))
        self.save()

    def keep(self, role: Role, name: str, phase: int) -> None:
        """Keep a player's weights as they are now, to be played against later and at the end.

        Where it was kept under this name, its run ended within the phase and went on: it has learned since.
        """
        player = self.cast.players[role]
        owner = next(key for key, one in self.cast.named.items() if one is player)
        if name == START and START in (kept.name for kept in self.snapshots[owner]):
            return  # one player is both roles' first self
        # Megatron has one queue of write results per process: two writes at a time would be told each other's.
        self.checkpoints.finish()
        taken = take(player.actor, self.folder / "snapshots" / owner / name)
        self.snapshots[owner] = [kept for kept in self.snapshots[owner] if kept.name != name] + [taken]
        for of_role, out in self.opponents.join(role, taken, phase):
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
            "skipped_updates": {name: player.skipped_updates for name, player in self.cast.named.items()},
            "layout": layout_of(self.world, self.cast.named),
            "config": asdict(self.cfg),
        }
        documents = {STATE: state, REWRITES: self.rewrites.to_rows(self.schedule.step)}
        self.checkpoints.save(self.schedule.step, self.cast.named, documents, self.metrics, wait)

    def restore(self, resume: Resume) -> int | None:
        """Take up the game where a checkpoint left it; the step to go on after, or None for a new game."""
        path = self.checkpoints.newest() if resume.newest else resume.checkpoint
        if path is None:
            return None
        state: Mapping[str, Any] = self.checkpoints.restore(path, self.cast.named)
        self.schedule = Schedule.from_dict(state["schedule"])
        self.early_stop = EarlyStop.from_dict(state["early_stop"])
        # Older checkpoints have none; they are gone on from only where nobody is drawn from it (decide).
        self.opponents.pool = Pool.from_dict(state["pool"]) if "pool" in state else Pool()
        self.alarms = Alarms.from_dict(state["alarms"]) if "alarms" in state else Alarms()
        taken = path.parent.parent / "snapshots"
        for name, player in self.cast.named.items():
            player.skipped_updates = state["skipped_updates"][name]
            self.snapshots[name] = [Snapshot(kept, taken / name / kept) for kept in state["snapshots"][name]]
        rows = json.loads((path / REWRITES).read_text(encoding="utf-8"))
        self.rewrites.from_rows(rows, lambda group: group % self.world.dp_size == self.world.dp_rank)
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
        return Ratios.merged(self.world.gather(rollout_metrics(scored))).means(prefix)

    def drained(self) -> dict[str, float]:
        """Seconds and peak memory by part, and the generator's figures, of the rank that has most."""
        ranks = self.world.everyone(self.timers.drain() | self.cast.generator.drain())
        return {name: max(rank[name] for rank in ranks) for name in ranks[0]}

    def speed(self, scored: Sequence[Scored]) -> dict[str, float]:
        """Timings of this step, and sampled tokens per second over all ranks."""
        timings = self.drained()
        said = [completion for s in scored for role in Role for completion in s.episode.said_by(role)]
        # A group that shares an attack shares one object: count it once.
        sampled = sum(len(completion.response_ids) for completion in {id(c): c for c in said}.values())
        (tokens,) = self.world.total(sampled)
        return timings | {"throughput/tokens_per_second": tokens / timings["timers/step"]}
