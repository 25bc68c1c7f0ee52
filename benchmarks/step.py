"""Seconds of a training step by part: our schedule beside the published code's, on the same actors in the same run.

    python benchmarks/step.py [--steps 5] [--latency-ms 20] [--calls 3] [--out FILE] [key=value …]
    python benchmarks/step.py --hf FOLDER [--rows 32] [--prompt 64] [--length 64] [--micro 8] [--steps 3] [--cpu-time]

``key=value`` are overrides of conf/magic_sandbox.yaml. A phase of ``--steps`` steps of each role, as one rank, after a
phase of one step that counts for nothing. Ours is the training loop itself, with what it records; after each of its
steps the published schedule plays, scores and learns from the same seeds. Before every step of either the weights are
those the run began with, so that both play the same games. The judge is a server on this machine with the sandbox's
rules, which waits ``--latency-ms`` before it answers a request, whatever the number of items in it.

Every figure is a median over the steps of a phase, except the attacks of our defender phase: they are written at its
first step for the whole phase, and their seconds are divided by its steps. ``other`` is what remains of a step.

With ``--hf`` one update alone is measured, with the weights of a Hugging Face folder: our GRPO update beside
transformers with torch's Adam on the likelihood of the same tokens, each in a process of its own, with its highest
memory.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING

from figures import report, settle, table
from sides import Side, compare

from nemo_magic.config import MagicConfig, compose
from nemo_magic.game.episode import Role
from nemo_magic.sandbox.rules_guard import RulesGuard

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nemo_magic.game.metrics import Scored
    from nemo_magic.judge.protocol import JudgeItem, JudgeVerdict
    from nemo_magic.rollout.reward_manager import RewardManager
    from nemo_magic.tracking.metric_logger import MetricLogger
    from nemo_magic.training.coevolution import Coevolution
    from nemo_magic.training.policies import PolicyPair

PUBLISHED_CALLS = 3
"""Requests per sample in the published code: it asks twice to reward a sample and once more to log it, one sample at a
time (docs/method.md, table of differences)."""

PARTS = ("generate_attacker", "generate_defender", "judge_wait", "logprobs", "update")
OURS, THEIRS, ONE_CALL = "ours", "published", "published, one call"
LABELS = (
    "attacker generation", "defender generation", "judge wait", "log-probabilities", "update", "other", "step"
)  # fmt: skip


class SlowRules(RulesGuard):
    """The sandbox's rules behind a latency per request."""

    def __init__(self, world: str, latency_s: float) -> None:
        super().__init__(world)
        self._latency = latency_s

    async def judge(self, items: Sequence[JudgeItem]) -> list[JudgeVerdict]:
        """The rules' verdicts, after the latency."""
        await asyncio.sleep(self._latency)
        return await super().judge(items)


@dataclass
class StepSeconds:
    """Seconds of each part and of the whole, a number per step, and what was asked of the judge."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in (*PARTS, "step")})
    one_call: list[float] = field(default_factory=list)
    requests: int = 0

    def add(self, parts: Mapping[str, float], step: float) -> None:
        """Take in a step: its timers and the seconds of the whole."""
        for name in PARTS:
            self.seconds[name].append(parts.get(f"timers/{name}", 0.0))
        self.seconds["step"].append(step)

    def typical(self, amortised: bool = False, one_call: bool = False) -> dict[str, float]:
        """Seconds per step by part. ``amortised``: the attacks were written for the whole phase at once. ``one_call``:
        as if only the first request per sample had been made."""
        seconds = {name: median(values) for name, values in self.seconds.items() if name != "step"}
        # What remains is taken within a step: the median of a difference is not the difference of medians.
        left = [step - sum(self.seconds[name][i] for name in PARTS) for i, step in enumerate(self.seconds["step"])]
        if amortised:
            seconds["generate_attacker"] = mean(self.seconds["generate_attacker"])
        if one_call:
            seconds["judge_wait"] = median(self.one_call)
        seconds["other"] = median(left)
        return seconds | {"step": sum(seconds.values())}


class Published:
    """The published code's schedule, from the same pieces: a frozen attacker decodes each seed G times at temperature
    0, the judge is asked for one sample at a time and waited for, old log-probabilities are recomputed."""

    def __init__(self, loop: Coevolution, reward_manager: RewardManager, calls: int) -> None:
        self.loop = loop
        self.reward_manager = reward_manager
        self.calls = calls
        self.first_call = 0.0

    def step(self, role: Role, number: int) -> tuple[dict[str, float], list[Scored]]:
        """One step of the published schedule: its metrics and episodes."""
        from nemo_magic.rl.batch import scatter_back
        from nemo_magic.rollout.conversation import RolloutSpec

        loop = self.loop
        rollouts, trainer, timers = loop.rollouts, loop.trainer, loop.timers
        with timers("step"):
            policy = loop.pair.set_learner(role)
            seeds = loop.share(loop.sampler.batch(number))
            if role is Role.ATTACKER:
                episodes = rollouts.attacker_rollout(seeds, number)
            else:
                copies = [RolloutSpec(seed, group, i) for group, seed in seeds for i in range(loop.cfg.game.group_size)]
                episodes = rollouts.play(rollouts.attack(copies, "train", number, {Role.ATTACKER}), "train", number)
            with timers("judge_wait"):
                for call in range(self.calls):
                    began = time.perf_counter()
                    scored = [
                        one for e in episodes for one in self.reward_manager.collect(self.reward_manager.submit([e]))
                    ]
                    if call == 0:
                        self.first_call = time.perf_counter() - began
            with timers("logprobs"):
                batch = trainer.prepare(policy, role, episodes)
                batches = policy.microbatches(batch.rows, loop.world)
                old = scatter_back(batches, policy.actor.token_logprobs(batches), len(batch.rows))
                rows = [replace(row, old_logprobs=values) for row, values in zip(batch.rows, old, strict=True)]
            with timers("update"):
                metrics = trainer.update(policy, replace(batch, rows=rows), scored)
        return metrics | loop.measures.of_rollout(role, scored) | loop.measures.of_speed(scored), scored


@contextmanager
def starting_weights(pair: PolicyPair) -> Iterator[None]:
    """Restores the weights at the end."""
    import torch

    kept = {role: [p.detach().clone() for p in policy.actor.parameters()] for role, policy in pair.trainable.items()}
    yield
    with torch.no_grad():
        for role, policy in pair.trainable.items():
            for parameter, value in zip(policy.actor.parameters(), kept[role], strict=True):
                parameter.copy_(value)
            policy.actor.weights_version += 1


def play(
    cfg: MagicConfig,
    pair: PolicyPair,
    reward_manager: RewardManager,
    slow: RewardManager,
    steps: int,
    calls: int,
    folder: Path,
) -> dict[Role, dict[str, StepSeconds]]:
    """A phase of ``steps`` steps of each role, our step and the published one in turn."""
    from nemo_magic.report.records import StepRecord
    from nemo_magic.training.coevolution import Coevolution

    schedule = replace(cfg.game.schedule, freq=steps, by="steps")
    # One step more than is played: the end of a run is not a step.
    game = replace(cfg.game, schedule=schedule, max_steps=2 * steps + 1, val_check_interval=10**6)
    saves = replace(cfg.exp_manager.checkpoint_callback_params, every_n_train_steps=10**6)
    logs = replace(cfg.exp_manager, explicit_log_dir=str(folder / OURS), checkpoint_callback_params=saves)
    loop = Coevolution(replace(cfg, game=game, exp_manager=logs), pair, reward_manager)
    published = Published(loop, slow, calls)
    measured = {role: {OURS: StepSeconds(), THEIRS: StepSeconds()} for role in Role}
    other_logs = replace(logs, explicit_log_dir=str(folder / THEIRS))
    with metric_logger(logs) as loop.run.logger, metric_logger(other_logs) as other:
        for number in range(2 * steps):
            role = loop.state.schedule.learner
            ours, theirs = measured[role][OURS], measured[role][THEIRS]
            requests, slow_requests = reward_manager.stats()["requests"], slow.stats()["requests"]
            with starting_weights(pair):
                began = time.perf_counter()
                metrics, scored = loop.step(role)
                loop.after_step(metrics, scored)
                ours.add(metrics, time.perf_counter() - began)
            with starting_weights(pair):
                began = time.perf_counter()
                metrics, scored = published.step(role, number)
                other.record(StepRecord(number + 1, role, 0, role, metrics), scored)
                theirs.add(metrics, time.perf_counter() - began)
            theirs.one_call.append(published.first_call)
            ours.requests += int(reward_manager.stats()["requests"] - requests)
            theirs.requests += int(slow.stats()["requests"] - slow_requests)
    return measured


def metric_logger(settings: object) -> MetricLogger:
    """The metric logger of a training run with these settings."""
    from nemo_magic.tracking.metric_logger import MetricLogger

    return MetricLogger(settings, is_main=True)  # type: ignore[arg-type]


def tables(
    measured: Mapping[Role, Mapping[str, StepSeconds]], steps: int, calls: int
) -> tuple[list[str], dict[str, object]]:
    """A table of parts for each phase, one of ratios, and the same as numbers."""
    texts, numbers, ratios = [], {}, []
    for role, sides in measured.items():
        seconds = {
            OURS: sides[OURS].typical(amortised=role is Role.DEFENDER),
            THEIRS: sides[THEIRS].typical(),
            ONE_CALL: sides[THEIRS].typical(one_call=True),
        }
        rows = [
            [label, *(side[name] for side in seconds.values())]
            for label, name in zip(LABELS, (*PARTS, "other", "step"), strict=True)
        ]
        our_calls, published_calls = (sides[side].requests // steps for side in (OURS, THEIRS))
        rows.append(["judge requests", our_calls, published_calls, published_calls // calls])
        texts.append(table([f"{role} phase, seconds per step", *seconds], rows))
        whole = seconds[OURS]["step"]
        share = seconds[OURS]["other"] / whole
        ratios.append([str(role), *(seconds[side]["step"] / whole for side in (THEIRS, ONE_CALL)), share])
        numbers[str(role)] = {"seconds": seconds, "measured": {s: vars(sides[s]) for s in sides}, "other_share": share}
    texts.append(table(["phase", "published / ours", "with one call per sample", "other / our step"], ratios))
    return texts, numbers


def configured(words: Sequence[str], latency_s: float, folder: Path) -> MagicConfig:
    """The sandbox's game as one rank, its judge behind a latency.

    Raises:
        SystemExit: there are no warmed-up weights.
    """
    # The published code shows no seed as it is.
    fixed = [
        "trainer.devices=1",
        "game.raw_prompt_fraction=0",
        "exp_manager.create_tensorboard_logger=false",
        f"name={folder}",
    ]
    cfg = compose("magic_sandbox", [*fixed, *words])
    if cfg.trainer.devices != 1 or cfg.game.max_turns != 1:
        sys.exit("step.py measures one rank and single-turn games: leave trainer.devices and game.max_turns alone")
    for role in Role:
        path = cfg.actors.of(role).restore_from_path
        if path is None or not Path(path).exists():
            sys.exit(
                f"actors.{role}.restore_from_path={path}: no warmed-up weights there. `make train` makes them in "
                "runs/; run this from where runs/ is, or name them by key=value"
            )
    guard = {"world": str(Path(str(cfg.judge.guard_config["world"])).resolve()), "latency_s": latency_s}
    return replace(cfg, judge=replace(cfg.judge, guard="step:SlowRules", guard_config=guard))


def on_folder(args: argparse.Namespace) -> None:
    """An update of ours beside one of transformers on ``args.hf``: seconds and memory."""
    options = {"prompt": args.prompt, "length": args.length, "micro": args.micro}
    clock = "cpu_seconds" if args.cpu_time else "seconds"
    with Side("ours", args.hf, options) as here, Side("transformers", args.hf, options) as there:
        measured = compare([here, there], clock, args.steps, "update", rows=args.rows)
    rows: list[list[object]] = []
    for label, figure in (("seconds, median", "median"), ("seconds, least", "min"), ("peak memory, GiB", "peak_gib")):
        ours, theirs = (measured[name][figure] for name in ("ours", "transformers"))
        rows.append([label, ours, theirs, ours / theirs])
    text = table(["an update", "ours", "transformers", "ours / transformers"], rows)
    width = args.prompt + args.length
    time_of = "CPU" if args.cpu_time else "wall"
    title = f"{args.hf.name}, {time_of} time: update of {args.rows} × {width}, micro batch {args.micro}"
    report(title, [text], {"options": options, "rows": args.rows, "measured": measured}, args.out)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="steps of each role's phase (5), or updates that count (3)")
    parser.add_argument("--hf", type=Path, metavar="FOLDER", help="a Hugging Face folder whose update is measured")
    parser.add_argument("--rows", type=int, default=32, help="with --hf: rows of an update")
    parser.add_argument("--prompt", type=int, default=64, help="with --hf: tokens of a prompt")
    parser.add_argument("--length", type=int, default=64, help="with --hf: tokens of a response")
    parser.add_argument("--micro", type=int, default=8, help="with --hf: rows of a micro batch")
    parser.add_argument("--cpu-time", action="store_true", help="with --hf: count CPU seconds")
    parser.add_argument("--latency-ms", type=float, default=20.0, help="of the judge, per request")
    parser.add_argument("--calls", type=int, default=PUBLISHED_CALLS, help="requests per sample, published schedule")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args, words = parser.parse_known_args()
    settle()
    args.steps = args.steps or (5 if args.hf is None else 3)
    if args.hf is not None:
        if words:
            parser.error(f"--hf takes its model from the folder, and no overrides: {' '.join(words)}")
        on_folder(args)
        return

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cfg = configured(words, args.latency_ms / 1000, folder)
        # The judge's own process imports the guard from here.
        here = str(Path(__file__).resolve().parent)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))

        from nemo_magic.compat import cpu

        cpu.install(announce=False)
        from nemo_magic.judge.local import launch_local
        from nemo_magic.rollout.reward_manager import RewardManager
        from nemo_magic.training.policies import build_policies

        def reward_manager(judge: object, pair: PolicyPair) -> RewardManager:
            return RewardManager(pair.world, judge, cfg.rewards, cfg.game.extra_verdict_fields)  # type: ignore[arg-type]

        with launch_local(cfg.judge) as judge, build_policies(cfg) as pair:
            # Asked for one sample at a time, one unknown verdict is all of them.
            lenient = replace(judge.config, max_unknown_share=1.0)
            with closing(reward_manager(judge.config, pair)) as ours, closing(reward_manager(lenient, pair)) as theirs:
                play(cfg, pair, ours, theirs, 1, 1, folder / "warm-up")
                measured = play(cfg, pair, ours, theirs, args.steps, args.calls, folder / "measured")
    texts, numbers = tables(measured, args.steps, args.calls)
    options = {"steps": args.steps, "latency_ms": args.latency_ms, "calls": args.calls, "overrides": words}
    title = f"Steps ({args.latency_ms:g} ms, {args.steps} steps a phase, {args.calls} published calls per sample)"
    report(title, texts, {"options": options, "roles": numbers}, args.out)


if __name__ == "__main__":
    main()
