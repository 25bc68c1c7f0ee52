"""The co-evolution loop: Algorithm 1 of the paper, every rank running the same program.

Left to other modules: what an episode is (game), how it is played (arena), judged (referee) and learned from (learner).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from nemo_magic.actors.build import Player, build_player
from nemo_magic.actors.checkpoint import save_weights
from nemo_magic.actors.generation import NativeGenerator
from nemo_magic.actors.snapshots import Snapshot, take
from nemo_magic.actors.world import World
from nemo_magic.config import MagicConfig, role_model
from nemo_magic.data.seeds import SeedSampler, interleaved, load_seeds
from nemo_magic.game.episode import Role, Seed
from nemo_magic.game.metrics import Ratios, Scored, rollout_metrics
from nemo_magic.game.schedule import Schedule
from nemo_magic.report.game_picture import draw_game
from nemo_magic.report.records import CROSSPLAY_FILE, METRICS_FILE, PICTURE_FILE, STRATEGIES_FILE, StepRecord
from nemo_magic.training.arena import Arena
from nemo_magic.training.crossplay import cross_play
from nemo_magic.training.learner import Learner
from nemo_magic.training.observe import Observer
from nemo_magic.training.probe import probe_strategies
from nemo_magic.training.referee import Referee
from nemo_magic.training.summary import print_summary
from nemo_magic.training.timers import Timers


def train(cfg: MagicConfig) -> None:
    """Play and learn for ``game.max_steps`` rounds, then play everyone against everyone and report.

    Raises:
        JudgeFailed: the judge stayed away for ``judge.give_up_after`` seconds, or knows too little.
    """
    players = {
        role: build_player(
            role,
            role_model(cfg, role),
            cfg.actors.of(role),
            cfg.trainer,
            seed=cfg.seed + number,
            keep_reference=cfg.grpo.kl_beta > 0,
        )
        for number, role in enumerate((Role.ATTACKER, Role.DEFENDER))
    }
    world = World.current()
    referee = Referee(world, cfg.judge, cfg.rewards, cfg.game.observe)
    try:
        referee.wait_ready(cfg.judge.give_up_after)
        _Coevolution(cfg, world, players, referee).run()
    finally:
        referee.close()


class _Coevolution:
    def __init__(self, cfg: MagicConfig, world: World, players: dict[Role, Player], referee: Referee) -> None:
        self.cfg = cfg
        self.world = world
        self.players = players
        self.referee = referee
        self.timers = Timers()
        self.arena = Arena(cfg, players, NativeGenerator(cfg.generation), self.timers)
        self.learner = Learner(world, cfg.grpo)
        data = load_seeds(cfg.data)
        if world.is_main:
            print(data.report, flush=True)
        self.sampler = SeedSampler(data.train, cfg.game.batch_size, cfg.data.harmful_share, cfg.seed)
        self.held_out = interleaved(data.validation)[: cfg.game.num_val_samples]
        self.test = data.test or data.validation
        self.snapshots: dict[Role, list[Snapshot]] = {role: [take(players[role].actor, "start")] for role in Role}

    def run(self) -> None:
        cfg, schedule = self.cfg, Schedule.begin(self.cfg.game.schedule)
        steps = cfg.game.max_steps
        with Observer(
            cfg.exp_manager, is_main=self.world.is_main, total_steps=steps, title=cfg.name, config=asdict(cfg)
        ) as observer:
            observer.record(StepRecord(0, "start", 0, None, self.validate() | self.timers.drain()))
            while schedule.step < steps:
                metrics, scored = self.step(schedule)
                done, last_of_phase = schedule.step + 1, schedule.ends_phase(cfg.game.schedule)
                if last_of_phase or done == steps:
                    self.keep(schedule)
                if done % cfg.game.val_check_interval == 0 or done == steps:
                    metrics |= self.validate() | self.timers.drain()
                observer.record(StepRecord(done, schedule.learner, schedule.phase, schedule.learner, metrics), scored)
                schedule = schedule.advance(cfg.game.schedule)
        self.finish()

    def step(self, schedule: Schedule) -> tuple[dict[str, float], list[Scored]]:
        """One round of Algorithm 1: sample, play, judge, reward, learn."""
        role, timers = schedule.learner, self.timers
        player = self.players[role]
        with timers("step"):
            seeds = self.share_of(self.sampler.batch(schedule.step))
            episodes = self.arena.rollout(seeds, role, schedule.step)
            pending = self.referee.submit(episodes)
            with timers("logprobs"):  # the judge works meanwhile
                rows = self.learner.rows(player, episodes)
            with timers("judge_wait"):
                scored = self.referee.collect(pending)
            advantages = self.learner.advantages(role, scored)
            with timers("update"):
                metrics = self.learner.update(player, scored, rows, advantages)
        return metrics | self.figures("train_rollouts/", scored) | self.speed(scored), scored

    def validate(self) -> dict[str, float]:
        """The pair as it is, on held-out seeds, at temperature 0."""
        with self.timers("validate"):
            scored = self.referee.collect(self.referee.submit(self.arena.duel(self.share_of(self.held_out))))
        return self.figures("val_rollouts/", scored)

    def keep(self, schedule: Schedule) -> None:
        """Keep the learner's weights as they are at the end of a phase, in memory and on disk."""
        player = self.players[schedule.learner]
        name = f"phase-{schedule.phase:02d}"
        self.snapshots[player.role].append(take(player.actor, name))
        save_weights(player.actor, self.folder / "snapshots" / player.role / name)

    def finish(self) -> None:
        """Cross-play of everyone who was kept, the strategies' probe, the picture and the summary."""
        cfg, test = self.cfg, list(enumerate(self.test))
        if cfg.game.crossplay.enabled:
            matrix = cross_play(self.world, self.arena, self.referee, self.players, self.snapshots, test, cfg)
            if self.world.is_main:
                matrix.save(self.folder / CROSSPLAY_FILE)
        if cfg.game.probe == "sandbox":
            worst = probe_strategies(self.world, self.arena, self.referee, cfg, self.players, self.snapshots, test)
            if self.world.is_main:
                (self.folder / STRATEGIES_FILE).write_text(json.dumps(worst, indent=1))
        if self.world.is_main:
            crossplay = self.folder / CROSSPLAY_FILE
            draw_game(self.folder / METRICS_FILE, crossplay if crossplay.exists() else None, self.folder / PICTURE_FILE)
            print_summary(self.folder)
        self.world.barrier()

    @property
    def folder(self) -> Path:
        return Path(self.cfg.exp_manager.explicit_log_dir)

    def share_of(self, seeds: Sequence[Seed]) -> list[tuple[int, Seed]]:
        """This data-parallel rank's (group, seed) pairs: whole groups, so that their statistics never cross ranks."""
        return list(enumerate(seeds))[self.world.dp_rank :: self.world.dp_size]

    def figures(self, prefix: str, scored: Sequence[Scored]) -> dict[str, float]:
        """The game's figures over all ranks."""
        return Ratios.merged(self.world.gather(rollout_metrics(scored))).means(prefix)

    def speed(self, scored: Sequence[Scored]) -> dict[str, float]:
        """Timings of this step, and sampled tokens per second over all ranks."""
        timings = self.timers.drain()
        turns = [turn for s in scored for turn in s.episode.turns]
        # A group that shares an attack shares one object: count it once.
        attacks = {id(turn.attack): len(turn.attack.response_ids) for turn in turns if turn.attack is not None}
        sampled = sum(attacks.values()) + sum(len(turn.defence.response_ids) for turn in turns)
        (tokens,) = self.world.total(sampled)
        return timings | {"throughput/tokens_per_second": tokens / timings["timers/step"]}
