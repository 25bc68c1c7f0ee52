"""The error of the analysis."""

from __future__ import annotations


class AnalysisError(Exception):
    """The analysis cannot go on. What servers have answered so far is cached, and will not be asked again."""
