"""Bearer tokens of requests to a server."""

from __future__ import annotations

import secrets
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]
"""The bearer token of a request, as a parameter of a FastAPI dependency."""


def is_authorised(credentials: HTTPAuthorizationCredentials | None, token: str | None) -> bool:
    """Whether a request has ``token``; None: every request has. The comparison takes the same time for any value."""
    value = credentials.credentials if credentials is not None else ""
    return token is None or secrets.compare_digest(value.encode(), token.encode())
