"""What can go wrong between a run and a role that a server plays. None of it ever becomes a text."""

from __future__ import annotations


class RemoteError(Exception):
    """The remote role cannot be used; the run has to stop at a checkpoint."""


class RemoteUnavailable(RemoteError):
    """Nothing answered for as long as the run was willing to wait."""


class RemoteRefused(RemoteError):
    """The server does not do what is asked: wrong token, no such model, a request it does not understand."""


class ModelError(Exception):
    """A role's model cannot be what its configuration says it is."""


class NotFiniteError(ModelError, FloatingPointError):
    """A role's weights, or what they compute, are not finite: it has diverged, and nothing it says counts."""


class BackendError(ModelError):
    """``backend`` cannot run in this environment, or on this machine."""
