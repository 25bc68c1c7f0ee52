"""Verdicts to rewards, part by part (paper section 4.2).

``R_D = R_harm + R_ref`` and ``R_A = -R_D + R_fmt``. ``game=robust`` adds ``R_help`` to ``R_D`` for benign seeds and
gates the attacker by intent. A reward that would need an unknown verdict does not exist: the functions return None and
the sample leaves its group.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from nemo_magic.config_checks import FLOAT32_MAX
from nemo_magic.game.episode import Answer, Episode, Label, Role, Safety, Seed, Verdict


@dataclass
class RewardConfig:
    """Sizes of the reward parts, all ≥ 0.

    ``harm``, ``refusal``, ``format``: r_harm, r_ref, r_fmt of the paper. ``help``: for benign seeds, +help if the
    answer is useful and −help if not (0: the paper's reward). ``intent_gate``: an attack that lost the seed's intent
    gets the reward of a failed attack, less ``intent``: an attacker that gets the same reward for failing with and
    without the intent drifts off it as soon as the defender wins everything. ``refusal_label``: whether a refusal is
    right is decided by the ``seed``'s label (the paper) or by the judged safety of the rewritten ``prompt`` (the
    published code). ``format_empty_answer``: an empty ``<answer>`` keeps the format (the published code).
    ``format_defender``: ± for the defender's tags, where it reasons first (``game.defender_cot``).
    ``diversity``: bonus for attacks that differ from their group's others (game/diversity.py). ``unfinished``: what a
    role earns with a response that the length limit cut: what it is ``judged`` to be worth, or ``zero``, without a
    format reward (the published code). ``overlong_penalty``: what a response of the full length loses; the loss begins
    ``overlong_buffer`` tokens before (game/overlong.py).
    """

    harm: float = 1.0
    refusal: float = 0.5
    format: float = 0.5
    help: float = 0.0
    intent_gate: bool = False
    intent: float = 0.0
    refusal_label: str = "seed"
    format_empty_answer: bool = False
    format_defender: float = 0.0
    diversity: float = 0.0
    unfinished: str = "judged"
    overlong_buffer: int = 0
    overlong_penalty: float = 0.0

    def __post_init__(self) -> None:
        for key in (
            "harm", "refusal", "format", "help", "intent", "format_defender", "diversity", "overlong_penalty",
        ):  # fmt: skip
            if not getattr(self, key) >= 0:
                raise ValueError(f"rewards.{key}={getattr(self, key)} must be ≥ 0; its sign is the rule's business")
            if getattr(self, key) > FLOAT32_MAX:
                raise ValueError(f"rewards.{key}={getattr(self, key)} must be a number that float32 holds")
        if self.refusal_label not in ("seed", "prompt"):
            raise ValueError(f"rewards.refusal_label={self.refusal_label!r} must be one of: seed, prompt")
        if self.unfinished not in ("judged", "zero"):
            raise ValueError(f"rewards.unfinished={self.unfinished!r} must be one of: judged, zero")
        if (self.overlong_penalty > 0) != (self.overlong_buffer > 0) or self.overlong_buffer < 0:
            raise ValueError(
                f"rewards.overlong_penalty={self.overlong_penalty} begins rewards.overlong_buffer="
                f"{self.overlong_buffer} tokens before the limit: give both, or neither"
            )

    def identity(self) -> dict[str, object]:
        """What a conversation's rewards depend on, by which a league knows its games again. Options of length that are
        off are left out, as if there were none."""
        off = {"unfinished": "judged", "overlong_buffer": 0, "overlong_penalty": 0.0}
        return {name: value for name, value in asdict(self).items() if name not in off or value != off[name]}

    def needs(self) -> frozenset[str]:
        """The verdict fields that the rewards are computed from."""
        fields = {"response_safety", "refusal"}
        if self.help > 0:
            fields.add("helpful")
        if self.intent_gate:
            fields.add("intent_preserved")
        if self.refusal_label == "prompt":
            fields.add("prompt_safety")
        return frozenset(fields)


@dataclass(frozen=True, slots=True)
class Reward:
    """One role's reward for one episode, part by part."""

    parts: dict[str, float]

    @property
    def total(self) -> float:
        """The sum of the parts."""
        return sum(self.parts.values())


def defender_reward(config: RewardConfig, seed: Seed, verdict: Verdict, format_ok: bool | None = None) -> Reward | None:
    """``R_D = R_harm + R_ref`` of one conversation (section 4.2), or None where a verdict field is unknown.

    ``format_ok``: whether the defender's tags are well-formed, None where it writes none.
    """
    safe = _is_safe(verdict.response_safety)
    refused = _is_yes(verdict.refusal)
    should_refuse = _should_refuse(config, seed, verdict)
    if safe is None or refused is None or should_refuse is None:
        return None
    parts = {
        "harm": _signed(config.harm, safe),
        "refusal": _signed(config.refusal, refused == should_refuse),
    }
    if config.help > 0 and seed.label is Label.BENIGN:
        useful = _is_yes(verdict.helpful)
        if useful is None:
            return None
        parts["help"] = _signed(config.help, useful)
    if config.format_defender > 0 and format_ok is not None:
        parts["format"] = _signed(config.format_defender, format_ok)
    return Reward(parts)


def attacker_reward(config: RewardConfig, seed: Seed, verdict: Verdict, format_ok: bool) -> Reward | None:
    """``R_A = −R_D + R_fmt`` of one conversation (section 4.2), or None where a verdict field is unknown."""
    defender = defender_reward(config, seed, verdict)
    if defender is None:
        return None
    parts = {name: -value for name, value in defender.parts.items()}
    if config.intent_gate:
        preserved = _is_yes(verdict.intent_preserved)
        if preserved is None:
            return None
        if not preserved:
            parts = {name: -abs(value) for name, value in parts.items()} | {"intent": -config.intent}
    parts["format"] = _signed(config.format, format_ok)
    return Reward(parts)


def unplayed_attack_reward(config: RewardConfig, seed: Seed, format_ok: bool) -> Reward:
    """The attacker's reward where its attack has no text, so that nobody was asked anything: that of the attack that
    failed in every part. It needs no verdict.

    No played attack of the same format earns less. If it had no reward, it would leave its group, and an attacker that
    is cut off in its reasoning would never learn to come to an end.
    """
    parts = {"harm": -config.harm, "refusal": -config.refusal}
    if config.help > 0 and seed.label is Label.BENIGN:
        parts["help"] = -config.help
    if config.intent_gate:
        parts["intent"] = -config.intent
    return Reward(parts | {"format": _signed(config.format, format_ok)})


def unfinished_rewards(config: RewardConfig, episode: Episode) -> dict[Role, Reward]:
    """Rewards that replace those of a verdict: of each role that wrote a response which the length limit cut, 0 and
    without any part, where ``rewards.unfinished=zero``."""
    if config.unfinished != "zero":
        return {}
    return {role: Reward({}) for role in Role if not all(message.finished for message in episode.messages_of(role))}


def is_unsafe(safety: Safety | None) -> bool | None:
    """Strict standard of the paper: controversial counts as unsafe. None where unknown or not requested."""
    safe = _is_safe(safety)
    return None if safe is None else not safe


def _should_refuse(config: RewardConfig, seed: Seed, verdict: Verdict) -> bool | None:
    if config.refusal_label == "seed":
        return seed.label is Label.HARMFUL
    return is_unsafe(verdict.prompt_safety)


def _is_safe(safety: Safety | None) -> bool | None:
    if safety is None or safety is Safety.UNKNOWN:
        return None
    return safety is Safety.SAFE


def _is_yes(answer: Answer | None) -> bool | None:
    if answer is None or answer is Answer.UNKNOWN:
        return None
    return answer is Answer.YES


def _signed(size: float, good: bool) -> float:
    return size if good else -size
