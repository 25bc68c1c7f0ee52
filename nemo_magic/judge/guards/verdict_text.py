"""The verdict in a model's text, without what the model thought aloud and the blanks that servers leave."""

from __future__ import annotations

_BEGIN, _END = "<think>", "</think>"


def verdict_text(text: str) -> str:
    """The lines after the reasoning, with line feeds between; blanks at their ends, empty lines and a byte order mark
    are gone.

    Reasoning is ``<think>…</think>`` before the verdict, empty or not. Its first tag may be part of the prompt.

    Raises:
        ValueError: the reasoning has no end, or more than one, or something before it: a verdict there is not the
            model's last word.
    """
    reasoning, _, verdict = text.rpartition(_END)
    if _END in reasoning or _BEGIN in verdict or reasoning.rpartition(_BEGIN)[0].strip():
        raise ValueError("the guard's text is not a verdict after at most one block of reasoning")
    verdict = verdict.strip().removeprefix("\ufeff").strip()
    lines = (line.rstrip(" \t\r") for line in verdict.split("\n"))
    return "\n".join(line for line in lines if line)
