"""A chunk of cases played and judged: whatever was asked before is read back, the rest is asked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nemo_magic.evaluation.cached_judge import CachedJudge
from nemo_magic.evaluation.defences import Defence, DefenceInput, RunStats, conversation_of
from nemo_magic.evaluation.example import Example
from nemo_magic.evaluation.transcripts import Transcript
from nemo_magic.game import tags
from nemo_magic.game.episode import Label, Seed, Verdict
from nemo_magic.game.prompts import PromptConfig, attacker_messages
from nemo_magic.judge.protocol import make_item
from nemo_magic.rollout.cached import CachedPolicy, seed_of
from nemo_magic.rollout.rank_group import RankGroup


@dataclass(frozen=True)
class Attacker:
    """Writes what the defender is shown, for ``turns`` turns; it sees the defender's earlier replies.

    ``seed``: messages are sampled, and depend on it, the case and the turn; None: they are those of temperature 0.
    """

    voice: CachedPolicy
    turns: int = 1
    seed: int | None = None


@dataclass
class _Conversation:
    """A conversation being played. ``move``: what the defender is shown next, None where nothing is; ``lost``: it
    cannot be played to its end, and what was said up to there is not the case."""

    case: Example
    move: str | None = None
    wrote: str = ""
    defender_history: list[tuple[str, str]] = field(default_factory=list)
    attacker_history: list[tuple[str, str]] = field(default_factory=list)
    lost: bool = False


@dataclass(frozen=True)
class TaskRunner:
    """Who plays and judges one task, and how.

    ``defence`` answers; None: the cases' own answers are judged. ``attacker`` writes; None: the cases' own turns are
    said. ``transcript``: where it is written down, of ranks that are sources.
    """

    world: RankGroup
    defence: Defence | None
    attacker: Attacker | None
    bench: CachedJudge
    prompts: PromptConfig
    fields: frozenset[str]
    tally: RunStats
    transcript: Transcript | None = None

    def play(self, cases: Sequence[Example]) -> dict[str, Verdict]:
        """Case id → verdict; cases that could not be played are missing. Empty on ranks that do not speak."""
        games = [_Conversation(case) for case in cases]
        if self.defence is None:
            for game in games:
                game.defender_history = list(zip(game.case.turns, game.case.replies, strict=True))
        else:
            self._converse(games, self.defence)
        played = [game for game in games if game.defender_history and not game.lost]
        self.tally.unplayed += len(games) - len(played)
        self.tally.messages["judge"] += len(played)
        verdicts = self.bench.judge(
            [
                make_item(str(n), conversation_of(game.defender_history), ask=self.fields, seed=game.case.seed)
                for n, game in enumerate(played)
            ]
        )
        if self.transcript is not None:
            for verdict in verdicts:
                game = played[int(verdict.id)]
                self.transcript.add(game.case, game.defender_history, verdict)
        return {played[int(verdict.id)].case.id: verdict for verdict in verdicts}

    def _converse(self, games: Sequence[_Conversation], defence: Defence) -> None:
        # Other ranks may have longer conversations, and what ranks do together they do equally often.
        longest = max(self.world.all_gather(max((len(game.case.turns) for game in games), default=0)))
        going = list(games)
        for turn in range(longest if self.attacker is None else self.attacker.turns):
            if self.attacker is None:
                for game in going:
                    game.move = game.case.turns[turn] if turn < len(game.case.turns) else None
            else:
                self._attack(going, self.attacker)
            going = [game for game in going if game.move is not None]
            self._answer(going, defence)
            going = [game for game in going if len(game.defender_history) > turn]

    def _attack(self, games: Sequence[_Conversation], attacker: Attacker) -> None:
        """The attacker's next message in every game; where it cannot read on, the game ends as it stands."""
        chats = [attacker_messages(self.prompts, _seed(g.case), g.attacker_history, attacker.turns) for g in games]
        draws = None
        if attacker.seed is not None:
            draws = [seed_of(attacker.seed, "attack", game.case.id, len(game.defender_history)) for game in games]
        self.tally.messages["attacker"] += len(chats)
        for game, words in zip(games, attacker.voice.generate(chats, draws), strict=True):
            game.move = None
            if words is None:
                self.tally.ended += bool(game.defender_history)
            else:
                parsed = tags.parse(words[0])
                self.tally.broken_format += not parsed.format_ok
                game.wrote, game.move = words[0], parsed.visible

    def _answer(self, games: Sequence[_Conversation], defence: Defence) -> None:
        asked = [DefenceInput(game.case, game.move or "", tuple(game.defender_history)) for game in games]
        for game, reply in zip(games, defence.answer(asked), strict=True):
            if reply is None:
                # An attack ends where it can be read no further; a plan that is not played to its end is no such plan.
                game.lost = self.attacker is None
                self.tally.ended += self.attacker is not None and bool(game.defender_history)
                continue
            game.defender_history.append((reply.shown, reply.text))
            game.attacker_history.append((game.wrote, reply.text))


def _seed(case: Example) -> Seed:
    return Seed(case.id, case.turns[-1], case.label or Label.HARMFUL)
