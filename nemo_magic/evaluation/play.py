"""A chunk of cases played and judged: whatever was asked before is read back, the rest is asked once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from nemo_magic.actors.speaker import Speaker
from nemo_magic.evaluation.cases import Case
from nemo_magic.evaluation.journal import Journal, key_of
from nemo_magic.evaluation.place import Place, together
from nemo_magic.game import tags
from nemo_magic.game.episode import Answer, Completion, Label, Message, Safety, Seed, Verdict
from nemo_magic.game.prompts import Chat, PromptConfig, attacker_messages, defender_messages
from nemo_magic.judge.client import JudgeClient
from nemo_magic.judge.protocol import JudgeItem, make_item

Said = tuple[str, bool] | None
"""A message and whether it was finished; None where the chat is longer than the model can read."""


class Voice:
    """A role at temperature 0 that says nothing twice. ``identity``: what its words depend on beside the chat.

    Ranks of a model-parallel group ask the same chats and learn the same words. Where a server plays the role
    (``remote``), ``speaker`` is None on ranks that do not speak to the outside; ``journal`` is so in any case.
    """

    def __init__(
        self, place: Place, speaker: Speaker | None, journal: Journal | None, identity: Any, remote: bool
    ) -> None:
        self._place, self._speaker, self._journal, self._identity = place, speaker, journal, identity
        self._remote = remote
        self.asked = 0
        """Messages that were newly generated, not read back."""

    def say(self, chats: Sequence[Chat]) -> list[Said]:
        keys = [key_of(self._identity, [[m.role, m.content] for m in chat]) for chat in chats]
        wanted = self._place.share(self._journal.missing(keys) if self._journal is not None else [])
        # Elsewhere something may be missing, and what ranks do together they do equally often.
        if any(self._place.everyone(bool(wanted))):
            by_key = dict(zip(keys, chats, strict=True))
            said = self._ask([by_key[key] for key in wanted], [int(key[:16], 16) for key in wanted])
            if self._journal is not None:
                new = {
                    key: None if c is None else [c.text, c.finished] for key, c in zip(wanted, said or [], strict=True)
                }
                self._journal.add(new)
            self.asked += len(wanted)
        found = None if self._journal is None else [self._journal[key] for key in keys]
        return [None if value is None else (value[0], value[1]) for value in self._place.share(found) or []]

    def fit(self, text: str, chat_of: Callable[[str], Chat]) -> str:
        """As much of ``text`` as the model can read; the same on every rank of a group."""
        fitted = None if self._speaker is None else self._speaker.fit(text, chat_of)
        return text if fitted is None else fitted

    def _ask(self, chats: Sequence[Chat], seeds: Sequence[int]) -> list[Completion | None] | None:
        speaker = self._speaker
        if not self._remote:
            assert speaker is not None
            return speaker.say(chats, seeds, True)
        return together(self._place, lambda: speaker.say(chats, seeds, True) if speaker is not None else [])


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


@dataclass
class Tally:
    """What became of a task's cases beside their verdicts. ``cut``: shown shorter than they are, because the model
    reads no more; ``unplayed``: not even so."""

    cut: int = 0
    unplayed: int = 0
    truncated: int = 0
    broken_format: int = 0


@dataclass(frozen=True)
class Stage:
    """Who plays and judges one task, and how."""

    place: Place
    defender: Voice
    attacker: Voice | None
    bench: Bench
    prompts: PromptConfig
    fields: frozenset[str]
    defender_cot: bool
    tally: Tally = field(default_factory=Tally)

    def play(self, cases: Sequence[Case]) -> dict[str, Verdict]:
        """Case id → verdict; cases that could not be played are missing. Empty on ranks that do not speak."""
        turns = {case.id: case.turns for case in cases} if self.attacker is None else self._rewritten(cases)
        seen: dict[str, list[tuple[str, str]]] = {case.id: [] for case in cases if case.id in turns}
        # Other ranks may have longer conversations, and what ranks do together they do equally often.
        for turn in range(max(self.place.everyone(max(map(len, turns.values()), default=0)))):
            going = [id for id in seen if len(turns[id]) > turn]
            self._answer(going, {id: turns[id][turn] for id in going}, seen)
        self.tally.unplayed += len(cases) - len(seen)
        played = [case for case in cases if case.id in seen]
        verdicts = self.bench.judge([self._item(str(n), case, seen[case.id]) for n, case in enumerate(played)])
        return {played[int(verdict.id)].id: verdict for verdict in verdicts}

    def _rewritten(self, cases: Sequence[Case]) -> dict[str, tuple[str, ...]]:
        assert self.attacker is not None
        seeds = {case.id: Seed(case.id, case.turns[-1], case.label or Label.HARMFUL) for case in cases}
        said = self.attacker.say([attacker_messages(self.prompts, seed) for seed in seeds.values()])
        rewritten: dict[str, tuple[str, ...]] = {}
        for id, words in zip(seeds, said, strict=True):
            if words is not None:
                move = tags.parse(words[0])
                self.tally.broken_format += not move.format_ok
                rewritten[id] = (move.visible,)
        return rewritten

    def _answer(self, going: Sequence[str], shown: Mapping[str, str], seen: dict[str, list[tuple[str, str]]]) -> None:
        chats = {}
        for id in going:
            chat_of = partial(defender_messages, self.prompts, past=tuple(seen[id]))
            text = self.defender.fit(shown[id], chat_of)
            self.tally.cut += text != shown[id]
            chats[id] = (text, chat_of(text))
        for id, words in zip(going, self.defender.say([chat for _, chat in chats.values()]), strict=True):
            if words is None:
                # What is said up to here is not the case.
                del seen[id]
                continue
            text, finished = words
            self.tally.truncated += not finished
            seen[id].append((chats[id][0], tags.parse(text).visible if self.defender_cot else text))

    def _item(self, id: str, case: Case, seen: Sequence[tuple[str, str]]) -> JudgeItem:
        conversation = [
            message for shown, reply in seen for message in (Message("user", shown), Message("assistant", reply))
        ]
        return make_item(id, conversation, ask=self.fields, seed=case.seed)


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
