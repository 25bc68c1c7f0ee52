from __future__ import annotations

from pathlib import Path

import pytest
from program import SMALL, TP2, Game, run


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small sandbox and both roles warmed up for a few steps on two ranks, four layers each."""
    home = tmp_path_factory.mktemp("game")
    small = [f"sandbox.folder={home / 'sandbox'}", *SMALL]
    run("sandbox", "-cn", "magic_sandbox", *small)
    for role in ("attacker", "defender"):
        run(
            "sft", "-cn", f"sft_sandbox_{role}", *small, f"exp_manager.explicit_log_dir={home / role}",
            "sft.max_steps=40", "sft.batch_size=64",
        )  # fmt: skip
    return home


@pytest.fixture(scope="session")
def game(home: Path) -> Game:
    return Game(home)


@pytest.fixture(scope="session")
def unbroken(game: Game) -> Path:
    """The folder of a game that was played through on two data-parallel ranks."""
    run(*game.words("unbroken"))
    return game.folder("unbroken")


@pytest.fixture(scope="session")
def unbroken_tp2(game: Game) -> Path:
    """The same at TP=2, with several updates a rollout and a reference policy: as much state as there can be."""
    run(*game.quick("unbroken_tp2", *TP2))
    return game.folder("unbroken_tp2")
