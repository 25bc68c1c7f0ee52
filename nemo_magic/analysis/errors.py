"""What keeps attacks from being analysed."""

from __future__ import annotations


class AnalysisError(Exception):
    """The analysis cannot go on; what servers have answered so far is written down, and asked for no more."""
