"""Parts of Python 3.11's library for 3.10, the GPU image's version. Both get the same behaviour from here.

``timeout`` raises asyncio.TimeoutError, which is the built-in TimeoutError only since 3.11: catch it by that name.
"""

from __future__ import annotations

import sys
from enum import Enum

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout

__all__ = ["StrEnum", "timeout"]


class StrEnum(str, Enum):
    """Members are strings and print as their values."""

    __str__ = str.__str__
