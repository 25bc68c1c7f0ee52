"""What adapters say of themselves, and what they stand on."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from nemo_magic.actors.adapter_card import ADAPTER_CARD, AdapterCard, base_digest, weights_digest
from nemo_magic.actors.errors import ModelError
from nemo_magic.model_config import LoraConfig

CARD = AdapterCard.of("/base", "d1", LoraConfig(adapter_dim=8, target_modules=["mlp"]))


def test_a_card_is_read_as_it_was_written_and_is_missing_where_there_is_none(tmp_path: Path) -> None:
    assert AdapterCard.read(tmp_path) is None
    CARD.write(tmp_path)
    assert AdapterCard.read(tmp_path) == CARD == AdapterCard.from_dict(json.loads(json.dumps(asdict(CARD))))


def test_a_card_that_says_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / ADAPTER_CARD).write_text('{"base": "/b"}')
    with pytest.raises(ModelError, match=r"adapter.json does not say which adapters these are"):
        AdapterCard.read(tmp_path)


def test_other_adapters_are_told_apart_by_base_and_shape_and_not_by_where_the_base_is() -> None:
    assert not CARD.differences(replace(CARD, base="/elsewhere"))
    assert "their base is /base (d2) and not /base (d1)" in CARD.differences(replace(CARD, digest="d2"))[0]
    assert CARD.differences(replace(CARD, alpha=1.0)) == ["they have model.peft.lora_tuning.alpha=1.0 and not 32.0"]
    (targets,) = CARD.differences(replace(CARD, targets=("mlp_fc1",)))
    assert targets == "they have model.peft.lora_tuning.target_modules=mlp_fc1 and not mlp_fc1, mlp_fc2"


def test_a_base_is_known_by_its_tensors_whatever_lies_beside_them(tmp_path: Path) -> None:
    (tmp_path / "__0_0.distcp").write_bytes(b"weights")
    before, everything = base_digest(tmp_path), weights_digest(tmp_path)
    (tmp_path / "model.yaml").write_text("num_layers: 3")
    assert base_digest(tmp_path) == before
    assert weights_digest(tmp_path) != everything
    (tmp_path / "__0_0.distcp").write_bytes(b"Weights")
    assert base_digest(tmp_path) != before


def test_a_nemo_file_is_a_base_too(tmp_path: Path) -> None:
    file = tmp_path / "m.nemo"
    file.write_bytes(b"weights")
    before = base_digest(file)
    file.write_bytes(b"Weights")
    assert base_digest(file) != before
