"""The error of conversions. Imports neither torch nor transformers."""

from __future__ import annotations


class ConvertError(Exception):
    """A checkpoint cannot be converted; the message names the file or key, and nothing is left at the target."""
