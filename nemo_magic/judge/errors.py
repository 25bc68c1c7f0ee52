"""What can go wrong between a run and its judge. None of it ever becomes a verdict other than unknown."""

from __future__ import annotations


class JudgeError(RuntimeError):
    """The judge cannot be used; the run has to stop at a checkpoint."""


class JudgeUnavailable(JudgeError):
    """Nothing answered for as long as the run was willing to wait."""


class JudgeRefused(JudgeError):
    """The judge does not accept this client: wrong or missing token, or no judge at that address."""


class TooManyUnknown(JudgeError):
    """The judge answers, but says ``unknown`` too often to learn from."""


class ProtocolError(ValueError):
    """An answer that is not the answer to what was asked."""


class GuardUnavailable(RuntimeError):
    """Raised by a guard whose model cannot be reached now; the server answers 503 and the client tries again."""
