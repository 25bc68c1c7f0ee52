"""Supervised pools: attacks (phase 1 of the paper) and chats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from nemo_magic.data.cells import chat_of, name_of, parsed, text_of
from nemo_magic.data.errors import DataError
from nemo_magic.data.seeds import LABEL_COLUMNS, TEXT_COLUMNS, read_label
from nemo_magic.data.streams import read_table
from nemo_magic.data.tables import DropReport, Table, read_text
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


def read_attack_pool(path: str, key: str = "sft.pool") -> tuple[list[AttackRow], DropReport]:
    """Rows of seed, label, reasoning, rewrite and, where there are such columns, strategy and history.

    Raises:
        DataError: a column is missing, or no row can be used.
    """
    report = DropReport()
    table = read_table(path, report, key)
    text = table.column("seed query", ("seed", *TEXT_COLUMNS))
    label = table.column("label", LABEL_COLUMNS)
    rewrite = table.column("rewrite", REWRITE_COLUMNS)
    reasoning = table.column("reasoning", REASONING_COLUMNS)
    strategy = table.column("strategy", STRATEGY_COLUMNS) if table.has(STRATEGY_COLUMNS) else None
    history = table.column("history", HISTORY_COLUMNS) if table.has(HISTORY_COLUMNS) else None
    rows = []
    for number, row in enumerate(table.rows):
        seed_text = read_text(row, text, report, "seed")
        attack = None if seed_text is None else read_text(row, rewrite, report, "rewrite")
        if seed_text is None or attack is None:
            continue
        thought = text_of(row.get(reasoning))
        kind, past = read_label(row.get(label)), _history(row.get(history)) if history else ()
        if kind is None:
            report.drop(f"label {name_of(row.get(label))[:40]!r} means neither harmful nor benign")
        elif past is None:
            report.drop("history is no list of objects with rewrite and reply")
        elif thought is None:
            report.drop("reasoning is no text")
        else:
            # Only this file's rows are together, so a row's number is a name of its own.
            seed = Seed(f"{table.path.stem}/{number}", seed_text, kind)
            rows.append(AttackRow(seed, name_of(row.get(strategy)) if strategy else "", thought, attack, past))
    return _not_empty(rows, table, report), report


def read_rewrites(path: str) -> tuple[dict[str, list[str]], DropReport]:
    """Seed text → its rewrites, from a table with a column of seeds and one of rewrites; rows without either are
    dropped.

    Raises:
        DataError: no row has both.
    """
    report = DropReport()
    table = read_table(path, report, "--attacker")
    text = table.column("seed query", ("seed", *TEXT_COLUMNS))
    rewrite = table.column("rewrite", REWRITE_COLUMNS)
    rewrites: dict[str, list[str]] = {}
    for row in table.rows:
        seed = read_text(row, text, report, "seed")
        if seed is not None and (attack := read_text(row, rewrite, report, "rewrite")) is not None:
            rewrites.setdefault(seed, []).append(attack)
    _not_empty(list(rewrites), table, report)
    return rewrites, report


def read_chat_pool(path: str, key: str = "sft.pool") -> tuple[list[ChatRow], DropReport]:
    """Rows of ``prompt`` and ``response``, or of ``messages`` that end with the assistant's. Prompt and response may be
    chats too.

    Raises:
        DataError: a column is missing, or no row can be used.
    """
    report = DropReport()
    table = read_table(path, report, key)
    if table.has(("messages",)):
        column = table.column("messages", ("messages",))
        rows = [_of_chat(chat_of(row.get(column)), report) for row in table.rows]
    else:
        prompt = table.column("prompt", TEXT_COLUMNS)
        response = table.column("response", RESPONSE_COLUMNS)
        rows = [_of_pair(row, prompt, response, report) for row in table.rows]
    return _not_empty([row for row in rows if row is not None], table, report), report


def _of_chat(chat: tuple[Message, ...] | None, report: DropReport) -> ChatRow | None:
    if chat is None:
        report.drop("messages are no list of texts of system, user and assistant")
    elif len(chat) < 2 or chat[-1].role != "assistant" or not chat[-1].content:
        report.drop("messages do not end with an assistant's answer")
    else:
        return ChatRow(chat[:-1], chat[-1].content)
    return None


def _of_pair(row: Mapping[str, Any], prompt: str, response: str, report: DropReport) -> ChatRow | None:
    """A demonstration whose prompt and response are texts, or chats, as TRL has them."""
    questions, answers = chat_of(row.get(prompt)), chat_of(row.get(response))
    if questions is None and (question := read_text(row, prompt, report, "prompt")) is not None:
        questions = (Message("user", question),)
    if questions is None:
        return None
    if questions[-1].role != "user":
        report.drop("prompt does not end with a user's message")
        return None
    if answers is None and (answer := read_text(row, response, report, "response")) is not None:
        answers = (Message("assistant", answer),)
    return None if answers is None else _of_chat((*questions, *answers), report)


def _history(value: Any) -> tuple[tuple[str, str], ...] | None:
    """(attack with its tags, reply) of each earlier turn; None where the cell is no such list."""
    value = parsed(value)
    if not isinstance(value, list):
        return None if text_of(value) != "" else ()
    past = []
    for turn in value:
        cells = turn if isinstance(turn, Mapping) else {}
        rewrite, reply, thought = (text_of(cells.get(name)) for name in ("rewrite", "reply", "reasoning"))
        if not rewrite or not reply or thought is None:
            return None
        past.append((tags.tagged(thought, rewrite), reply))
    return tuple(past)


def _not_empty(rows: Sequence[T], table: Table, report: DropReport) -> list[T]:
    if not rows:
        raise DataError(f"{table.path}: no row can be used; {report}")
    return list(rows)
