"""Alarms: ways in which a game goes wrong while its ASR looks good, checked after every step.

Pure, as the schedule is: the state after ``n`` steps depends on the configuration and on the metrics of these steps
only, and a saved and restored state continues as the unbroken one does. A metric that a step does not report as a
finite number adds nothing; an alarm whose metrics are never reported never sounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, ClassVar

from typing_extensions import override

from nemo_magic.config_checks import CheckedConfig, FinitePositiveFloat, OneOf, PositiveInt
from nemo_magic.game.episode import Role

CLEAR_RATIO = 0.5
"""A raised alarm is cleared below this threshold ratio, so that a figure around the threshold raises it once."""

_ROLLOUTS, _OPTIM = "train_rollouts/", "train_optim/"

LIVE_ROWS = f"{_OPTIM}live_rows"
PHASE_LIVE_ROWS = f"{_OPTIM}phase_live_rows"
"""``LIVE_ROWS`` of all steps of a phase together; only the step that ends the phase, or the run, has it."""


@dataclass(frozen=True, slots=True)
class Series:
    """A metric's last values, oldest first, and the lowest and highest mean of a full window until now."""

    recent: tuple[float, ...] = ()
    low: float = math.inf
    high: float = -math.inf

    def append(self, value: float, window: int) -> Series:
        """The series with one more value, of which the last ``window`` are kept."""
        recent = (*self.recent, value)[-window:]
        if len(recent) < window:
            return Series(recent, self.low, self.high)
        mean = math.fsum(recent) / window
        return Series(recent, min(self.low, mean), max(self.high, mean))

    def mean(self, window: int) -> float | None:
        """The mean of the last ``window`` values; None while there are fewer."""
        return math.fsum(self.recent[-window:]) / window if len(self.recent) >= window else None


SeriesByMetric = Mapping[str, Series]


@dataclass
class AlarmConfig(CheckedConfig):
    """One alarm. ``action``: off, warn, or stop the run at a checkpoint. ``window``: values that are averaged."""

    action: Annotated[str, OneOf("off", "warn", "stop")] = "warn"
    window: PositiveInt = 10

    metrics: ClassVar[Mapping[str, Role | None]] = {}
    """The metrics that the alarm reads, and whose steps it reads them in (None: all steps)."""
    cause: ClassVar[str] = ""
    remedy: ClassVar[str] = ""
    is_logged: ClassVar[bool] = True
    """Whether ``alarms/<name>`` is a metric: where the alarm's own are known in every step."""

    @property
    def name(self) -> str:
        """Its key below ``alarms``."""
        return self.KEY.removeprefix("alarms.")

    def accepts(self, metric: str, metrics: Mapping[str, float]) -> bool:
        """Whether a step with these metrics has enough samples behind ``metric`` to count."""
        return True

    def threshold_ratio(self, series: SeriesByMetric) -> float | None:
        """How near the alarm is: 1 at its threshold, more where it sounds; None while the windows are not full."""
        raise NotImplementedError

    def describe(self, series: SeriesByMetric) -> str:
        """The figures behind the threshold ratio, in words."""
        parts = []
        for metric in self.metrics:
            mean = self._mean(series, metric)
            if mean is not None:
                parts.append(f"{metric} {mean:.3g} (has been {series[metric].low:.3g} to {series[metric].high:.3g})")
        return ", ".join(parts)

    def _mean(self, series: SeriesByMetric, metric: str) -> float | None:
        return series[metric].mean(self.window) if metric in series else None

    def _drop(self, series: SeriesByMetric, metric: str) -> float | None:
        """By how much the mean fell from its highest."""
        mean = self._mean(series, metric)
        return None if mean is None else series[metric].high - mean


@dataclass
class OptimAlarmConfig(AlarmConfig):
    """An alarm on ``train_optim/``, whose figures are of the rows that trained. A step with fewer than ``min_rows`` of
    them does not count: few rows are the ones with an unlikely response, and no sample of the policy."""

    min_rows: PositiveInt = 32

    @override
    def accepts(self, metric: str, metrics: Mapping[str, float]) -> bool:
        return not metric.startswith(_OPTIM) or metrics.get(LIVE_ROWS, math.inf) >= self.min_rows


@dataclass
class UsefulDown(AlarmConfig):
    """Useful answers fell by ``drop`` from their best, and ASR by ``asr_drop`` from its highest."""

    drop: FinitePositiveFloat = 0.25
    asr_drop: FinitePositiveFloat = 0.1

    KEY: ClassVar[str] = "alarms.useful_down"
    metrics: ClassVar[Mapping[str, Role | None]] = {f"{_ROLLOUTS}useful": None, f"{_ROLLOUTS}asr": None}
    cause: ClassVar[str] = "attacks fail because the defender no longer answers, not because it became safe"
    remedy: ClassVar[str] = (
        "rewards.help (game=robust: 0.5), game.raw_prompt_fraction, a lower actors.defender.model.optim.lr"
    )

    @override
    def threshold_ratio(self, series: SeriesByMetric) -> float | None:
        useful, asr = (self._drop(series, metric) for metric in self.metrics)
        return None if useful is None or asr is None else min(useful / self.drop, asr / self.asr_drop)


@dataclass
class IntentDrift(AlarmConfig):
    """Rewrites that keep the seed's intent fell by ``drop`` from their best, or are fewer than ``floor``."""

    drop: FinitePositiveFloat = 0.25
    floor: FinitePositiveFloat = 0.5

    KEY: ClassVar[str] = "alarms.intent_drift"
    metrics: ClassVar[Mapping[str, Role | None]] = {f"{_ROLLOUTS}intent_preserved": None}
    cause: ClassVar[str] = "the attacker no longer asks what its seeds ask: wrong labels decide the defender's reward"
    remedy: ClassVar[str] = (
        "rewards.intent_gate, rewards.intent (game=robust: true, 0.5), a longer warm-up (sft.max_steps)"
    )

    @override
    def threshold_ratio(self, series: SeriesByMetric) -> float | None:
        (metric,) = self.metrics
        mean, drop = self._mean(series, metric), self._drop(series, metric)
        if mean is None or drop is None:
            return None
        return max(drop / self.drop, (1 - mean) / (1 - self.floor)) if self.floor < 1 else drop / self.drop


@dataclass
class AttackerCollapse(OptimAlarmConfig):
    """The attacker's entropy, or the distance between its attacks on one seed, is less than a share ``left`` of its
    highest."""

    left: FinitePositiveFloat = 0.1

    KEY: ClassVar[str] = "alarms.attacker_collapse"
    metrics: ClassVar[Mapping[str, Role | None]] = {
        f"{_OPTIM}entropy": Role.ATTACKER,
        f"{_ROLLOUTS}attack_distance": Role.ATTACKER,
    }
    cause: ClassVar[str] = "the attacker writes one kind of attack only: a low ASR against it says little"
    remedy: ClassVar[str] = "rewards.diversity, grpo.kl_beta, a lower actors.attacker.model.optim.lr"

    @override
    def threshold_ratio(self, series: SeriesByMetric) -> float | None:
        ratios = []
        for metric in self.metrics:
            drop = self._drop(series, metric)
            if drop is not None and series[metric].high > 0:
                ratios.append(drop / series[metric].high / (1 - self.left) if self.left < 1 else 0.0)
        return max(ratios, default=None)


@dataclass
class OverRefusal(AlarmConfig):
    """Refusals of benign seeds rose by ``rise`` from their lowest."""

    rise: FinitePositiveFloat = 0.2

    KEY: ClassVar[str] = "alarms.over_refusal"
    metrics: ClassVar[Mapping[str, Role | None]] = {f"{_ROLLOUTS}over_refusal": None}
    cause: ClassVar[str] = "refusing pays more than answering, or benign seeds are made to look harmful"
    remedy: ClassVar[str] = "rewards.help (game=robust: 0.5), game.raw_prompt_fraction, a lower data.harmful_share"

    @override
    def threshold_ratio(self, series: SeriesByMetric) -> float | None:
        (metric,) = self.metrics
        mean = self._mean(series, metric)
        return None if mean is None else (mean - series[metric].low) / self.rise


@dataclass
class JudgeUnknown(AlarmConfig):
    """More than a share ``limit`` of the verdicts has an unknown field."""

    limit: FinitePositiveFloat = 0.05

    KEY: ClassVar[str] = "alarms.judge_unknown"
    metrics: ClassVar[Mapping[str, Role | None]] = {f"{_ROLLOUTS}unknown_share": None}
    cause: ClassVar[str] = "the judge's answers are cut, cannot be parsed, or the conversations outgrew its context"
    remedy: ClassVar[str] = "nemo-magic judge-check, the guard's own limits (docs/judge.md)"

    @override
    def threshold_ratio(self, series: SeriesByMetric) -> float | None:
        (metric,) = self.metrics
        mean = self._mean(series, metric)
        return None if mean is None else mean / self.limit


@dataclass
class Mismatch(OptimAlarmConfig):
    """``exp(abs(Δ log π))`` between generator and trainer is more than ``excess`` above 1, or the sampled tokens are by
    ``neg_logprob_minus_entropy`` nats less likely than the policy's own samples are."""

    excess: FinitePositiveFloat = 0.1
    neg_logprob_minus_entropy: FinitePositiveFloat = 0.3

    KEY: ClassVar[str] = "alarms.mismatch"
    metrics: ClassVar[Mapping[str, Role | None]] = {
        f"{_OPTIM}mismatch": None,
        f"{_OPTIM}neg_logprob_minus_entropy": None,
    }
    cause: ClassVar[str] = "the generator samples from something else than the policy that learns"
    remedy: ClassVar[str] = (
        "grpo.tis_clip where the generator returns log-probabilities; generation.engine=native to compare"
    )

    @override
    def threshold_ratio(self, series: SeriesByMetric) -> float | None:
        mismatch, nats = (self._mean(series, metric) for metric in self.metrics)
        ratios = [] if mismatch is None else [(mismatch - 1) / self.excess]
        ratios += [] if nats is None else [nats / self.neg_logprob_minus_entropy]
        return max(ratios, default=None)


@dataclass
class NoLiveRows(AlarmConfig):
    """Fewer than ``at_least`` responses trained in a whole phase: the learner did not learn. ``window``: phases.

    Its metric is known when a phase ends, or the run; it is no figure of ``metrics.jsonl``.
    """

    window: PositiveInt = 1
    at_least: FinitePositiveFloat = 1.0

    KEY: ClassVar[str] = "alarms.no_live_rows"
    metrics: ClassVar[Mapping[str, Role | None]] = {PHASE_LIVE_ROWS: None}
    is_logged: ClassVar[bool] = False
    cause: ClassVar[str] = (
        "all samples of every group have the same reward: the phase is won or lost, or the model says one thing only"
    )
    remedy: ClassVar[str] = "a larger game.group_size, harder seeds, a look at the conversations (samples/)"

    @override
    def threshold_ratio(self, series: SeriesByMetric) -> float | None:
        mean = self._mean(series, PHASE_LIVE_ROWS)
        return None if mean is None else max(0.0, 2 - mean / self.at_least)

    @override
    def describe(self, series: SeriesByMetric) -> str:
        phases = "the last phase" if self.window == 1 else f"a phase, mean of the last {self.window}"
        return f"{self._mean(series, PHASE_LIVE_ROWS) or 0:g} responses trained in {phases}"


@dataclass
class AlarmsConfig:
    """All alarms, with what the run does when one sounds."""

    useful_down: UsefulDown = field(default_factory=UsefulDown)
    intent_drift: IntentDrift = field(default_factory=IntentDrift)
    attacker_collapse: AttackerCollapse = field(default_factory=AttackerCollapse)
    over_refusal: OverRefusal = field(default_factory=OverRefusal)
    judge_unknown: JudgeUnknown = field(default_factory=JudgeUnknown)
    mismatch: Mismatch = field(default_factory=Mismatch)
    no_live_rows: NoLiveRows = field(default_factory=NoLiveRows)

    def enabled(self) -> list[AlarmConfig]:
        """The alarms that are not off."""
        alarms: list[AlarmConfig] = [getattr(self, one.name) for one in fields(self)]
        return [alarm for alarm in alarms if alarm.action != "off"]


@dataclass(frozen=True, slots=True)
class AlarmEvent:
    """An alarm that was raised (``raised``) or cleared after ``step``, with the figures of that step."""

    step: int
    alarm: str
    raised: bool
    action: str
    threshold_ratio: float
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
    """The state: each alarm's series, and which alarms sound."""

    series: Mapping[str, SeriesByMetric] = field(default_factory=dict)
    raised: frozenset[str] = frozenset()

    def after(
        self, config: AlarmsConfig, step: int, learner: str, metrics: Mapping[str, float]
    ) -> tuple[Alarms, list[AlarmEvent], dict[str, float]]:
        """The state after ``step`` steps, the last of them with these metrics.

        Also returns what changed, and ``alarms/<name>``: the threshold ratio of each alarm whose windows are full.
        """
        series, raised = dict(self.series), set(self.raised)
        events, ratios = [], {}
        for alarm in config.enabled():
            of_alarm = dict(series.get(alarm.name, {}))
            for metric, role in alarm.metrics.items():
                value = metrics.get(metric, math.nan)
                if math.isfinite(value) and role in (None, learner) and alarm.accepts(metric, metrics):
                    of_alarm[metric] = of_alarm.get(metric, Series()).append(value, alarm.window)
            series[alarm.name] = of_alarm
            ratio = alarm.threshold_ratio(of_alarm)
            if ratio is None:
                continue
            if alarm.is_logged:
                ratios[f"alarms/{alarm.name}"] = ratio
            sounds = ratio >= (CLEAR_RATIO if alarm.name in raised else 1.0)
            if sounds == (alarm.name in raised):
                continue
            (raised.add if sounds else raised.discard)(alarm.name)
            figures = alarm.describe(of_alarm)
            events.append(AlarmEvent(step, alarm.name, sounds, alarm.action, ratio, figures, alarm.cause, alarm.remedy))
        return Alarms(series, frozenset(raised)), events, ratios

    def stop_reason(self, config: AlarmsConfig) -> str | None:
        """Why the run has to stop, in words; None where it does not."""
        for alarm in config.enabled():
            if alarm.action == "stop" and alarm.name in self.raised:
                return (
                    f"{alarm.KEY}.action=stop: {alarm.describe(self.series.get(alarm.name, {}))}. Likely: "
                    f"{alarm.cause}. Helps: {alarm.remedy}. To go on as it is: {alarm.KEY}.action=warn"
                )
        return None

    def to_dict(self) -> dict[str, Any]:
        """The state as JSON has it; ``from_dict`` gives exactly this state back."""
        series = {name: {m: _series_to_dict(one) for m, one in known.items()} for name, known in self.series.items()}
        return {"seen": series, "raised": sorted(self.raised)}

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
        series = {
            name: {metric: _series_from_dict(name, metric, row) for metric, row in known.items()}
            for name, known in saved["seen"].items()
        }
        return cls(series, frozenset(saved["raised"]))


def _series_to_dict(series: Series) -> dict[str, Any]:
    # JSON has no infinity: before the first full window there is neither low nor high.
    full = math.isfinite(series.low)
    return {
        "recent": list(series.recent),
        "low": series.low if full else None,
        "high": series.high if full else None,
    }


def _series_from_dict(name: str, metric: str, saved: Mapping[str, Any]) -> Series:
    if set(saved) != {"recent", "low", "high"}:
        raise ValueError(f"alarms.{name}: the saved {metric} has {', '.join(sorted(saved))}, not recent, low and high")
    low, high = saved["low"], saved["high"]
    return Series(
        tuple(saved["recent"]), math.inf if low is None else float(low), -math.inf if high is None else float(high)
    )
