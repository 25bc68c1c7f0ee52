"""The ablations take something away from whichever rules are played, and say what they need."""

from __future__ import annotations

import pytest

from nemo_magic.config import ConfigError, MagicConfig, compose

pytestmark = pytest.mark.slow


def sandbox(*words: str) -> MagicConfig:
    return compose("magic_sandbox", list(words))


def test_nothing_is_taken_away_by_default() -> None:
    assert sandbox() == sandbox("ablation=none")


@pytest.mark.parametrize("rules", ["robust", "paper", "reference"])
@pytest.mark.parametrize("ablation", ["no_game", "defender_only", "defender_cot", "magic_base", "self_play"])
def test_every_ablation_composes_with_all_rules(rules: str, ablation: str) -> None:
    cfg = sandbox(f"game={rules}", f"ablation={ablation}")
    assert cfg.rewards.help == sandbox(f"game={rules}").rewards.help


def test_each_ablation_takes_away_what_it_says() -> None:
    no_game, alone = sandbox("ablation=no_game"), sandbox("ablation=defender_only")
    assert (no_game.game.raw_prompt_fraction, no_game.game.schedule.train_roles) == (1.0, ["defender"])
    assert (alone.game.raw_prompt_fraction, alone.game.schedule.train_roles) == (0.25, ["defender"])
    assert sandbox("ablation=magic_base").actors.attacker.restore_from_path is None
    cot = sandbox("ablation=defender_cot")
    assert (cot.game.defender_cot, cot.rewards.format_defender) == (True, 0.5)
    shared = sandbox("ablation=self_play")
    assert (shared.game.self_play, shared.game.schedule.freq) == (True, 1)


def test_self_play_has_one_source_of_weights_and_one_temperature() -> None:
    with pytest.raises(ConfigError, match="set actors.attacker.restore_from_path=null"):
        sandbox("ablation=self_play", "actors.attacker.restore_from_path=/weights")
    with pytest.raises(ConfigError, match="one policy is learned at one temperature"):
        sandbox("ablation=self_play", "actors.attacker.sampling_params.temperature=0.7")


def test_a_warm_up_for_both_roles_needs_both_pools_and_an_even_batch() -> None:
    cfg = compose("sft_sandbox_shared", [], command="sft")
    assert (cfg.sft.role, cfg.sft.model_role) == ("both", "defender")
    with pytest.raises(ConfigError, match="sft.defender_pool is null"):
        compose("sft_sandbox_shared", ["sft.defender_pool=null"], command="sft")
    with pytest.raises(ConfigError, match=r"sft.batch_size=255 must be even"):
        compose("sft_sandbox_shared", ["sft.batch_size=255"], command="sft")
    with pytest.raises(ConfigError, match="read with sft.role=both only"):
        compose("sft_sandbox_defender", ["sft.defender_pool=x.jsonl"], command="sft")
