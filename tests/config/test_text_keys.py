"""Keys whose type is text keep their characters, in files, on the command line and in groups without types."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nemo_magic.config import MagicConfig, compose
from nemo_magic.config.save_resolved import to_yaml
from nemo_magic.config.text_keys import marked_override, read_yaml, with_types

LIKE_NUMBERS = [
    "8710e42", "1.10", "007", "1_000", "1e5", "0.50", "12345678901234567890.0", "true", "True", "FALSE", "inf", "-1.0",
    "+1", "1e400", "0x1F", "0b11", "1.", "nan",
]  # fmt: skip
KEYS = {
    "name": lambda cfg: cfg.name,
    "data.text_column": lambda cfg: cfg.data.text_column,
    "actors.attacker.model.tokenizer.type": lambda cfg: cfg.actors.attacker.model["tokenizer"]["type"],
    "actors.defender.remote.model": lambda cfg: cfg.actors.defender.remote.model,
    "judge.guard_config.model.revision": lambda cfg: cfg.judge.guard_config["model"]["revision"],
    "judge.guard_config.guards.wug.model.model": lambda cfg: cfg.judge.guard_config["guards"]["wug"]["model"]["model"],
    "analysis.labels.model.path": lambda cfg: cfg.analysis.labels.model["path"],
    "eval.tasks.wug.file": lambda cfg: cfg.eval.tasks["wug"].file,
}


def composed(*overrides: str) -> MagicConfig:
    return compose("magic_sandbox", list(overrides), command="judge")


@pytest.mark.slow
@pytest.mark.parametrize("text", LIKE_NUMBERS)
def test_a_text_on_the_command_line_keeps_its_characters(text: str) -> None:
    cfg = composed(*(f"{key}={text}" for key in KEYS))
    assert {key: read(cfg) for key, read in KEYS.items()} == dict.fromkeys(KEYS, text)
    assert cfg.exp_manager.explicit_log_dir == f"runs/{text}"


@pytest.mark.slow
@pytest.mark.parametrize("text", LIKE_NUMBERS)
def test_a_text_in_a_file_keeps_its_characters_and_is_saved_with_them(text: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "wug.yaml").write_text(f"defaults: [sandbox]\ntext_column: {text}\n")
    (tmp_path / "mine.yaml").write_text(
        f"defaults: [magic_sandbox, {{override data: wug}}, _self_]\nname: {text}\n"
        f"data: {{train_files: [{text}, a]}}\n"
        f"judge: {{guard_config: {{model: {{revision: {text}}}}}}}\n"
        f"actors: {{defender: {{remote: {{extra_body: {{words: '{text}'}}}}}}}}\n"
    )
    cfg = compose("mine", [], str(tmp_path), "judge")
    texts = [cfg.name, cfg.data.text_column, cfg.data.train_files[0], cfg.judge.guard_config["model"]["revision"]]
    assert [*texts, cfg.actors.defender.remote.extra_body["words"]] == [text] * 5
    (tmp_path / "saved.yaml").write_text(to_yaml(cfg))
    assert compose("saved", [], str(tmp_path), "judge") == cfg


def test_lists_and_mappings_hold_texts_too() -> None:
    cfg = composed("data.train_files=[1.10, 8710e42,true,'1.0', a b]", "actors.attacker.model={tokenizer: {type: 007}}")
    assert cfg.data.train_files == ["1.10", "8710e42", "true", "1.0", "a b"]
    assert cfg.actors.attacker.model["tokenizer"] == {"type": "007"}


def test_numbers_and_flags_are_still_numbers_and_flags(tmp_path: Path) -> None:
    body = "actors.defender.remote.extra_body"
    cfg = composed(
        "game.max_steps=1_0", "grpo.kl_beta=1e-4", "game.self_play=TRUE", f"{body}.top_k=5_0", f"{body}.min_p=0.050",
        f"{body}.flag=true", f"{body}.list=[1e2, false]", "judge.guard_config.model.temperature=1e-1",
        "actors.attacker.model.hidden_size=1_28", "data.text_column=null", "trainer.precision=32",
    )  # fmt: skip
    assert (cfg.game.max_steps, cfg.grpo.kl_beta, cfg.game.self_play) == (10, 1e-4, True)
    assert cfg.actors.defender.remote.extra_body == {"top_k": 50, "min_p": 0.05, "flag": True, "list": [100.0, False]}
    assert cfg.judge.guard_config["model"]["temperature"] == 0.1
    assert cfg.actors.attacker.model["hidden_size"] == 128
    assert (cfg.data.text_column, cfg.trainer.precision) == (None, "32")
    (tmp_path / "mine.yaml").write_text(
        "defaults: [magic_sandbox, _self_]\ngame: {max_steps: 1_0, self_play: yes}\ngrpo: {kl_beta: 1e-4}\n"
        "actors: {defender: {remote: {extra_body: {top_k: 5_0, min_p: .050, flag: on, list: [1e2, off]}}}}\n"
    )
    same = compose("mine", [], str(tmp_path), "judge")
    assert (same.game.max_steps, same.grpo.kl_beta, same.game.self_play) == (10, 1e-4, True)
    assert same.actors.defender.remote.extra_body == cfg.actors.defender.remote.extra_body


@given(st.from_regex(r"[-+]?[0-9_.]{1,6}([eE][-+]?[0-9]{1,3})?", fullmatch=True))
def test_no_spelling_of_a_number_is_lost_on_the_way(text: str) -> None:
    line = marked_override(f"name={text}")
    assert with_types(line.partition("=")[2].strip("'"), str) == text
    assert "\0" not in str(with_types(line.partition("=")[2].strip("'"), float))


@given(st.from_regex(r"[-+0-9_.eExa-fA-F]{1,8}|[tT]rue|[yY]es|on|OFF", fullmatch=True))
def test_no_scalar_of_yaml_is_lost_on_the_way(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.yaml")
        path.write_text(f"name: {text}\n")
        try:
            value = read_yaml(path)
        except (ValueError, yaml.YAMLError):
            return  # 0b and the like, which PyYAML itself cannot read
        assert with_types(value, MagicConfig)["name"] == text
