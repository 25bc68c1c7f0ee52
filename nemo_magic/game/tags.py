"""The attacker's output format: one ``<think>…</think>``, then one ``<answer>…</answer>``, and nothing else."""

from __future__ import annotations

import re
from dataclasses import dataclass

_WELL_FORMED = re.compile(r"\s*<think>(?P<reasoning>.*?)</think>\s*<answer>(?P<answer>.*?)</answer>\s*", re.DOTALL)
_TAG = re.compile(r"</?(?:think|answer)>")
# A think block that never closes hides everything after it: the defender must not see reasoning.
_THINK_BLOCK = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Tagged:
    """A parsed completion. ``visible``: the text that the other role reads."""

    reasoning: str
    visible: str
    format_ok: bool


def parse(text: str, empty_answer_ok: bool = False) -> Tagged:
    """Split a completion into reasoning and visible text, and check its format (paper section 4.2, ``R_fmt``).

    With the format kept, only the inside of ``<answer>`` is visible. With broken tags, everything outside think blocks
    is, with stray tags removed. ``empty_answer_ok``: tags around nothing keep the format too (the published code).
    """
    match = _WELL_FORMED.fullmatch(text)
    if match and len(_TAG.findall(text)) == 4:
        answer = match["answer"].strip()
        return Tagged(match["reasoning"].strip(), answer, bool(answer) or empty_answer_ok)
    outside = _THINK_BLOCK.sub(" ", text)
    # A closing tag without its opening one still ends reasoning.
    outside = outside.rpartition("</think>")[2]
    return Tagged("", " ".join(_TAG.sub(" ", outside).split()), False)


def is_tag(text: str) -> bool:
    """Whether ``text`` is a tag of the format and nothing else."""
    return _TAG.fullmatch(text) is not None


def tagged(reasoning: str, answer: str) -> str:
    """The completion with this reasoning and this answer, in the format that ``parse`` accepts."""
    return f"<think> {reasoning.strip()} </think> <answer> {answer.strip()} </answer>"
