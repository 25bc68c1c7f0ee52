"""A whole game of two adapters on one base: warm-up, pool, resume, another layout, evaluation, serving."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from nemo_magic.actors.adapter_card import AdapterCard, weights_digest
from nemo_magic.convert.nemo_to_hf import nemo_to_hf
from tests.convert.tiny_hf import tensors
from tests.convert.tiny_peft import merged
from tests.training.program import SMALL, Game, checkpoint_sums, kill, played, run, start, wait_for

pytestmark = pytest.mark.process

LORA = ["model.peft.peft_scheme=lora", "model.peft.lora_tuning.adapter_dim=8", "model.optim.lr=3e-3"]
TP2 = ["model.tensor_model_parallel_size=2", "grpo.minibatches=2", "grpo.kl_beta=0.01"]
# D A D A; from the second attacker phase on, past selves are met.
SHORT = [
    "game.max_steps=4", "game.schedule.freq=1", "game.val_check_interval=4", "game.pool.draw=uniform",
    "game.pool.opponents=2", "game.strategy_sweep=null", "game.crossplay.num_seeds=4",
]  # fmt: skip


def on_base(game: Game, *starts: str) -> list[str]:
    """Both roles stand on the attacker's warmed-up weights; the defender has learned an adapter of its own."""
    base = game.home / "attacker" / "weights"
    return [
        *LORA, f"actors.attacker.restore_from_path={base}", f"actors.defender.restore_from_path={base}",
        "actors.attacker.model.optim.lr=3e-3", "actors.defender.model.optim.lr=3e-3", *starts,
    ]  # fmt: skip


def defender_start(game: Game) -> str:
    return f"actors.defender.model.peft.restore_from_path={game.home / 'defender_adapters' / 'weights'}"


@pytest.fixture(scope="module")
def base_before(game: Game) -> str:
    return weights_digest(game.home / "attacker" / "weights")


@pytest.fixture(scope="module")
def adapter_game(game: Game, base_before: str) -> Path:
    """Played through at TP2 with a reference policy and two updates a rollout; the defender warmed up as an adapter."""
    base = game.home / "attacker" / "weights"
    run(
        "sft", "-cn", "sft_sandbox_defender", f"sandbox.folder={game.home / 'sandbox'}", *SMALL, *LORA,
        f"actors.defender.restore_from_path={base}", f"exp_manager.explicit_log_dir={game.home / 'defender_adapters'}",
        "sft.max_steps=20", "sft.batch_size=64",
    )  # fmt: skip
    run(*game.words("adapters", *TP2, *SHORT, *on_base(game, defender_start(game))))
    return game.folder("adapters")


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.distcp"))


def test_a_warm_up_and_every_snapshot_hold_adapters_on_the_base_and_the_base_is_as_it_was(
    game: Game, adapter_game: Path, base_before: str
) -> None:
    base = game.home / "attacker" / "weights"
    folders = [game.home / "defender_adapters" / "weights", *adapter_game.glob("snapshots/*/*")]
    assert len(folders) == 7  # two starts and four phases
    for folder in folders:
        card = AdapterCard.read(folder)
        assert card is not None
        assert card.base == str(base)
        assert size(folder) < size(base) / 2
    checkpoint = adapter_game / "checkpoints" / "step_000004"
    names = FileSystemReader(checkpoint / "policies").read_metadata().state_dict_metadata
    tensors = {name for name, stored in names.items() if isinstance(stored, TensorStorageMetadata)}
    assert len(tensors) == 2 * 3 * 8  # of two roles: weights and both moments of A and B of four layers
    assert all(".adapter_layer." in name for name in tensors)
    assert json.loads((checkpoint / "state.json").read_text())["adapters"].keys() == {"attacker", "defender"}
    assert weights_digest(base) == base_before


def test_both_roles_learn_and_past_selves_are_met(adapter_game: Path) -> None:
    rows = played(adapter_game)
    assert [row["phase"] for row in rows[1:]] == ["defender", "attacker", "defender", "attacker"]
    assert all(row["train_optim/grad_norm"] > 0 for row in rows[1:] if "train_optim/grad_norm" in row)
    assert any("asr_vs_" in key for row in rows for key in row)
    matrix = json.loads((adapter_game / "crossplay.json").read_text())
    assert len(matrix["attackers"]) == 4
    assert len(matrix["defenders"]) == 3


def test_a_game_of_adapters_goes_on_bit_for_bit(game: Game, adapter_game: Path) -> None:
    again = game.folder("adapters_again")
    shutil.copytree(adapter_game, again)
    for step in (3, 4):
        shutil.rmtree(again / "checkpoints" / f"step_{step:06d}")
    run(*game.words("adapters_again", *TP2, *SHORT, *on_base(game)))
    assert played(again) == played(adapter_game)
    assert checkpoint_sums(again, 4) == checkpoint_sums(adapter_game, 4)


def test_it_goes_on_at_another_layout_and_on_no_other_base(game: Game, adapter_game: Path) -> None:
    from_two = ["--resume", str(adapter_game / "checkpoints" / "step_000002")]
    one_rank = ["trainer.devices=1", *TP2[1:], "game.crossplay.enabled=false"]
    run(*game.words("adapters_tp1", *one_rank, *SHORT, *on_base(game)), *from_two)
    rows, others = played(game.folder("adapters_tp1")), played(adapter_game)
    assert rows[-1]["step"] == 4
    assert rows[0]["train_optim/grad_norm"] == pytest.approx(others[3]["train_optim/grad_norm"], rel=0.02)
    other = game.home / "defender" / "weights"
    elsewhere = [f"actors.{role}.restore_from_path={other}" for role in ("attacker", "defender")]
    refused = run(*game.words("adapters_other", *one_rank, *SHORT, *on_base(game), *elsewhere), *from_two, status=1)
    assert "their base is" in refused.stdout + refused.stderr


def test_an_evaluation_of_adapters_repeats_the_last_validation(game: Game, adapter_game: Path) -> None:
    folder = game.folder("adapters_evaluated")
    selves = {"attacker": "phase-03", "defender": "phase-02"}
    run(
        "evaluate", "-cn", "eval_sandbox", f"exp_manager.explicit_log_dir={folder}", "trainer.devices=1",
        f"sandbox.folder={game.home / 'sandbox'}", *SMALL, *on_base(game), "eval.tasks.test.limit=4",
        *(
            f"actors.{role}.model.peft.restore_from_path={adapter_game / 'snapshots' / role / name}"
            for role, name in selves.items()
        ),
    )  # fmt: skip
    found: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())["figures"]
    rates = {(figure["task"], figure["figure"]): figure["rate"] for figure in found}
    last = played(adapter_game)[-1]
    assert rates["validation", "harmful asr"] == last["val_rollouts/asr"]
    assert rates["validation", "benign over-refusal"] == last["val_rollouts/over_refusal"]
    assert rates["validation", "benign useful"] == last["val_rollouts/useful"]


def test_what_a_run_learned_is_exported_as_adapters_and_merged(game: Game, adapter_game: Path, tmp_path: Path) -> None:
    snapshot = adapter_game / "snapshots" / "attacker" / "phase-03"
    nemo_to_hf(game.home / "attacker", tmp_path / "base", say=lambda _: None)
    for name, source, role in (("run", adapter_game, "defender"), ("self", snapshot, None)):
        nemo_to_hf(source, tmp_path / f"{name}_merged", role, say=lambda _: None)
        nemo_to_hf(source, tmp_path / f"{name}_peft", role, say=lambda _: None, adapter=True)
        expected = merged(tmp_path / "base", tmp_path / f"{name}_peft", 32 / 8)
        found = tensors(tmp_path / f"{name}_merged")
        assert expected.keys() == found.keys()
        assert all(torch.allclose(tensor, found[key], rtol=0, atol=1e-6) for key, tensor in expected.items())


@pytest.mark.parametrize(
    ("name", "words", "adapted"),
    [
        ("two_bases", LORA, {"attacker", "defender"}),
        ("one_whole", [f"actors.defender.{word}" for word in LORA[:2]], {"defender"}),
        ("self_play", [*LORA, "game.self_play=true", "actors.attacker.restore_from_path=null"], {"shared"}),
    ],
)
def test_roles_that_cannot_share_a_base_learn_each_on_its_own(
    game: Game, name: str, words: list[str], adapted: set[str]
) -> None:
    run(*game.quick(name, *words, "trainer.devices=1", "game.max_steps=2", "game.schedule.freq=1"))
    rows = played(game.folder(name))
    # A step in which no group has spread makes no update.
    assert any(row.get("train_optim/grad_norm", 0) > 0 for row in rows[1:])
    state = json.loads((game.folder(name) / "checkpoints" / "step_000002" / "state.json").read_text())
    assert {policy for policy, card in state["adapters"].items() if card is not None} == adapted
    for policy in adapted:
        role = "defender" if policy == "shared" else policy
        assert state["adapters"][policy]["base"] == str(game.home / role / "weights")


def test_adapters_given_as_a_base_are_refused_with_what_to_set(game: Game, adapter_game: Path) -> None:
    own = adapter_game / "snapshots" / "defender" / "start"
    refused = run(*game.words("adapters_base", f"actors.defender.restore_from_path={own}"), status=2)
    said = refused.stdout + refused.stderr
    assert f"restore_from_path={own} holds adapters, and has to be their base: set it to" in said


def test_a_role_that_is_adapters_is_served(game: Game, adapter_game: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    own = adapter_game / "snapshots" / "defender" / "phase-02"
    server = start(
        "serve", "-cn", "magic_sandbox", f"sandbox.folder={game.home / 'sandbox'}", *SMALL, *on_base(game),
        f"actors.defender.model.peft.restore_from_path={own}", "trainer.devices=1", "serve.model=d", "serve.port=0",
        log=log,
    )  # fmt: skip
    try:
        wait_for(lambda: ", ready" in log.read_text(), server, log)
        url = next(word for word in log.read_text().split() if word.startswith("http://")).rstrip(",")
        body = {"model": "d", "messages": [{"role": "user", "content": "so"}], "max_tokens": 2}
        assert httpx.post(f"{url}/chat/completions", json=body, trust_env=False, timeout=60).status_code == 200
    finally:
        kill(server)
