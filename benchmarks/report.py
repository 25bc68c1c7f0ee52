"""A report of very many rows: how long it takes to write, how large it is, and how long a browser takes to open it.

    python benchmarks/report.py runs/magic_sandbox --rows 1000000

The run's own rows and conversations are repeated, step by step renumbered, until there are that many of either. Opened
means: loaded, and the first charts drawn, which is when it can be read. Exit status 1 beyond 15 MB or 3 seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "browser"))

import chromium

from nemo_magic.report.page import write
from nemo_magic.report.run_folder import RunFolder

MAX_MB, MAX_SECONDS = 15.0, 3.0
READABLE = (
    """() => document.querySelector('.chart[data-drawn="done"]') !== null && document.readyState === 'complete'"""
)


def main() -> int:
    """Write the page, open it and print what both took. Exit status 1 beyond the limits."""
    about = str(__doc__)
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--opened", type=int, default=3, help="how often it is opened; the median counts")
    parser.add_argument("--keep", type=Path, help="where to leave the page")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / args.run.name
        conversations = stretch(args.run, folder, args.rows)
        began = time.perf_counter()
        run = RunFolder(folder)
        read = time.perf_counter()
        page = write([run], Path(home) / "report.html")
        end = time.perf_counter()
        size = page.stat().st_size / 1e6
        seconds = opened(page, args.opened)
        if args.keep:
            shutil.copy(page, args.keep)
    print(f"{run.rows:,} rows of figures, {conversations:,} conversations")
    print(f"read in {read - began:.1f} s, written in {end - read:.1f} s, {size:.1f} MB")
    wall, cpu = (statistics.median(measured) for measured in zip(*seconds, strict=True))
    each = ", ".join(f"{one:.2f}" for one, _ in seconds)
    print(f"opened in {wall:.2f} s (of {each}), {cpu:.2f} s of them computing; load average {os.getloadavg()[0]:.1f}")
    return int(size > MAX_MB or wall > MAX_SECONDS)


def stretch(run: Path, folder: Path, rows: int) -> int:
    """A run like ``run`` with ``rows`` rows of figures and about as many conversations, whose number is returned."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoints", "snapshots", "samples", "tensorboard"))
    own = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    per_phase = 15
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(rows):
            row = own[step % len(own)] | {"step": step, "phase_index": step // per_phase}
            file.write(json.dumps(row) + "\n")
    samples = [path.read_text().splitlines() for path in sorted((run / "samples").glob("*.jsonl"))]
    (folder / "samples").mkdir()
    count, step = 0, 0
    while samples and count < rows:
        step += 1
        lines = samples[step % len(samples)]
        text = "".join(json.dumps(json.loads(line) | {"step": step}) + "\n" for line in lines)
        (folder / "samples" / f"step_{step:04d}.jsonl").write_text(text)
        count += len(lines)
    return count


def opened(page: Path, times: int) -> list[tuple[float, float]]:
    """Seconds from asking for the page until it is loaded and its first chart is drawn, and those of them in which its
    thread computed, which others' load does not change; each time in a fresh context."""
    seconds = []
    with chromium.browser() as browser:
        for _ in range(times):
            context = browser.new_context(viewport={"width": 1440, "height": 900})
            tab = context.new_page()
            session = context.new_cdp_session(tab)
            session.send("Performance.enable", {"timeDomain": "threadTicks"})
            began = time.perf_counter()
            tab.goto(page.as_uri())
            tab.wait_for_function(READABLE)
            wall = time.perf_counter() - began
            metrics = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
            seconds.append((wall, metrics["ThreadTime"]))
            context.close()
    return seconds


if __name__ == "__main__":
    sys.exit(main())
