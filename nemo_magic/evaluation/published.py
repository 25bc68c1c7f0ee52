"""The paper's own figures (arXiv 2602.01539, Tables 1 and 2), to stand beside what was measured."""

from __future__ import annotations

PUBLISHED: dict[str, dict[str, float]] = {
    "Qwen2.5-7B-Instruct": {
        "WildGuardTest adversarial": 0.365,
        "WildJailbreak": 0.701,
        "DAN": 0.327,
        "HarmBench adversarial": 0.363,
        "HarmBench vanilla": 0.250,
        "OR-Bench toxic": 0.892,
        "XSTest harmful": 0.800,
        "StrongREJECT": 0.964,
        "WildJailbreak benign": 0.992,
        "XSTest benign": 0.940,
        "IFEval prompt-loose": 0.749,
        "ARC-C": 0.592,
        "GPQA": 0.342,
        "MMLU": 0.733,
    },
    "Qwen2.5-7B-Instruct + MAGIC": {
        "WildGuardTest adversarial": 0.023,
        "WildJailbreak": 0.198,
        "DAN": 0.043,
        "HarmBench adversarial": 0.055,
        "HarmBench vanilla": 0.019,
        "OR-Bench toxic": 0.977,
        "XSTest harmful": 0.860,
        "StrongREJECT": 0.988,
        "WildJailbreak benign": 0.968,
        "XSTest benign": 0.945,
        "IFEval prompt-loose": 0.745,
        "ARC-C": 0.592,
        "GPQA": 0.308,
        "MMLU": 0.735,
    },
}
"""Model → name of a figure (``Figure.published``) → rate."""


def published_row(model: str | None) -> dict[str, float]:
    """The figures of the model of that name, whatever organisation precedes it and however it is spaced; else none."""
    key = _normalize(model or "")
    return next((row for name, row in PUBLISHED.items() if _normalize(name) == key), {})


def _normalize(name: str) -> str:
    return "".join(name.rpartition("/")[2].split()).lower()
