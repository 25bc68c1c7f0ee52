"""What can end an evaluation that had begun."""

from __future__ import annotations


class EvaluationError(Exception):
    """The evaluation cannot go on; the answers and verdicts so far are on disk."""
