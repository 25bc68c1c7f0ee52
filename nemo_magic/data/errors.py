"""The error of data files."""

from __future__ import annotations


class DataError(ValueError):
    """A data file cannot be used; the message names the file, what is missing and what would do."""
