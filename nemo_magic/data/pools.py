"""Supervised pools: attacks (phase 1 of the paper) and chats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from nemo_magic.data.errors import DataError
from nemo_magic.data.seeds import LABEL_COLUMNS, TEXT_COLUMNS, read_label
from nemo_magic.data.streams import read_table
from nemo_magic.data.tables import DropReport, Table, text_of
from nemo_magic.game import tags
from nemo_magic.game.episode import Message, Seed

T = TypeVar("T")

REWRITE_COLUMNS = ("rewrite", "adversarial", "attack", "revised")
REASONING_COLUMNS = ("reasoning", "think", "thinking", "rationale")
STRATEGY_COLUMNS = ("strategy", "tactic", "mutation")
HISTORY_COLUMNS = ("history",)
RESPONSE_COLUMNS = ("response", "completion", "answer", "output")


@dataclass(frozen=True)
class AttackRow:
    """One demonstration: the rewrite of ``seed``, its reasoning, and its strategy, which may be empty.

    ``history``: (the attacker's completion, tags included; the defender's reply) of each turn before.
    """

    seed: Seed
    strategy: str
    reasoning: str
    rewrite: str
    history: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class ChatRow:
    """One demonstration of an answer: a chat and the response to it."""

    messages: tuple[Message, ...]
    response: str


def read_attack_pool(path: str) -> tuple[list[AttackRow], DropReport]:
    """Rows of seed, label, reasoning, rewrite and, where there are such columns, strategy and history.

    Raises:
        DataError: a column is missing, or no row can be used.
    """
    report = DropReport()
    table = read_table(path, report, "sft.pool")
    text = table.column("seed query", ("seed", *TEXT_COLUMNS))
    label = table.column("label", LABEL_COLUMNS)
    rewrite = table.column("rewrite", REWRITE_COLUMNS)
    reasoning = table.column("reasoning", REASONING_COLUMNS)
    strategy = table.column("strategy", STRATEGY_COLUMNS) if table.has(STRATEGY_COLUMNS) else None
    history = table.column("history", HISTORY_COLUMNS) if table.has(HISTORY_COLUMNS) else None
    rows = []
    for number, row in enumerate(table.rows):
        past = _history(row.get(history)) if history else ()
        cells = {name: text_of(row.get(column)) for name, column in (("seed", text), ("rewrite", rewrite))}
        kind = read_label(row.get(label))
        empty = [name for name, cell in cells.items() if not cell]
        if empty:
            report.drop(f"empty {empty[0]}")
        elif kind is None:
            report.drop(f"label {text_of(row.get(label))!r} means neither harmful nor benign")
        elif past is None:
            report.drop("history is no list of objects with rewrite and reply")
        else:
            seed = Seed(f"{table.path.stem}/{number}", cells["seed"], kind)
            name = text_of(row.get(strategy)) if strategy else ""
            rows.append(AttackRow(seed, name, text_of(row.get(reasoning)), cells["rewrite"], past))
    return _not_empty(rows, table, report), report


def read_rewrites(path: str) -> dict[str, list[str]]:
    """Seed text → its rewrites, from a table with a column of seeds and one of rewrites; rows without either are left
    out.

    Raises:
        DataError: no row has both.
    """
    report = DropReport()
    table = read_table(path, report, "--attacker")
    text = table.column("seed query", ("seed", *TEXT_COLUMNS))
    rewrite = table.column("rewrite", REWRITE_COLUMNS)
    rewrites: dict[str, list[str]] = {}
    for row in table.rows:
        seed, cell = text_of(row.get(text)), text_of(row.get(rewrite))
        if seed and cell:
            rewrites.setdefault(seed, []).append(cell)
    _not_empty(list(rewrites), table, report)
    return rewrites


def read_chat_pool(path: str) -> tuple[list[ChatRow], DropReport]:
    """Rows of ``prompt`` and ``response``, or of ``messages`` that end with the assistant's.

    Raises:
        DataError: a column is missing, or no row can be used.
    """
    report = DropReport()
    table = read_table(path, report, "sft.pool")
    rows = []
    if table.has(("messages",)):
        for row in table.rows:
            chat = [Message(str(m.get("role")), text_of(m.get("content"))) for m in row.get("messages", ())]
            if len(chat) < 2 or chat[-1].role != "assistant" or not chat[-1].content:
                report.drop("messages do not end with an assistant's answer")
            else:
                rows.append(ChatRow(tuple(chat[:-1]), chat[-1].content))
        return _not_empty(rows, table, report), report
    prompt = table.column("prompt", TEXT_COLUMNS)
    response = table.column("response", RESPONSE_COLUMNS)
    for row in table.rows:
        question, answer = text_of(row.get(prompt)), text_of(row.get(response))
        if not question or not answer:
            report.drop("empty prompt" if not question else "empty response")
        else:
            rows.append(ChatRow((Message("user", question),), answer))
    return _not_empty(rows, table, report), report


def _history(value: Any) -> tuple[tuple[str, str], ...] | None:
    """(attack with its tags, reply) of each earlier turn; None where the cell is no such list."""
    if not isinstance(value, Iterable) or isinstance(value, str):
        return None if text_of(value) else ()
    past = []
    for turn in value:
        cells = turn if isinstance(turn, Mapping) else {}
        rewrite, reply = text_of(cells.get("rewrite")), text_of(cells.get("reply"))
        if not rewrite or not reply:
            return None
        past.append((tags.tagged(text_of(cells.get("reasoning")), rewrite), reply))
    return tuple(past)


def _not_empty(rows: Sequence[T], table: Table, report: DropReport) -> list[T]:
    if not rows:
        raise DataError(f"{table.path}: no row can be used; {report}")
    return list(rows)
