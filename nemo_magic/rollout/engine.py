"""Rollouts: the attacker rewrites seeds, the defender answers, for one turn or several."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

from nemo_magic.config import MagicConfig
from nemo_magic.game import tags
from nemo_magic.game.episode import Ending, Episode, NoAnswer, Role, Seed, Turn
from nemo_magic.game.prompts import PromptConfig, defender_messages
from nemo_magic.rollout.conversation import AttackPrompt, Conversation, RolloutSpec, converse, write_attacks
from nemo_magic.rollout.policy import Policy
from nemo_magic.runtime.timers import Timers

GREEDY = frozenset(Role)
"""Both roles at temperature 0."""

_GREEDY_STREAM = "duel"
"""A part of the seeds only, as every stream's name is: another word would draw other samples."""


class RolloutEngine:
    """Plays this rank's share of the seeds. Every rank of a model-parallel group plays the same conversations.

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
        empty_answer_ok: bool = False,
    ) -> None:
        self._policies = policies
        self._prompts = prompts
        self._timers = timers
        self._seed = seed
        self._group_size = group_size
        self._max_turns = max_turns
        self._raw_prompt_fraction = raw_prompt_fraction
        self._defender_cot = defender_cot
        self._empty_answer_ok = empty_answer_ok
        self._unanswered = Counter[str]()

    # --- rollouts of Algorithm 1

    def attacker_rollout(self, seeds: Sequence[tuple[int, Seed]], step: int) -> list[Episode]:
        """G attacks on each ``(group, seed)``, one response to each."""
        specs = [RolloutSpec(seed, group, i) for group, seed in seeds for i in range(self._group_size)]
        return self.play(self.attack(specs, "train", step), "train", step)

    def defender_openings(self, seeds: Mapping[int, Sequence[tuple[int, Seed]]]) -> dict[int, list[AttackPrompt]]:
        """Step → one attack on each of its ``(group, seed)``, all of them generated together; of a share
        ``raw_prompt_fraction`` the seed itself."""
        raw = {step: [(g, seed) for g, seed in pairs if self._is_raw(step, g)] for step, pairs in seeds.items()}
        specs = [
            (step, RolloutSpec(seed, g, 0))
            for step, pairs in seeds.items()
            for g, seed in pairs
            if (g, seed) not in raw[step]
        ]
        steps = [step for step, _ in specs]
        prompts = self._attack([Conversation(spec) for _, spec in specs], "train", steps, greedy=())
        openings: dict[int, list[AttackPrompt]] = {step: [] for step in seeds}
        for step, prompt in zip(steps, prompts, strict=True):
            if isinstance(prompt, AttackPrompt):
                openings[step].append(prompt)
        return {step: prompts + fixed_attacks(lambda seed: seed.text, raw[step]) for step, prompts in openings.items()}

    def defender_rollout(self, openings: Sequence[AttackPrompt], step: int) -> list[Episode]:
        """G responses to each opening."""
        shared = [replace(a, spec=replace(a.spec, sample=i)) for a in openings for i in range(self._group_size)]
        return self.play(shared, "train", step)

    # --- any conversations

    def greedy_rollout(self, seeds: Sequence[tuple[int, Seed]]) -> list[Episode]:
        """One conversation per seed, both roles at temperature 0."""
        openings = self.attack([RolloutSpec(seed, group, 0) for group, seed in seeds], _GREEDY_STREAM, 0, GREEDY)
        return self.play(openings, _GREEDY_STREAM, 0, GREEDY)

    def attack(
        self, specs: Sequence[RolloutSpec], stream: str, step: int, greedy: Collection[Role] = ()
    ) -> list[AttackPrompt]:
        """The attacker's openings; a seed that it cannot read is left out."""
        prompts = self._attack([Conversation(spec) for spec in specs], stream, [step] * len(specs), greedy)
        return [prompt for prompt in prompts if isinstance(prompt, AttackPrompt)]

    def play(
        self, openings: Sequence[AttackPrompt], stream: str, step: int, greedy: Collection[Role] = ()
    ) -> list[Episode]:
        """Conversations from their openings on: the defender answers, and where a model attacks, it goes on for
        ``max_turns``. An opening that the defender cannot read at all has no episode, nor has a conversation in which
        a role gave no answer: how it would have ended is not known."""

        def attack(going: Sequence[Conversation]) -> list[AttackPrompt | NoAnswer | Ending]:
            attacked = [one for one in going if one.turns[-1].attack is not None]
            prompts = iter(self._attack(attacked, stream, [step] * len(attacked), greedy))
            # A fixed attack is a single message.
            return [Ending.PLAYED if one.turns[-1].attack is None else next(prompts) for one in going]

        conversations = [Conversation(opening.spec, opening) for opening in openings]
        converse(
            conversations,
            attack,
            lambda going: self._answer(going, stream, step, greedy),
            max_turns=self._max_turns,
            opened=True,
            cut_reply_ends=True,
        )
        return [
            Episode(one.spec.seed, one.spec.group, one.spec.sample, tuple(one.turns), one.ending)
            for one in conversations
            if one.turns and one.unanswered is None
        ]

    def take_unanswered(self) -> Counter[str]:
        """How many messages a role's server gave no answer to, by reason, since the last call. On every rank those of
        its model-parallel group."""
        counts, self._unanswered = self._unanswered, Counter()
        return counts

    def _attack(
        self, going: Sequence[Conversation], stream: str, steps: Sequence[int], greedy: Collection[Role]
    ) -> list[AttackPrompt | NoAnswer | Ending]:
        role = Role.ATTACKER
        seeds = [self._row_seed(one, stream, step, role) for one, step in zip(going, steps, strict=True)]
        with self._timers(f"generate_{role}"):
            prompts = write_attacks(
                self._policies[role],
                self._prompts,
                going,
                seeds,
                role in greedy,
                self._max_turns,
                self._empty_answer_ok,
            )
        self._unanswered.update(prompt.reason for prompt in prompts if isinstance(prompt, NoAnswer))
        return prompts

    def _answer(
        self, going: Sequence[Conversation], stream: str, step: int, greedy: Collection[Role]
    ) -> list[Turn | NoAnswer | None]:
        """The defender's answer to every prompt, of which it is shown what it can read; None where it cannot."""
        role = Role.DEFENDER
        texts, chats = [], []
        for one in going:
            assert one.prompt is not None
            chat_of = partial(defender_messages, self._prompts, past=one.defender_history)
            texts.append(self._policies[role].truncate_to_context(one.prompt.rewrite, chat_of))
            chats.append(chat_of(texts[-1]))
        seeds = [self._row_seed(one, stream, step, role) for one in going]
        with self._timers(f"generate_{role}"):
            completions = self._policies[role].generate(chats, seeds, role in greedy)
        turns: list[Turn | NoAnswer | None] = []
        for one, text, completion in zip(going, texts, completions, strict=True):
            assert one.prompt is not None
            if completion is None or isinstance(completion, NoAnswer):
                turns.append(completion)
                continue
            tagged = tags.parse(completion.text, self._empty_answer_ok) if self._defender_cot else None
            if tagged is not None and not tagged.visible and not completion.response_ids:
                # A server's. What a model of this world sampled is its own, whatever it shows of it.
                turns.append(NoAnswer("reasoning and no answer"))
                continue
            visible = (tagged.visible, tagged.format_ok) if tagged is not None else (None, None)
            turns.append(Turn(text, one.prompt.format_ok, one.prompt.completion, completion, *visible))
        self._unanswered.update(turn.reason for turn in turns if isinstance(turn, NoAnswer))
        return turns

    def _is_raw(self, step: int, group: int) -> bool:
        return row_seed(self._seed, "bare", step, group) < self._raw_prompt_fraction * 2**64

    def _row_seed(self, one: Conversation, stream: str, step: int, role: Role) -> int:
        # The first turn adds nothing, so that games of one turn keep their samples whatever max_turns is.
        turn = (len(one.turns),) if one.turns else ()
        return row_seed(self._seed, stream, step, role, one.spec.group, one.spec.sample, *turn)


def build_rollout_engine(cfg: MagicConfig, policies: Mapping[Role, Policy], timers: Timers) -> RolloutEngine:
    """The rollout engine of a run."""
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
        empty_answer_ok=cfg.rewards.format_empty_answer,
    )


Rewriter = Callable[[Seed], str]
"""A fixed attack that no model writes."""


def fixed_attacks(rewriter: Rewriter, seeds: Sequence[tuple[int, Seed]], sample: int = 0) -> list[AttackPrompt]:
    """The same rewriting of every seed; ``sample`` tells several rewritings of the same seed apart."""
    return [AttackPrompt(RolloutSpec(seed, group, sample), rewriter(seed), True, None) for group, seed in seeds]


def row_seed(*parts: object) -> int:
    """A 64-bit seed that names one draw, the same on every rank, machine and Python version."""
    return int.from_bytes(hashlib.blake2b(repr(tuple(map(str, parts))).encode(), digest_size=8).digest(), "big")
