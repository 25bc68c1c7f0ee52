"""Errors between a run and its judge. None of them ever becomes a verdict other than unknown."""

from __future__ import annotations


class JudgeError(RuntimeError):
    """The judge cannot be used; the run has to stop at a checkpoint."""


class JudgeUnavailable(JudgeError):
    """Nothing answered for as long as the run was willing to wait."""


class JudgeRefused(JudgeError):
    """The judge does not accept this client's token, is another guard, or cannot answer what the run asks."""


class TooManyUnknown(JudgeError):
    """The judge answers, but says ``unknown`` too often to learn from."""


class ProtocolError(ValueError):
    """Verdicts that are not the answer to what was asked."""


class GuardUnavailable(RuntimeError):
    """A guard's model cannot be reached now; the server answers 503 and the client tries again."""
