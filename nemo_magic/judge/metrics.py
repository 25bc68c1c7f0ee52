"""A judge's metrics, for Prometheus. No text under judgement is ever in a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from nemo_magic.judge.protocol import Ask, JudgeItem, JudgeVerdict

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

_COUNTS = {
    "questions": ("questions that items came down to", ("guard", "kind")),
    "cache_hits": ("questions answered from the cache", ("guard",)),
    "coalesced": ("questions answered by one that was under way", ("guard",)),
    "model_calls": ("questions put to the guard's model", ("guard",)),
    "unparsed": ("texts of the guard's model outside of its grammar", ("guard", "kind")),
    "guard_errors": ("questions without a text, by error", ("guard", "kind")),
    "cache_errors": ("times the cache could not be read or written, or was begun anew", ("kind",)),
    "disagreements": ("fields on which the members of an ensemble differ", ("guard", "field")),
}
_DISTRIBUTIONS = {
    "model_seconds": ("a call of the guard's model, waiting for its turn included", ("guard",), _SECONDS),
    "model_batch": ("questions that an in-process model decoded at once", ("model",), _SIZES),
    "model_waiting": ("questions that were left waiting then", ("model",), (0, *_SIZES)),
}


class Metrics:
    """The Telemetry of guards and models, in a registry of its own, so that two judges in a process do not mix."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._counts = {
            name: Counter(f"judge_{name}", about, labels, registry=registry)
            for name, (about, labels) in _COUNTS.items()
        }
        self._distributions = {
            name: Histogram(f"judge_{name}", about, labels, buckets=buckets, registry=registry)
            for name, (about, labels, buckets) in _DISTRIBUTIONS.items()
        }
        self.requests = Counter("judge_requests", "requests to judge, by status", ("status",), registry=registry)
        self.seconds = Histogram(
            "judge_request_seconds", "from the end of a request's body to its answer", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.batch = Histogram("judge_batch_items", "items in a request", buckets=_SIZES, registry=registry)
        self.pending = Gauge("judge_pending_items", "items under judgement", registry=registry)
        self.ready = Gauge("judge_ready", "1 when the last probe was judged", registry=registry)
        self._labelled: dict[tuple[Any, ...], Any] = {}
        self._verdicts = Counter("judge_verdicts", "verdicts given", ("guard",), registry=registry)
        self._unknown = Counter("judge_unknown", "fields answered unknown", ("guard", "field"), registry=registry)

    def count(self, name: str, n: int = 1, **labels: str) -> None:
        """Add to a total. Raises KeyError for a name that ``judge/telemetry.py`` does not have."""
        self._child(self._counts[name], name, labels).inc(n)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add a value. Raises KeyError for a name that ``judge/telemetry.py`` does not have."""
        self._child(self._distributions[name], name, labels).observe(value)

    def _child(self, metric: Any, name: str, labels: Mapping[str, str]) -> Any:
        """The metric at these labels; looked up by Prometheus once, as that takes longer than counting."""
        key = (name, *labels.items())
        if (child := self._labelled.get(key)) is None:
            child = self._labelled[key] = metric.labels(**labels)
        return child

    def count_verdicts(self, guard: str, items: Sequence[JudgeItem], verdicts: Sequence[JudgeVerdict]) -> int:
        """Count a request's verdicts; returns how many of them leave something unknown."""
        self.batch.observe(len(items))
        self._verdicts.labels(guard=guard).inc(len(verdicts))
        unknown_fields = [[field for field in Ask if getattr(verdict, field) == field.unknown] for verdict in verdicts]
        for fields in unknown_fields:
            for field in fields:
                self._unknown.labels(guard=guard, field=field.value).inc()
        return sum(map(bool, unknown_fields))

    def page(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)
