"""Alarms: the ways in which a game goes wrong while its ASR looks well, watched for in every step.

Pure, as the schedule is: the state after ``n`` steps depends on the configuration and on the metrics of these steps
only, and a saved and restored state goes on as the unbroken one does. A metric that a step does not report, or not as
a finite number, adds nothing; an alarm whose metrics are never reported never sounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

from nemo_magic.game.episode import Role

ACTIONS = ("off", "warn", "stop")
CLEARED = 0.5
"""An alarm that sounds goes silent below this pressure, so that a figure around its threshold is told of once."""

_ROLLOUTS, _OPTIM = "train_rollouts/", "train_optim/"


@dataclass(frozen=True, slots=True)
class Series:
    """A metric's last values, oldest first, and the lowest and highest mean of a full window until now."""

    recent: tuple[float, ...] = ()
    low: float = math.inf
    high: float = -math.inf

    def after(self, value: float, window: int) -> Series:
        recent = (*self.recent, value)[-window:]
        if len(recent) < window:
            return Series(recent, self.low, self.high)
        mean = math.fsum(recent) / window
        return Series(recent, min(self.low, mean), max(self.high, mean))

    def mean(self, window: int) -> float | None:
        """The mean of the last ``window`` values; None while there are fewer."""
        return math.fsum(self.recent[-window:]) / window if len(self.recent) >= window else None


Seen = Mapping[str, Series]
"""Metric → what is remembered of it."""


@dataclass
class AlarmConfig:
    """One alarm. ``action``: off, warn, or stop the run at a checkpoint. ``window``: values that are averaged."""

    action: str = "warn"
    window: int = 10

    name: ClassVar[str] = ""
    metrics: ClassVar[Mapping[str, Role | None]] = {}
    """What is watched, and in whose steps only (None: in all)."""
    cause: ClassVar[str] = ""
    remedy: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise ValueError(f"alarms.{self.name}.action={self.action!r} must be one of: {', '.join(ACTIONS)}")
        if self.window < 1:
            raise ValueError(f"alarms.{self.name}.window={self.window} must be at least 1")
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name not in ("action", "window") and not (math.isfinite(value) and value > 0):
                raise ValueError(f"alarms.{self.name}.{one.name}={value} must be a finite number greater than 0")

    def counts(self, metric: str, metrics: Mapping[str, float]) -> bool:
        """Whether a step with these metrics has enough of ``metric`` to go by."""
        return True

    def pressure(self, seen: Seen) -> float | None:
        """How near the alarm is: 1 at its threshold, above it where it sounds; None while too little is known."""
        raise NotImplementedError

    def said(self, seen: Seen) -> str:
        """The figures behind the pressure, for a reader."""
        parts = []
        for metric in self.metrics:
            now = seen.get(metric, Series()).mean(self.window)
            if now is not None:
                parts.append(f"{metric} {now:.3g} (has been {seen[metric].low:.3g} to {seen[metric].high:.3g})")
        return ", ".join(parts)

    def _fallen(self, seen: Seen, metric: str) -> float | None:
        series = seen.get(metric, Series())
        now = series.mean(self.window)
        return None if now is None else series.high - now


@dataclass
class OptimAlarmConfig(AlarmConfig):
    """An alarm that watches ``train_optim/``, whose figures are of the rows that trained. Fewer than ``min_rows`` of
    them are the few in which something unlikely was said, and no sample of what the policy says."""

    min_rows: int = 32

    def counts(self, metric: str, metrics: Mapping[str, float]) -> bool:
        return not metric.startswith(_OPTIM) or metrics.get(f"{_OPTIM}live_rows", math.inf) >= self.min_rows


@dataclass
class UsefulDown(AlarmConfig):
    """Useful answers fell by ``drop`` from their best, and ASR by ``asr_drop`` from its highest."""

    drop: float = 0.25
    asr_drop: float = 0.1

    name: ClassVar[str] = "useful_down"
    metrics: ClassVar[Mapping[str, Role | None]] = {f"{_ROLLOUTS}useful": None, f"{_ROLLOUTS}asr": None}
    cause: ClassVar[str] = "attacks fail because the defender no longer answers, not because it became safe"
    remedy: ClassVar[str] = (
        "rewards.help (game=robust: 0.5), game.raw_prompt_fraction, a lower actors.defender.model.optim.lr"
    )

    def pressure(self, seen: Seen) -> float | None:
        useful, asr = (self._fallen(seen, metric) for metric in self.metrics)
        return None if useful is None or asr is None else min(useful / self.drop, asr / self.asr_drop)


@dataclass
class IntentDrift(AlarmConfig):
    """Rewrites that keep the seed's intent fell by ``drop`` from their best, or are fewer than ``floor``."""

    drop: float = 0.25
    floor: float = 0.5

    name: ClassVar[str] = "intent_drift"
    metrics: ClassVar[Mapping[str, Role | None]] = {f"{_ROLLOUTS}intent_preserved": None}
    cause: ClassVar[str] = "the attacker no longer asks what its seeds ask: the defender is paid by wrong labels"
    remedy: ClassVar[str] = (
        "rewards.intent_gate, rewards.intent (game=robust: true, 0.5), a longer warm-up (sft.max_steps)"
    )

    def pressure(self, seen: Seen) -> float | None:
        (metric,) = self.metrics
        now, fallen = seen.get(metric, Series()).mean(self.window), self._fallen(seen, metric)
        if now is None or fallen is None:
            return None
        return max(fallen / self.drop, (1 - now) / (1 - self.floor)) if self.floor < 1 else fallen / self.drop


@dataclass
class AttackerCollapse(OptimAlarmConfig):
    """Of the attacker's highest entropy, or of the highest distance between its attacks on one seed, less than
    ``left`` (a share) is left."""

    left: float = 0.1

    name: ClassVar[str] = "attacker_collapse"
    metrics: ClassVar[Mapping[str, Role | None]] = {
        f"{_OPTIM}entropy": Role.ATTACKER,
        f"{_ROLLOUTS}attack_distance": Role.ATTACKER,
    }
    cause: ClassVar[str] = "the attacker has come to write one kind of attack: a low ASR against it says little"
    remedy: ClassVar[str] = "rewards.diversity, grpo.kl_beta, a lower actors.attacker.model.optim.lr"

    def pressure(self, seen: Seen) -> float | None:
        found = []
        for metric in self.metrics:
            fallen = self._fallen(seen, metric)
            if fallen is not None and seen[metric].high > 0:
                found.append(fallen / seen[metric].high / (1 - self.left) if self.left < 1 else 0.0)
        return max(found, default=None)


@dataclass
class OverRefusal(AlarmConfig):
    """Refusals of benign seeds rose by ``rise`` from their lowest."""

    rise: float = 0.2

    name: ClassVar[str] = "over_refusal"
    metrics: ClassVar[Mapping[str, Role | None]] = {f"{_ROLLOUTS}over_refusal": None}
    cause: ClassVar[str] = "refusing pays more than answering, or benign seeds are made to look harmful"
    remedy: ClassVar[str] = "rewards.help (game=robust: 0.5), game.raw_prompt_fraction, a lower data.harmful_share"

    def pressure(self, seen: Seen) -> float | None:
        (metric,) = self.metrics
        series = seen.get(metric, Series())
        now = series.mean(self.window)
        return None if now is None else (now - series.low) / self.rise


@dataclass
class JudgeUnknown(AlarmConfig):
    """More than a share ``limit`` of the verdicts leaves something open."""

    limit: float = 0.05

    name: ClassVar[str] = "judge_unknown"
    metrics: ClassVar[Mapping[str, Role | None]] = {f"{_ROLLOUTS}unknown_share": None}
    cause: ClassVar[str] = "the judge's answers are cut, cannot be parsed, or the conversations outgrew its context"
    remedy: ClassVar[str] = "nemo-magic judge-check, the guard's own limits (docs/judge.md)"

    def pressure(self, seen: Seen) -> float | None:
        (metric,) = self.metrics
        now = seen.get(metric, Series()).mean(self.window)
        return None if now is None else now / self.limit


@dataclass
class Mismatch(OptimAlarmConfig):
    """``exp(abs(Δ log π))`` between generator and trainer is more than ``excess`` above 1, or what was sampled is by
    ``neg_logprob_minus_entropy`` nats less likely than the policy's own samples are."""

    excess: float = 0.1
    neg_logprob_minus_entropy: float = 0.3

    name: ClassVar[str] = "mismatch"
    metrics: ClassVar[Mapping[str, Role | None]] = {
        f"{_OPTIM}mismatch": None,
        f"{_OPTIM}neg_logprob_minus_entropy": None,
    }
    cause: ClassVar[str] = "the generator samples from something else than the policy that learns"
    remedy: ClassVar[str] = (
        "grpo.tis_clip where the generator tells log-probabilities; generation.trt_llm.enable=false to compare"
    )

    def pressure(self, seen: Seen) -> float | None:
        ratio, neg_logprob_minus_entropy = (seen.get(metric, Series()).mean(self.window) for metric in self.metrics)
        found = [] if ratio is None else [(ratio - 1) / self.excess]
        found += (
            [] if neg_logprob_minus_entropy is None else [neg_logprob_minus_entropy / self.neg_logprob_minus_entropy]
        )
        return max(found, default=None)


@dataclass
class AlarmsConfig:
    """What is watched in every step, and what becomes of the run when it happens."""

    useful_down: UsefulDown = field(default_factory=UsefulDown)
    intent_drift: IntentDrift = field(default_factory=IntentDrift)
    attacker_collapse: AttackerCollapse = field(default_factory=AttackerCollapse)
    over_refusal: OverRefusal = field(default_factory=OverRefusal)
    judge_unknown: JudgeUnknown = field(default_factory=JudgeUnknown)
    mismatch: Mismatch = field(default_factory=Mismatch)

    def watched(self) -> list[AlarmConfig]:
        """The alarms that are not off."""
        alarms: list[AlarmConfig] = [getattr(self, one.name) for one in fields(self)]
        return [alarm for alarm in alarms if alarm.action != "off"]


@dataclass(frozen=True, slots=True)
class AlarmEvent:
    """An alarm that began to sound, or went silent again, with the figures of ``step``."""

    step: int
    alarm: str
    raised: bool
    action: str
    pressure: float
    figures: str
    cause: str
    remedy: str

    def to_row(self) -> dict[str, Any]:
        """A flat JSON object, a line of ``alarms.jsonl``."""
        return asdict(self)

    def __str__(self) -> str:
        if not self.raised:
            return f"alarm {self.alarm} is over after step {self.step}: {self.figures}"
        return f"ALARM {self.alarm} after step {self.step}: {self.figures}. Likely: {self.cause}. Helps: {self.remedy}"


@dataclass(frozen=True)
class Alarms:
    """The state: per alarm what is remembered of its metrics, and which alarms sound."""

    seen: Mapping[str, Seen] = field(default_factory=dict)
    raised: frozenset[str] = frozenset()

    def after(
        self, config: AlarmsConfig, step: int, learner: str, metrics: Mapping[str, float]
    ) -> tuple[Alarms, list[AlarmEvent], dict[str, float]]:
        """The state with ``step`` steps done, the last of them with these metrics; what changed; ``alarms/<name>``,
        the pressure of each alarm whose windows are full."""
        seen, raised = dict(self.seen), set(self.raised)
        events, pressures = [], {}
        for alarm in config.watched():
            known = dict(seen.get(alarm.name, {}))
            for metric, role in alarm.metrics.items():
                value = metrics.get(metric, math.nan)
                if math.isfinite(value) and role in (None, learner) and alarm.counts(metric, metrics):
                    known[metric] = known.get(metric, Series()).after(value, alarm.window)
            seen[alarm.name] = known
            pressure = alarm.pressure(known)
            if pressure is None:
                continue
            pressures[f"alarms/{alarm.name}"] = pressure
            sounds = pressure >= (CLEARED if alarm.name in raised else 1.0)
            if sounds == (alarm.name in raised):
                continue
            (raised.add if sounds else raised.discard)(alarm.name)
            figures = alarm.said(known)
            events.append(
                AlarmEvent(step, alarm.name, sounds, alarm.action, pressure, figures, alarm.cause, alarm.remedy)
            )
        return Alarms(seen, frozenset(raised)), events, pressures

    def stops(self, config: AlarmsConfig) -> str | None:
        """Why the run must not go on, in words; None where it may."""
        for alarm in config.watched():
            if alarm.action == "stop" and alarm.name in self.raised:
                return (
                    f"alarms.{alarm.name}.action=stop: {alarm.said(self.seen.get(alarm.name, {}))}. Likely: "
                    f"{alarm.cause}. Helps: {alarm.remedy}. To go on as it is: alarms.{alarm.name}.action=warn"
                )
        return None

    def to_dict(self) -> dict[str, Any]:
        """The state as JSON has it; ``from_dict`` gives exactly this state back."""
        seen = {name: {metric: _saved(series) for metric, series in known.items()} for name, known in self.seen.items()}
        return {"seen": seen, "raised": sorted(self.raised)}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Alarms:
        """The state that ``to_dict`` saved.

        Raises:
            ValueError: a key is missing or unknown.
        """
        if set(saved) != {"seen", "raised"}:
            raise ValueError(
                f"alarms: the saved state has {', '.join(sorted(saved)) or 'nothing'}, not seen and raised"
            )
        seen = {
            name: {metric: _restored(name, metric, series) for metric, series in known.items()}
            for name, known in saved["seen"].items()
        }
        return cls(seen, frozenset(saved["raised"]))


def _saved(series: Series) -> dict[str, Any]:
    # JSON has no infinity: before the first full window there is neither low nor high.
    full = math.isfinite(series.low)
    return {
        "recent": list(series.recent),
        "low": series.low if full else None,
        "high": series.high if full else None,
    }


def _restored(name: str, metric: str, saved: Mapping[str, Any]) -> Series:
    if set(saved) != {"recent", "low", "high"}:
        raise ValueError(f"alarms.{name}: the saved {metric} has {', '.join(sorted(saved))}, not recent, low and high")
    low, high = saved["low"], saved["high"]
    return Series(
        tuple(saved["recent"]), math.inf if low is None else float(low), -math.inf if high is None else float(high)
    )
