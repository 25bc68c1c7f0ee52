"""Debian's Chromium, driven by Playwright; installed where it is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

PROGRAM = "chromium"


class NoBrowserError(Exception):
    """There is no Chromium here, and none can be had."""


def install() -> str:
    """Have Chromium on this machine; where it is.

    Raises:
        NoBrowserError: it is not here and cannot be installed; the message says why.
    """
    found = shutil.which(PROGRAM)
    if found is not None:
        return found
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise NoBrowserError(f"{PROGRAM} not found: as root on Debian, apt-get install {PROGRAM}")
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "--yes", "--no-install-recommends", PROGRAM]):
        done = subprocess.run(["apt-get", "-qq", *words], env=quiet, capture_output=True, text=True)
        if done.returncode != 0:
            raise NoBrowserError(f"apt-get {' '.join(words)}: {done.stderr[-2000:]}")
    found = shutil.which(PROGRAM)
    if found is None:
        raise NoBrowserError(f"apt-get has installed {PROGRAM}, and it is still not found")
    return found


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless Chromium that reaches no network: what a page asks for beside files fails, and is an error."""
    with sync_playwright() as playwright:
        # A sandbox of its own cannot be had as root, nor in a container.
        words = ["--no-sandbox", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND"]
        chromium = playwright.chromium.launch(executable_path=install(), args=words)
        try:
            yield chromium
        finally:
            chromium.close()
