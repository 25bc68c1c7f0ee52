"""A long run does not end because nobody reads what it prints: ``| head``, a full disk under its log."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class _Lossy:
    """A text stream that goes nowhere, and says so on ``other``, once it can no longer be written to."""

    def __init__(self, stream: Any, name: str, other: Any) -> None:
        self._stream, self._name, self._other = stream, name, other

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError as error:
            self._lose(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            # The descriptor itself: what the stream still holds, what libraries print and what children inherit.
            os.dup2(nowhere, self._stream.fileno())
        except OSError:
            self._stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        finally:
            os.close(nowhere)
        with suppress(OSError):
            print(
                f"nemo-magic: {self._name} cannot be written to ({error.strerror or error}): what the run prints there "
                "is lost from here on; the run goes on",
                file=self._other,
                flush=True,
            )


@contextmanager
def lossy_output() -> Iterator[None]:
    """Within the context standard output and standard error may become unusable: what is printed is lost, aloud where
    the other one still works, and nothing else happens."""
    before = sys.stdout, sys.stderr
    if None not in before and not isinstance(sys.stdout, _Lossy):
        sys.stdout, sys.stderr = _Lossy(before[0], "stdout", before[1]), _Lossy(before[1], "stderr", before[0])
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before
