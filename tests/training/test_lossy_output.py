"""What a long run prints may go nowhere; the run goes on."""

from __future__ import annotations

import errno
import io
import os
import sys

import pytest
from rich.console import Console

from nemo_magic.runtime.lossy_output import lossy_output


class Broken(io.StringIO):
    """Takes ``count`` writes."""

    def __init__(self, code: int, count: int, at: str) -> None:
        super().__init__()
        self.code, self.left, self.at = code, count, at

    def write(self, text: str) -> int:
        if self.at == "write":
            self._use()
        return super().write(text)

    def flush(self) -> None:
        if self.at == "flush":
            self._use()

    def _use(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(self.code, os.strerror(self.code))


@pytest.mark.parametrize("code", [errno.EPIPE, errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("at", ["write", "flush"])
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_stream_that_cannot_be_written_is_said_once_on_the_other(
    code: int, at: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, other = Broken(code, 2, at), io.StringIO()
    monkeypatch.setattr(sys, name, broken)
    monkeypatch.setattr(sys, "stderr" if name == "stdout" else "stdout", other)
    with lossy_output():
        for n in range(5):
            print(n, file=getattr(sys, name), flush=True)
            Console(file=getattr(sys, name)).print("a table")  # rich would end the process
    assert getattr(sys, name) is broken
    assert other.getvalue().count(f"{name} cannot be written to ({os.strerror(code)})") == 1


@pytest.mark.parametrize("target", ["pipe", "/dev/full"])
def test_a_descriptor_that_takes_no_more_goes_nowhere_for_libraries_and_children_too(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if target == "pipe":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open(target, os.O_WRONLY)
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    with open(writer, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with lossy_output(), lossy_output():
            print("kept in a buffer")
            print("until it is flushed", flush=True)
            assert os.write(writer, b"a library's own words") > 0
            print("again", flush=True)
        stream.flush()
    assert said.getvalue().count("stdout cannot be written to") == 1
