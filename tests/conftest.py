from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.training.program import SMALL, TP2, Game, run


def once(folder: Path, make: Callable[[], object]) -> Path:
    """``folder``, made by the first worker that asks; the others wait for it."""
    made = folder.with_name(f"{folder.name}.made")
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not made.exists():
            make()
            made.touch()
    return folder


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small sandbox and both roles warmed up for a few steps on two ranks, four layers each.

    All workers share it, and what is played in it: a game has a name of its own there, and a finished one is copied
    before something is done to it.
    """
    base = tmp_path_factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "game"
    small = [f"sandbox.folder={home / 'sandbox'}", *SMALL]

    def warm_up() -> None:
        run("sandbox", "-cn", "magic_sandbox", *small)
        for role in ("attacker", "defender"):
            run(
                "sft", "-cn", f"sft_sandbox_{role}", *small, f"exp_manager.explicit_log_dir={home / role}",
                "sft.max_steps=40", "sft.batch_size=64",
            )  # fmt: skip

    return once(home, warm_up)


@pytest.fixture(scope="session")
def game(home: Path) -> Game:
    return Game(home)


@pytest.fixture(scope="session")
def unbroken(game: Game) -> Path:
    """The folder of a game that was played through on two data-parallel ranks."""
    return once(game.folder("unbroken"), lambda: run(*game.words("unbroken")))


@pytest.fixture(scope="session")
def unbroken_tp2(game: Game) -> Path:
    """The same at TP=2, with several updates a rollout and a reference policy: as much state as there can be."""
    return once(game.folder("unbroken_tp2"), lambda: run(*game.quick("unbroken_tp2", *TP2)))


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
