"""Counts and distributions of the work of guards and models. They never contain a text under judgement.

Counts (``Telemetry.count``):
    ``questions`` {guard, kind}     questions that items came down to
    ``cache_hits`` {guard}          answered from the cache
    ``coalesced`` {guard}           answered by a question that was already under way
    ``model_calls`` {guard}         put to the model
    ``unparsed`` {guard, kind}      texts outside the guard's grammar
    ``guard_errors`` {guard, kind}  questions without a text; ``kind`` is the error's class
    ``cache_errors`` {kind}         the cache could not be read or written, or was begun anew (``corrupt``)
    ``disagreements`` {guard, field}  fields on which the members of an ensemble differ

Distributions (``Telemetry.observe``):
    ``model_seconds`` {guard}       a call of the model, waiting for its turn included
    ``model_batch`` {model}         rows that an in-process model decoded at once
    ``model_waiting`` {model}       questions that were left waiting then
"""

from __future__ import annotations

from typing import Protocol


class Telemetry(Protocol):
    """Takes counts and values from the event loop and from the threads of caches and models alike."""

    def count(self, name: str, n: int = 1, **labels: str) -> None:
        """Add ``n`` to a total."""

    def observe(self, name: str, value: float, **labels: str) -> None:
        """One value of a distribution; seconds where the name says so."""


class NoTelemetry:
    """Drops everything."""

    def count(self, name: str, n: int = 1, **labels: str) -> None:
        """Nothing."""

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Nothing."""


NO_TELEMETRY: Telemetry = NoTelemetry()
