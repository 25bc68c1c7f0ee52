"""Weights that would run something are refused by an actor, in whatever file of a checkpoint they hide it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemo_magic.sandbox.corpus import prepare
from nemo_magic.sandbox.world import SandboxConfig
from tests import zygote
from tests.compat.payloads import objects

pytestmark = pytest.mark.process

NAMES = sorted(objects(Path("/nowhere/marker")))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str, bool]]:
    """What was tried → (kind of error, its text, whether it ran)."""
    folder = tmp_path_factory.mktemp("unsafe")
    prepare(SandboxConfig(folder=str(folder / "sandbox"), attack_rows=10, defender_rows=10))
    program = Path(__file__).with_name("unsafe_world.py")
    run = zygote.run(zygote.script(program, str(folder), ranks=1), timeout=300)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("place", ["metadata", "common", "extra_state"])
def test_an_actor_refuses_by_name_what_would_run(found: dict[str, tuple[str, str, bool]], place: str) -> None:
    more = ["nemo posix.system", "policies posix.system"] if place != "extra_state" else []
    for name in [*NAMES, *more]:
        kind, text, ran = found[f"{place} {name}"]
        assert (kind, ran) == ("ModelError", False), (name, text)
        assert f"{name.rpartition(' ')[2]}, which weights do not consist of" in text


def test_neither_torchscript_nor_random_states_run(found: dict[str, tuple[str, str, bool]]) -> None:
    for name in ("common torch.jit.load", "rng posix.system"):
        kind, text, ran = found[name]
        assert (kind, ran) == ("ModelError", False), text


def test_own_weights_are_read_and_trusted_ones_do_what_they_want(found: dict[str, tuple[str, str, bool]]) -> None:
    assert found["whole"][0] == "none"
    assert found["trusted"][2]
