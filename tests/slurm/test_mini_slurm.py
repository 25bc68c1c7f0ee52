"""Where there is no Slurm and none can be had, the tests that need one fail and say why."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.slurm.mini_slurm import NoSlurmError, install


def test_without_root_the_missing_programs_and_their_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None if program == "munged" else f"/usr/bin/{program}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NoSlurmError, match="^munged not found: as root on Debian, apt-get install slurm-wlm munge$"):
        install()
