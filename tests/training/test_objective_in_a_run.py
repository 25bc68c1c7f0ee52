"""Options of the objective in whole games: they play, they learn, and what they remember is in the checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.training.program import Game, run

STATEFUL = {
    "moving": ["grpo.kl_beta=0.1", "grpo.kl_gradient=weighted", "grpo.reference_every=1", "grpo.reference_mix=0.25",
               "grpo.entropy_bonus=0.01", "grpo.minibatches=2", "grpo.no_spread=keep", "grpo.dual_clip=3"],
    "roles": ["grpo.baseline=role", "grpo.scale_by_std=false", "grpo.kl_beta=0.1", "grpo.kl_in=reward",
              "grpo.reference_every=2", "rewards.overlong_buffer=8", "rewards.overlong_penalty=0.5",
              "rewards.unfinished=zero"],
    "refilled": ["grpo.refill_rounds=2", "grpo.std=sample", "grpo.policy_loss=gspo", "grpo.aggregation=sequence",
                 "grpo.minibatches=2", "grpo.tis_clip=2", "grpo.tis_mode=sequence_mask"],
}  # fmt: skip
"""Options that remember something between steps, or play more in one, together in as few games as they fit into."""


def learned(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k.startswith(("train_optim/", "train_rollouts/"))} for row in rows]


@pytest.mark.process
@pytest.mark.parametrize("name", STATEFUL)
def test_a_game_with_these_options_learns_and_goes_on_from_a_checkpoint_bit_for_bit(game: Game, name: str) -> None:
    words = [*STATEFUL[name], "trainer.devices=1", "game.max_steps=4"]
    run(*game.quick(name, *words))
    whole = learned(game.folder(name))
    assert len(whole) == 5
    assert all(row["train_optim/grad_norm"] > 0 for row in whole[1:])
    broken = game.folder(f"{name}_again")
    shutil.copytree(game.folder(name), broken, symlinks=True)
    for path in broken.glob("checkpoints/step_*"):
        if int(path.name[5:]) > 1:
            shutil.rmtree(path)
    assert "1 of 4 steps are done" in run(*game.quick(f"{name}_again", *words)).stdout
    assert learned(broken) == whole
    if name == "moving":
        # The reference is no longer where it began: against that one the distance would grow from step to step.
        assert any(row["train_optim/kl"] > 0 for row in whole[2:])
    if name == "roles":
        state = json.loads((broken / "checkpoints" / "step_000004" / "state.json").read_text())
        assert set(state["baselines"]) == {f"{r}/{k}" for r in ("attacker", "defender") for k in ("harmful", "benign")}
        assert any(state["baselines"].values())
        assert state["reference_age"] == {"attacker": 0, "defender": 0}
    if name == "refilled":
        assert any(row["train_rollouts/refilled_groups"] > 0 for row in whole[1:])
