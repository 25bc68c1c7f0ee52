from __future__ import annotations

import gc
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.training.program import SMALL, TP2, Game, run


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


# --- what `make` picks


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slurm") or item.get_closest_marker("browser"):
            item.add_marker("system")


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What was imported stays: it need not be looked through for garbage again and again (a tenth of the time)."""
    gc.collect()
    gc.freeze()


_STARTS = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "tests.zygote")
_started: list[str] = []


def _note(event: str, args: tuple[object, ...]) -> None:
    # lscpu: joblib asks it for the cores, once, when a library is first imported.
    if event in _STARTS and "lscpu" not in str(args[:2]):
        _started.append(f"{event} {args[:2]}" if event == "subprocess.Popen" else event)


sys.addaudithook(_note)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    _started.clear()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """A test that starts a process says so: ``make test-fast`` leaves it out."""
    torn_down = yield
    if _started and item.get_closest_marker("process") is None:
        pytest.fail(f"starts a process and is not marked so: {_started[0]}", pytrace=False)
    return torn_down
