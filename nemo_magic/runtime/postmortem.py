"""Which rank a run died of. Imports neither torch nor NeMo.

Read are what the launcher noted of a killed rank (``killed.txt``), what the watchdogs wrote (``hangs/``) and, in
``logs/<attempt>`` of the newest attempt, what torch's flight recorder did (``nccl_trace_rank_N``), the ends of the
ranks' logs (``rank-NNNN.log``) and srun's own (``srun.log``).
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import re
import signal
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_magic.runtime.killed import NOTE
from nemo_magic.runtime.watchdog import FOLDER, HOSTS, RankPosition, alarm_of

LOGS = "logs"
_TRACE = "nccl_trace_rank_"
_MOST_RANKS = 1 << 20
_COLLECTIVE = re.compile(r"torch/distributed/|/gloo|/nccl")
# srun: error: node7: task 12: Killed, and tasks 12-15 where several ended alike
_SRUN = re.compile(r"srun: error: (?P<host>\S+): tasks? (?P<ranks>[\d,-]+): (?P<how>.+)")
# slurmstepd: error: Detected 1 oom_kill event in StepId=4.0, and srun: error: node7: task 12: Out Of Memory
_OOM = re.compile(r"^(srun|slurmstepd).*(oom.?kill|out of memory)", re.IGNORECASE)
# What the run says when it knows why it ends; one rank speaks for all.
_SELF = ("nemo-magic train: ", "nemo-magic sft: ")
_ERROR = re.compile(
    r"^(\[rank\d+\]: )?\S*(Error|Exception|Interrupt)\b|^nemo-magic |^srun: error|CUDA error|Killed|Segmentation fault"
)


def report(folder: Path) -> Iterator[str]:
    """What is known, the culprit last. What cannot be read is left out.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give the folder of a run")
    logs, positions = newest_logs(folder), read_positions(folder / FOLDER)
    last = dict(last_errors(logs)) if logs else {}
    for rank, line in last.items():
        yield f"rank {rank} said last: {line}"
    # Files of an earlier attempt say nothing about this one.
    if logs is not None and positions and positions[0].attempt != logs.name and _looks_like_an_attempt(logs.name):
        positions = []
    for position in positions:
        yield (
            f"rank {position.rank} on {position.host}: step {position.step}, {position.part}, "
            f"since {position.moved_ago:.0f} s; {_innermost_frame(position)}"
        )
    lagging = list(behind(dict(read_traces(logs)))) if logs else []
    yield from lagging
    ended = first_ended(logs) if logs else None
    for line in out_of_memory(logs) if logs else ():
        yield f"out of memory, says Slurm: {line}"
    if (folder / NOTE).is_file() and (killed := (folder / NOTE).read_text(encoding="utf-8", errors="replace").strip()):
        yield f"culprit: {killed}"
    elif positions:
        yield f"culprit: {culprit(positions, read_hosts(folder / FOLDER, positions[0].attempt))}"
    elif messages := [line for line in last.values() if line.startswith(_SELF)]:
        yield f"the run ended by itself: {messages[0]}"
    elif lagging:
        yield f"culprit: {lagging[0]}"
    elif len(last) == 1:
        yield f"culprit: rank {next(iter(last))}{_ended_by(ended)}, the only one that failed by itself"
    elif ended:
        yield f"culprit: rank {ended['ranks']} on {ended['host']} ended first: {ended['how']}"
    elif not last:
        yield f"{folder}: no watchdog, flight recorder or rank log says anything of a failure"


def _ended_by(ended: Mapping[str, str] | None) -> str:
    return f" (srun: rank {ended['ranks']} on {ended['host']} ended first, {ended['how']})" if ended else ""


def _looks_like_an_attempt(name: str) -> bool:
    return re.fullmatch(r"\d+\.\d+", name) is not None


def newest_logs(folder: Path) -> Path | None:
    """The folder of rank logs that was written last."""
    folders = [path for path in (folder / LOGS).glob("*") if path.is_dir()]
    return max(folders, key=lambda path: path.stat().st_mtime, default=None)


def read_positions(folder: Path) -> list[RankPosition]:
    """The ranks' positions in the newest attempt, by rank, that were written in time.

    A stopped process goes on when it is told to end, and could then still write down where it has got to since.
    """
    dated = []
    for path in folder.glob("rank-*.json"):
        try:
            position = RankPosition(**json.loads(path.read_text(encoding="utf-8")))
            if _is_whole(position):
                dated.append((path.stat().st_mtime, position))
        except (OSError, ValueError, TypeError):
            continue
    if not dated:
        return []
    newest = max(dated, key=lambda item: item[0])[1]
    alarm = alarm_of(folder, newest.attempt)
    raised = alarm.stat().st_mtime if alarm.exists() else max(time for time, _ in dated)
    positions = {
        position.rank: position
        for time, position in dated
        if (position.attempt, position.world) == (newest.attempt, newest.world) and time - raised <= position.grace
    }
    return [positions[rank] for rank in sorted(positions)]


def _is_whole(position: RankPosition) -> bool:
    """Whether every field is of its type: a node that goes down may leave anything."""
    words = (position.attempt, position.host, position.part)
    counts = (position.rank, position.world, position.step, position.moves)
    seconds = (position.moved_ago, position.grace)
    return (
        all(isinstance(word, str) for word in words)
        and all(type(count) is int for count in counts)
        and 0 <= position.rank < position.world <= _MOST_RANKS
        and all(isinstance(number, int | float) and math.isfinite(number) for number in seconds)
        and isinstance(position.children, list)
        and isinstance(position.stacks, dict)
        and all(
            isinstance(stack, list) and stack and all(isinstance(frame, str) for frame in stack)
            for stack in position.stacks.values()
        )
    )


def read_hosts(folder: Path, attempt: str) -> Sequence[str]:
    """Where the ranks of an attempt ran, rank 0 first; empty where it is not known."""
    try:
        hosts = json.loads((folder / HOSTS).read_text(encoding="utf-8"))
        names = hosts["names"] if hosts["attempt"] == attempt else []
    except (OSError, ValueError, LookupError, TypeError):
        return ()
    return names if isinstance(names, list) else ()


def culprit(positions: Sequence[RankPosition], hosts: Sequence[str] = ()) -> str:
    """The one that is not where the others wait. ``hosts``: of each rank, where that is known.

    A rank whose watchdog wrote nothing has no running process: stopped, or its node is gone. Otherwise the rank that
    got least far; of those equally far, one that is not inside a collective, else one that waits for a process of its
    own (a checkpoint's writer), else the one that is alone at its spot.
    """
    world = positions[0].world
    silent = sorted(set(range(world)) - {position.rank for position in positions})
    waiting = f"the others wait in {_most_common([position.part for position in positions])}, step {positions[0].step}"
    if silent:
        listed = ", ".join(f"{rank} on {hosts[rank]}" if rank < len(hosts) else str(rank) for rank in silent)
        return (
            f"rank{'s' if len(silent) > 1 else ''} {listed}: nothing was written in time; the process was stopped, "
            f"killed or cut off, or its node is gone; {waiting}"
        )
    least = min((position.step, position.moves) for position in positions)
    behind = [position for position in positions if (position.step, position.moves) == least]
    if len(behind) == world:
        outside = [position for position in positions if not _in_collective(position)]
        writing = [position for position in positions if position.children]
        behind = next((some for some in (outside, writing) if 0 < len(some) < world), _outliers(positions))
    if not behind:
        spots = "; ".join(dict.fromkeys(_innermost_frame(position) for position in positions))
        return f"none stands out: all {world} ranks are equally far, in step {positions[0].step}, at {spots}"
    listed = "; ".join(
        f"rank {p.rank} on {p.host} in step {p.step}, {p.part}, at {_innermost_frame(p)}{_children(p)}" for p in behind
    )
    others = [position for position in positions if position not in behind]
    part, spot = (
        _most_common([position.part for position in others]),
        _most_common([_innermost_frame(position) for position in others]),
    )
    return f"{listed}; the others wait in {part}, at {spot}"


def _children(position: RankPosition) -> str:
    pids = ", ".join(map(str, position.children))
    return f", with a process of its own that has not ended (a checkpoint's writer?): {pids}" if pids else ""


def _outliers(positions: Sequence[RankPosition]) -> list[RankPosition]:
    counts = Counter(_innermost_frame(position) for position in positions)
    rare = min(counts.values())
    return (
        [position for position in positions if counts[_innermost_frame(position)] == rare]
        if rare < max(counts.values())
        else []
    )


def _in_collective(position: RankPosition) -> bool:
    # The innermost only: what a signal's handler or a hook does on top of a collective is no waiting for others.
    return any(_COLLECTIVE.search(frame) for frame in position.stacks.get("main", [])[:1])


def _innermost_frame(position: RankPosition) -> str:
    """The innermost frame that says something: ours rather than a library's."""
    frames = position.stacks.get("main", ["nowhere"])
    own = next((frame for frame in frames if "nemo_magic" in frame), frames[0])
    return frames[0] if own == frames[0] else f"{own} → {frames[0]}"


def _most_common(words: Sequence[str]) -> str:
    return Counter(words).most_common(1)[0][0]


def last_errors(logs: Path) -> Iterator[tuple[int, str]]:
    """(rank, last line of its log that tells of an error)."""
    for path in sorted(logs.glob("rank-*.log")):
        rank = path.stem.removeprefix("rank-")
        if not rank.isdecimal() or not path.is_file():
            continue
        with path.open("rb") as file:
            file.seek(max(0, os.path.getsize(path) - 20_000))
            lines = file.read().decode(errors="replace").splitlines()
        last = next((line for line in reversed(lines) if _ERROR.search(line)), None)
        if last is not None:
            yield int(rank), last.strip()


def first_ended(logs: Path) -> Mapping[str, str] | None:
    """host, ranks, how: the first rank whose failing end srun told of; it ended the others."""
    path = logs / "srun.log"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    match = _SRUN.search(text)
    if not match:
        return None
    code = re.search(r"exit code (\d+)", match["how"])
    number = int(code[1]) - 128 if code else 0
    name = f" ({signal.Signals(number).name})" if number in {one.value for one in signal.Signals} else ""
    return match.groupdict() | {"how": match["how"] + name}


def out_of_memory(logs: Path) -> Iterator[str]:
    """What Slurm wrote into srun.log of processes that were killed for lack of memory, line by line."""
    path = logs / "srun.log"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    yield from dict.fromkeys(line.strip() for line in text.splitlines() if _OOM.search(line))


class _Plain(pickle.Unpickler):
    """The flight recorder's files are pickles of lists, dicts, strings and numbers; nothing else is let in."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a flight recorder's file")


def read_traces(logs: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(rank, its last collective that did not complete, or the last of all) as torch 2.4 writes them."""
    for path in sorted(logs.glob(f"{_TRACE}*")):
        try:
            rank = int(path.name.removeprefix(_TRACE))
            entries = _Plain(io.BytesIO(path.read_bytes())).load()["entries"]
        except Exception:  # the unpickler says what is wrong with a cut file in a dozen ways
            continue
        if isinstance(entries, list) and entries and all(isinstance(entry, Mapping) for entry in entries):
            yield rank, next((entry for entry in entries if entry.get("state") != "completed"), entries[-1])


def behind(collectives: Mapping[int, Mapping[str, Any]]) -> Iterator[str]:
    """Flight recorders: who has not come as far as the others, by the number of the collective in its group."""

    def number(entry: Mapping[str, Any]) -> int:
        value = entry.get("collective_seq_id", entry.get("seq_id", 0))
        return value if isinstance(value, int) else 0

    groups: dict[str, dict[int, Mapping[str, Any]]] = {}
    for rank, entry in collectives.items():
        groups.setdefault(str(entry.get("process_group", "")), {})[rank] = entry
    for group, ranks in groups.items():
        least, most = min(map(number, ranks.values())), max(map(number, ranks.values()))
        for rank, entry in sorted(ranks.items()):
            if number(entry) == least < most:
                name, state = entry.get("profiling_name", "?"), entry.get("state", "?")
                yield (
                    f"flight recorder: rank {rank} is at collective {least} ({name}, {state}) of group {group}, "
                    f"others at {most}"
                )
