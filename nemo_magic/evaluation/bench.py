"""The judge of an evaluation, asked nothing twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from nemo_magic.evaluation.journal import Journal, key_of
from nemo_magic.evaluation.place import Place, together
from nemo_magic.game.episode import Answer, Safety, Verdict
from nemo_magic.judge.client import JudgeClient
from nemo_magic.judge.protocol import JudgeItem


class Bench:
    """The judge, asked nothing twice. A verdict with an error is no verdict to keep: it is asked for again next time.

    ``client`` and ``journal`` are None on ranks that do not speak to the outside.
    """

    def __init__(self, place: Place, client: JudgeClient | None, journal: Journal | None, guard: str) -> None:
        self._place, self._client, self._journal, self._guard = place, client, journal, guard
        self.asked = 0
        """Conversations that were newly judged on this rank, where it speaks."""

    def judge(self, items: Sequence[JudgeItem]) -> list[Verdict]:
        """Verdicts in order; empty on ranks that do not speak."""
        return together(self._place, lambda: self._judge(items)) or []

    def _judge(self, items: Sequence[JudgeItem]) -> list[Verdict]:
        assert self._client is not None
        assert self._journal is not None
        keys = [key_of(self._guard, item.content()) for item in items]
        by_key = dict(zip(keys, items, strict=True))
        wanted = self._journal.missing(keys)
        lost: dict[str, Verdict] = {}
        if wanted:
            items_wanted = [by_key[key] for key in wanted]
            verdicts = dict(zip(wanted, self._client.score(items_wanted).result(), strict=True))
            lost = {key: verdict for key, verdict in verdicts.items() if verdict.error is not None}
            self._journal.add({key: asdict(verdict) for key, verdict in verdicts.items() if key not in lost})
            self.asked += len(wanted)
        # The same conversation may have been another item's.
        found = (lost[key] if key in lost else _verdict(self._journal[key]) for key in keys)
        return [replace(verdict, id=item.id) for verdict, item in zip(found, items, strict=True)]


def _verdict(row: Mapping[str, Any]) -> Verdict:
    def safety(name: str) -> Safety | None:
        return None if row[name] is None else Safety(row[name])

    def answer(name: str) -> Answer | None:
        return None if row[name] is None else Answer(row[name])

    return Verdict(
        row["id"],
        safety("prompt_safety"),
        safety("response_safety"),
        answer("refusal"),
        answer("helpful"),
        answer("intent_preserved"),
        tuple(row["categories"]),
        tuple(row["disagreed"]),
        row["guard"],
        row["error"],
    )
