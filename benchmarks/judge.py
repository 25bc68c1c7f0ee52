"""How much a judge takes, what it adds to its model, and what the published way of asking it costs.

    python benchmarks/judge.py load [--minutes 10] [--batch 64] [--concurrency 2]
    python benchmarks/judge.py overhead [--latency-ms 50] [--parallel 64] [--rounds 40] [--repeats 5]
    python benchmarks/judge.py reference [--latency-ms 50] [--seeds 64] [--group 4]

``load``: the sandbox's rules, verdicts per second and latency of a request as the client sees it, memory of the server.
``overhead``: Qwen3Guard in front of a model that answers every question after ``--latency-ms``, ``--parallel`` at once,
against the same questions put to such a model directly, in turn, and against rounds × latency, which a timer that rings
late never reaches; medians. ``reference``: the same model; the published code asks for one sample at a time, prompt
and response in two calls, and for all of it again to log it. All over HTTP to a server process on this machine.
``--out FILE`` writes the figures as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
from figures import report, settle, table

from nemo_magic.game.episode import Message
from nemo_magic.judge.client import JudgeClient
from nemo_magic.judge.config import JudgeConfig
from nemo_magic.judge.guards.qwen3guard import Qwen3Guard
from nemo_magic.judge.local import LocalJudge, launch_local
from nemo_magic.judge.models.base import Sent
from nemo_magic.judge.protocol import JudgeItem, has_unknown, make_item
from nemo_magic.judge.telemetry import NO_TELEMETRY, Telemetry
from nemo_magic.sandbox.corpus import prepare
from nemo_magic.sandbox.language import PLAIN, all_strategies, render
from nemo_magic.sandbox.rules import REFUSAL, delivery
from nemo_magic.sandbox.world import SandboxConfig, SandboxWorld

RESPONSE = ("refusal", "response_safety")


class SlowModel:
    """Answers every question after ``latency_s``, ``parallel`` of them at once."""

    name, revision, takes_schema = "slow", "1", False

    def __init__(self, latency_s: float, parallel: int) -> None:
        self.telemetry: Telemetry = NO_TELEMETRY
        self._latency = latency_s
        self._slots = asyncio.Semaphore(parallel)

    async def start(self) -> None:
        """There is nothing to start."""
        return

    async def complete(self, sent: Sent, max_tokens: int, schema: Mapping[str, Any] | None = None) -> str:
        """Safe, after the latency."""
        async with self._slots:
            await asyncio.sleep(self._latency)
        refusal = "\nRefusal: No" if len(sent) > 1 else ""
        return f"Safety: Safe\nCategories: None{refusal}"

    async def close(self) -> None:
        """There is nothing to close."""
        return


def slow_guard(latency_s: float, parallel: int) -> Qwen3Guard:
    """Qwen3Guard in front of a SlowModel, without a cache."""
    return Qwen3Guard(SlowModel(latency_s, parallel))


def conversations(world: SandboxWorld, draw: random.Random, count: int) -> list[tuple[str, str]]:
    """(rewrite, reply) of the sandbox."""
    strategies = [PLAIN, *all_strategies(1), *all_strategies(2)]
    made = []
    for _ in range(count):
        item = draw.choice(world.items_of_train)
        reply = REFUSAL if draw.random() < 0.5 else delivery(world, item)
        made.append((render(world, draw.choice(strategies), item), reply))
    return made


def items_of(talks: Sequence[tuple[str, str]], ask: Sequence[str], nonce: int) -> list[JudgeItem]:
    """One item a conversation; ``nonce`` makes their ids differ from other calls'."""
    return [
        make_item(f"{nonce}.{i}", (Message("user", prompt), Message("assistant", reply)), ask=ask)
        for i, (prompt, reply) in enumerate(talks)
    ]


def memory_mb(pid: int) -> float:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]) / 1000


def model_calls(judge: LocalJudge) -> float:
    """How often the judge has called its model."""
    page = httpx.get(f"{judge.url}/metrics", trust_env=False).text
    return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith("judge_model_calls_total"))


def load(args: argparse.Namespace, folder: Path) -> tuple[str, dict[str, Any]]:
    """Throughput, latency and memory under load."""
    sandbox = SandboxConfig(folder=str(folder), attack_rows=1, defender_rows=1)
    guard = {"world": str(prepare(sandbox) / "world.json")}
    world, draw = SandboxWorld(sandbox), random.Random(0)
    batches = [conversations(world, draw, args.batch) for _ in range(200)]
    # Asking takes less time than judging, but not none: a client of its own thread leaves the other core to the judge.
    with launch_local(JudgeConfig(guard="rules", guard_config=guard)) as judge:
        cfg = replace(judge.config, batch_size=args.batch, max_concurrency=args.concurrency)
        with JudgeClient(cfg) as client:
            client.wait_ready(60)
            seconds: list[float] = []
            memory: list[float] = []
            lost = done = sent = 0
            pending: list[tuple[float, Future[Any]]] = []
            began = time.monotonic()
            next_look = began + min(30.0, args.minutes * 6)
            while pending or time.monotonic() - began < args.minutes * 60:
                while len(pending) < args.concurrency and time.monotonic() - began < args.minutes * 60:
                    items = items_of(batches[sent % len(batches)], RESPONSE, sent)
                    pending.append((time.monotonic(), client.score(items)))
                    sent += 1
                sent_at, future = pending.pop(0)
                verdicts = future.result()
                seconds.append(time.monotonic() - sent_at)
                done += len(verdicts)
                lost += args.batch - len(verdicts) + sum(map(has_unknown, verdicts))
                if time.monotonic() > next_look:
                    memory.append(memory_mb(judge.pid))
                    next_look += max(30.0, args.minutes * 6)
            took = time.monotonic() - began
    cuts = quantiles(seconds, n=100)
    figures = {
        "verdicts_per_second": done / took, "verdicts": done, "lost": lost,
        "p50_ms": median(seconds) * 1000, "p99_ms": cuts[98] * 1000, "max_ms": max(seconds) * 1000,
        "memory_mb": memory,
    }  # fmt: skip
    row = [done, round(done / took), lost, *(round(figures[k], 1) for k in ("p50_ms", "p99_ms", "max_ms"))]
    ends = f"{memory[0]:.0f} → {memory[-1]:.0f}" if memory else "–"
    columns = ["verdicts", "per second", "lost", "p50, ms", "p99, ms", "most, ms", "server's memory, MB"]
    return table(columns, [[*row, ends]]), figures


def overhead(args: argparse.Namespace, folder: Path) -> tuple[str, dict[str, Any]]:
    """Seconds through the judge beside seconds of the model alone."""
    latency_s = args.latency_ms / 1000
    count = args.parallel * args.rounds

    async def ask_model(items: Sequence[JudgeItem]) -> None:
        model = SlowModel(latency_s, args.parallel)
        await asyncio.gather(*(model.complete(item.conversation, 1) for item in items))

    alone, served = [], []
    settings = {"latency_s": latency_s, "parallel": args.parallel}
    with launch_local(JudgeConfig(guard="judge:slow_guard", guard_config=settings)) as judge:
        cfg = replace(judge.config, batch_size=args.parallel, max_concurrency=4)
        with JudgeClient(cfg) as client:
            client.wait_ready(60)
            for repeat in range(-1, args.repeats):
                items = items_of([(f"ask {repeat} {i}", f"reply {i}") for i in range(count)], RESPONSE, repeat)
                alone.append(_seconds(lambda items=items: asyncio.run(ask_model(items))))
                served.append(_seconds(lambda items=items: client.score(items).result()))
    # The first of each warms up.
    ideal, model, judged = args.rounds * latency_s, median(alone[1:]), median(served[1:])
    figures = {
        "ideal_s": ideal, "model_s": alone[1:], "judge_s": served[1:],
        "added": judged / model - 1, "added_to_ideal": judged / ideal - 1,
    }  # fmt: skip
    columns = ["questions", "rounds × latency, s", "model alone, s", "through the judge, s", "added", "added to rounds"]
    row = [count, ideal, model, judged, figures["added"], figures["added_to_ideal"]]
    return table(columns, [row]), figures


def _seconds(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def reference(args: argparse.Namespace, folder: Path) -> tuple[str, dict[str, Any]]:
    """Calls and seconds of our way of asking and of the published one. A group shares its rewrite; replies differ."""
    settings = {"latency_s": args.latency_ms / 1000, "parallel": 64}
    talks = [(f"ask {seed}", f"reply {seed} {g}") for seed in range(args.seeds) for g in range(args.group)]

    def ours(client: JudgeClient) -> None:
        client.score(items_of(talks, RESPONSE, 0)).result()

    def published(client: JudgeClient) -> None:
        for purpose in ("reward", "log"):
            for i, (prompt, reply) in enumerate(talks):
                prompt_item = make_item(f"{purpose}{i}", (Message("user", prompt),), ask=("prompt_safety",))
                client.score([prompt_item]).result()
                conversation = (Message("user", prompt), Message("assistant", reply))
                client.score([make_item(f"{purpose}{i}", conversation, ask=RESPONSE)]).result()

    rows, figures = [], {}
    with launch_local(JudgeConfig(guard="judge:slow_guard", guard_config=settings)) as judge:
        for name, way in (("ours", ours), ("published", published)):
            with JudgeClient(judge.config) as client:
                client.wait_ready(60)
                before, began = model_calls(judge), time.monotonic()
                way(client)
                figures[name] = {"seconds": time.monotonic() - began, "calls": model_calls(judge) - before}
            rows.append([name, figures[name]["seconds"], int(figures[name]["calls"])])
    ratio = {key: figures["published"][key] / figures["ours"][key] for key in ("seconds", "calls")}
    rows.append(["published / ours", ratio["seconds"], round(ratio["calls"], 2)])
    return table(["", "wall time, s", "calls of the model"], rows), figures | {"ratio": ratio}


MODES: dict[str, Callable[[argparse.Namespace, Path], tuple[str, dict[str, Any]]]] = {
    "load": load, "overhead": overhead, "reference": reference
}  # fmt: skip


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--latency-ms", type=float, default=50.0)
    parser.add_argument("--parallel", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=64)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    settle()
    # The server process has to find the guard of this file.
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory() as folder:
        text, figures = MODES[args.mode](args, Path(folder))
    report(
        f"Judge, {args.mode}", [text], {"mode": args.mode, "arguments": vars(args) | {"out": None}} | figures, args.out
    )


if __name__ == "__main__":
    main()
