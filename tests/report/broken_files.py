"""What a run's files must not be: content that parses to another shape, or not at all."""

from __future__ import annotations

from pathlib import Path

_NO_MAPPINGS = (b"[1, 2]", b'"text"', b"5")
_BROKEN = {
    "config.yaml": (
        *_NO_MAPPINGS, b"game: [1\n", b"\xff\xfe", b"game: null\n", b"game: 5\n", b"judge: [a]\n",
        b"a: &a [*a]\nb: !!python/x y\n",
        b"actors: {attacker: no}\n", b"game: {schedule: [1]}\n", b"{" * 5000,
    ),
    "metrics.jsonl": (
        *(content + b"\n" for content in _NO_MAPPINGS), b"{broken\n", b"{}\n", b"\xff\n",
        b'{"step": "x", "phase": "p", "phase_index": 0, "learner": null}\n',
        b'{"step": 1, "phase": "p", "phase_index": 0, "learner": null, "a": [1]}\n',
    ),
    "crossplay.json": (*_NO_MAPPINGS, b"{broken", b"{}", b'{"attackers": 1, "defenders": 2, "asr": 3}', b"\xff"),
    "strategies.json": (*_NO_MAPPINGS, b"{broken", b"{}", b'{"end": 1}', b'{"end": {"worst": "x", "mean": 0}}'),
}  # fmt: skip
_OF_A_REPORT_ONLY = {
    "alarms.jsonl": (b"[1]\n", b"{broken\n", b"{}\n"),
    "cross-play/league.json": (
        b"[1, 2]", b"{broken", b"{}", b'{"attackers": ["a"], "defenders": ["b"], "asr": {"matrix": [[1], [1]]}}',
        b'{"attackers": ["a"], "defenders": ["b"], "asr": {"matrix": [[1]], "low": [[1]], "high": [[1]], '
        b'"last_defender": {"exploitability": {"value": null, "low": 0, "high": 0}}}}',
    ),
    "attacks/attacks.json": (b"{}", b'{"attacks": 1, "bins": [1], "strategies": [], "self_bleu": {}, "pool": "none"}'),
}  # fmt: skip
BROKEN = [(name, content) for name, contents in _BROKEN.items() for content in contents]
"""(name of the file, what stands in it)"""
BROKEN_FOR_A_REPORT = [(name, content) for name, contents in _OF_A_REPORT_ONLY.items() for content in contents]
"""The same, of files that only a report reads."""


def break_file(run: Path, name: str, content: bytes) -> Path:
    """Write it, as old as the file that was there."""
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_bytes(content)
    return run / name
