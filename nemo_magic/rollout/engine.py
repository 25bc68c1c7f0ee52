"""Where episodes are played: the attacker rewrites seeds, the defender answers what it sees, for a turn or several."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from nemo_magic.config import MagicConfig
from nemo_magic.game import tags
from nemo_magic.game.episode import Completion, Ending, Episode, Role, Seed, Turn
from nemo_magic.game.prompts import Chat, PromptConfig, attacker_messages, defender_messages
from nemo_magic.rollout.policy import Policy
from nemo_magic.runtime.timers import Timers

GREEDY = frozenset(Role)
"""Both roles at temperature 0."""


@dataclass(frozen=True, slots=True)
class RolloutSpec:
    """A seed to be attacked: its place in the step's global batch and which of its group's attacks this is."""

    seed: Seed
    group: int
    sample: int


@dataclass(frozen=True, slots=True)
class AttackPrompt:
    """An opening move: the text that the defender will see. ``completion`` is None where no model wrote it."""

    job: RolloutSpec
    rewrite: str
    format_ok: bool
    completion: Completion | None


@dataclass(slots=True)
class _Conversation:
    """A conversation being played. ``stream`` and ``step`` say which games these are; their samples depend on it."""

    job: RolloutSpec
    stream: str
    step: int
    move: AttackPrompt | None = None
    turns: list[Turn] = field(default_factory=list)
    ending: Ending = Ending.PLAYED

    @property
    def defender_history(self) -> list[tuple[str, str]]:
        """The conversation as the defender knows it."""
        return [(turn.rewrite, turn.reply) for turn in self.turns]

    @property
    def attacker_history(self) -> list[tuple[str, str]]:
        """The conversation as the attacker knows it: its own words whole, the defender's replies."""
        return [("" if turn.attack is None else turn.attack.text, turn.reply) for turn in self.turns]


class RolloutEngine:
    """Plays for this rank's share of the seeds. Every rank of a model-parallel group plays the same games.

    Samples depend on ``(seed, stream, step, role, group, sample, turn)`` and the weights only, not on how many ranks
    share the work.
    """

    def __init__(
        self,
        policies: Mapping[Role, Policy],
        prompts: PromptConfig,
        timers: Timers,
        *,
        seed: int,
        group_size: int,
        max_turns: int = 1,
        raw_prompt_fraction: float = 0.0,
        defender_cot: bool = False,
    ) -> None:
        self._policies = policies
        self._prompts = prompts
        self._timers = timers
        self._seed = seed
        self._group_size = group_size
        self._max_turns = max_turns
        self._raw_prompt_fraction = raw_prompt_fraction
        self._defender_cot = defender_cot

    # --- training games of Algorithm 1

    def attacker_rollout(self, seeds: Sequence[tuple[int, Seed]], step: int) -> list[Episode]:
        """G attacks on each ``(group, seed)``, one response to each."""
        jobs = [RolloutSpec(seed, group, i) for group, seed in seeds for i in range(self._group_size)]
        return self.play(self.attack(jobs, "train", step), "train", step)

    def defender_openings(self, seeds: Mapping[int, Sequence[tuple[int, Seed]]]) -> dict[int, list[AttackPrompt]]:
        """Step → one attack on each of its ``(group, seed)``, all of them written together; a share
        ``raw_prompt_fraction`` of the seeds is shown as it is."""
        bare = {step: [(g, seed) for g, seed in pairs if self._is_bare(step, g)] for step, pairs in seeds.items()}
        jobs = [
            (step, RolloutSpec(seed, g, 0))
            for step, pairs in seeds.items()
            for g, seed in pairs
            if (g, seed) not in bare[step]
        ]
        moves = self._rewrite([_Conversation(job, "train", step) for step, job in jobs])
        openings: dict[int, list[AttackPrompt]] = {step: [] for step in seeds}
        for (step, _), move in zip(jobs, moves, strict=True):
            if move is not None:
                openings[step].append(move)
        return {step: made + fixed_attacks(lambda seed: seed.text, bare[step]) for step, made in openings.items()}

    def defender_rollout(self, openings: Sequence[AttackPrompt], step: int) -> list[Episode]:
        """G responses to each opening."""
        shared = [replace(a, job=replace(a.job, sample=i)) for a in openings for i in range(self._group_size)]
        return self.play(shared, "train", step)

    # --- any games

    def greedy_rollout(self, seeds: Sequence[tuple[int, Seed]]) -> list[Episode]:
        """One game per seed, both roles at temperature 0."""
        return self.play(self.attack([RolloutSpec(s, g, 0) for g, s in seeds], "duel", 0, GREEDY), "duel", 0, GREEDY)

    def attack(
        self, jobs: Sequence[RolloutSpec], stream: str, step: int, greedy: Collection[Role] = ()
    ) -> list[AttackPrompt]:
        """Let the attacker open; a seed that it cannot read is left out."""
        moves = self._rewrite([_Conversation(job, stream, step) for job in jobs], greedy)
        return [move for move in moves if move is not None]

    def play(
        self, openings: Sequence[AttackPrompt], stream: str, step: int, greedy: Collection[Role] = ()
    ) -> list[Episode]:
        """Conversations from their openings on: the defender answers, and where a model attacks, it goes on for
        ``max_turns``. An opening that the defender cannot read at all has no episode."""
        games = [_Conversation(opening.job, stream, step, opening) for opening in openings]
        going = games
        for turn in range(self._max_turns):
            if turn:
                going = [game for game in going if game.turns[-1].attack is not None]
                for game, move in zip(going, self._rewrite(going, greedy), strict=True):
                    game.move = move
                    game.ending = Ending.NO_ROOM if move is None else Ending.PLAYED
                going = [game for game in going if game.move is not None]
            self._answer(going, greedy)
            going = [game for game in going if game.ending is Ending.PLAYED]
        return [Episode(g.job.seed, g.job.group, g.job.sample, tuple(g.turns), g.ending) for g in games if g.turns]

    def _rewrite(self, games: Sequence[_Conversation], greedy: Collection[Role] = ()) -> list[AttackPrompt | None]:
        """The attacker's next move in each game; None where it cannot read on."""
        chats = [attacker_messages(self._prompts, g.job.seed, g.attacker_history, self._max_turns) for g in games]
        moves: list[AttackPrompt | None] = []
        for game, said in zip(games, self._say(Role.ATTACKER, chats, games, greedy), strict=True):
            tagged = None if said is None else tags.parse(said.text)
            moves.append(None if tagged is None else AttackPrompt(game.job, tagged.visible, tagged.format_ok, said))
        return moves

    def _answer(self, games: Sequence[_Conversation], greedy: Collection[Role]) -> None:
        """Let the defender answer every game's move; where it cannot, the game ends as it stands."""
        shown, chats = [], []
        for game in games:
            assert game.move is not None
            chat_of = partial(defender_messages, self._prompts, past=game.defender_history)
            rewrite = self._policies[Role.DEFENDER].truncate_to_context(game.move.rewrite, chat_of)
            shown.append(rewrite)
            chats.append(chat_of(rewrite))
        answers = self._say(Role.DEFENDER, chats, games, greedy)
        for game, rewrite, answer in zip(games, shown, answers, strict=True):
            assert game.move is not None
            if answer is None:
                game.ending = Ending.NO_ROOM
                continue
            tagged = tags.parse(answer.text) if self._defender_cot else None
            visible = (tagged.visible, tagged.format_ok) if tagged is not None else (None, None)
            game.turns.append(Turn(rewrite, game.move.format_ok, game.move.completion, answer, *visible))
            if not answer.finished and len(game.turns) < self._max_turns:
                # What follows half a sentence would be answered by nobody in particular.
                game.ending = Ending.CUT_SHORT

    def _say(
        self, role: Role, chats: Sequence[Chat], games: Sequence[_Conversation], greedy: Collection[Role]
    ) -> list[Completion | None]:
        with self._timers(f"generate_{role}"):
            seeds = [self._row_seed(game, role) for game in games]
            return self._policies[role].generate(chats, seeds, role in greedy)

    def _is_bare(self, step: int, group: int) -> bool:
        return row_seed(self._seed, "bare", step, group) < self._raw_prompt_fraction * 2**64

    def _row_seed(self, game: _Conversation, role: Role) -> int:
        turn = (len(game.turns),) if game.turns else ()
        return row_seed(self._seed, game.stream, game.step, role, game.job.group, game.job.sample, *turn)


def build_rollout_engine(cfg: MagicConfig, policies: Mapping[Role, Policy], timers: Timers) -> RolloutEngine:
    """The arena of a run."""
    game = cfg.game
    return RolloutEngine(
        policies,
        game.prompts,
        timers,
        seed=cfg.seed,
        group_size=game.group_size,
        max_turns=game.max_turns,
        raw_prompt_fraction=game.raw_prompt_fraction,
        defender_cot=game.defender_cot,
    )


Rewriter = Callable[[Seed], str]
"""A fixed attack that no model writes."""


def fixed_attacks(rewriter: Rewriter, seeds: Sequence[tuple[int, Seed]], sample: int = 0) -> list[AttackPrompt]:
    """The same trick on every seed; ``sample`` tells tricks on the same seed apart."""
    return [AttackPrompt(RolloutSpec(seed, group, sample), rewriter(seed), True, None) for group, seed in seeds]


def row_seed(*parts: object) -> int:
    """A 64-bit seed that names a sample."""
    return int.from_bytes(hashlib.blake2b(repr(tuple(map(str, parts))).encode(), digest_size=8).digest(), "big")
