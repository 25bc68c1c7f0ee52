"""A second judge's verdicts on some of the samples: how far the first can be trusted as the game moves.

Invariants: nobody waits for the second judge, none of its verdicts or failures reaches a reward, and whether a sample
is sent to it follows from the sample alone, so that it is the same after a resume and at any number of ranks.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from nemo_magic.game.episode import Verdict
from nemo_magic.judge.check import UNKNOWN, Agreement
from nemo_magic.judge.client import JudgeClient
from nemo_magic.judge.config import JudgeConfig
from nemo_magic.judge.protocol import Ask, JudgeItem

logger = logging.getLogger(__name__)

_Pair = tuple[Ask, str, str]
"""A field, its value by the first judge, and by the second."""


@dataclass
class AuditCounts:
    """Results of audits. Picklable, so that ranks can gather and merge them."""

    samples: int = 0
    failed: int = 0
    skipped: int = 0
    pairs: Counter[_Pair] = field(default_factory=Counter)

    @classmethod
    def merged(cls, parts: Iterable[AuditCounts]) -> AuditCounts:
        """The sums."""
        total = cls()
        for part in parts:
            total.samples += part.samples
            total.failed += part.failed
            total.skipped += part.skipped
            total.pairs += part.pairs
        return total

    def figures(self) -> dict[str, float]:
        """The metrics ``judge_audit/*`` of docs/metrics.md. A figure without samples is absent, not zero."""
        figures: dict[str, float] = {"samples": self.samples, "failed": self.failed, "skipped": self.skipped}
        for ask in Ask:
            known = {(a, b): n for (name, a, b), n in self.pairs.items() if name is ask and a != UNKNOWN}
            both = Agreement(Counter({(a, b): n for (a, b), n in known.items() if b != UNKNOWN}))
            if known:
                figures[f"unknown_share_{ask}"] = 1 - both.total / sum(known.values())
            if both.agreement is not None:
                figures[f"agreement_{ask}"] = both.agreement
            if both.kappa is not None:
                figures[f"kappa_{ask}"] = both.kappa
            figures |= {f"confusion_{ask}_{a}_{b}": n / both.total for (a, b), n in sorted(both.pairs.items())}
        return {f"judge_audit/{name}": value for name, value in figures.items()}


class Auditor:
    """Sends ``judge.audit_fraction`` of the samples to the judge at ``judge.audit.urls``, from a thread of its own.

    Raises ValueError without urls, or if the token's environment variable is empty.
    """

    def __init__(self, cfg: JudgeConfig) -> None:
        self._fraction = cfg.audit_fraction
        self._max_pending = cfg.audit.max_pending
        self._client = JudgeClient(cfg.audit)
        self._lock = threading.Lock()
        self._samples: deque[tuple[_Pair, ...]] = deque(maxlen=cfg.audit.window)
        self._pending = self._failed = self._skipped = 0
        self._failing = False

    def compare(self, items: Sequence[JudgeItem], verdicts: Sequence[Verdict]) -> None:
        """Have some of ``items`` judged again, to be compared with the first judge's ``verdicts``. Returns at once."""
        chosen = [
            (item, first) for item, first in zip(items, verdicts, strict=True) if is_audited(item, self._fraction)
        ]
        with self._lock:
            room = max(self._max_pending - self._pending, 0)
            self._skipped += len(chosen[room:])
            chosen = chosen[:room]
            self._pending += len(chosen)
        if chosen:
            second = self._client.score([item for item, _ in chosen])
            second.add_done_callback(lambda future: self._record([first for _, first in chosen], future))

    def counts(self) -> AuditCounts:
        """Pairs of the last ``judge.audit.window`` samples that came back; ``failed`` and ``skipped`` of all so far."""
        with self._lock:
            pairs = Counter(pair for sample in self._samples for pair in sample)
            return AuditCounts(len(self._samples), self._failed, self._skipped, pairs)

    def close(self) -> None:
        """Cancel what is pending and end the thread."""
        self._client.close()

    def _record(self, verdicts: Sequence[Verdict], future: Future[list[Verdict]]) -> None:
        """Runs on the client's thread."""
        error = None if future.cancelled() else future.exception()
        with self._lock:
            self._pending -= len(verdicts)
            if future.cancelled():
                return
            failing, self._failing = self._failing, error is not None
            if error is not None:
                self._failed += len(verdicts)
            else:
                self._samples.extend(map(_pairs, verdicts, future.result()))
        if error is not None and not failing:
            logger.warning("samples are not audited, training goes on: %s: %s", type(error).__name__, error)
        elif failing and error is None:
            logger.warning("samples are audited again")


def is_audited(item: JudgeItem, fraction: float) -> bool:
    """Whether a sample is audited. A digest of what is judged decides, so evenly and each time the same."""
    digest = hashlib.sha256(item.content().encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _pairs(first: Verdict, second: Verdict) -> tuple[_Pair, ...]:
    values = ((ask, getattr(first, ask), getattr(second, ask)) for ask in Ask)
    return tuple((ask, str(a), str(b)) for ask, a, b in values if a is not None and b is not None)
