"""Defects of NeMo's adapters that show without a model (the others: tests/actors/test_adapters.py)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests import zygote

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    done = zygote.run(zygote.module("tests.compat.lora_defects"), timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return values


def test_megatrons_module_for_transformer_engine_cannot_be_imported_without_it_and_the_adapters_can(found: Any) -> None:
    assert "transformer_engine" in found["transformer_engine"]
    assert found["adapters"]


def test_adapters_of_a_model_that_is_a_list_can_be_switched_off_and_nemo_aligner_leaves_them_on(found: Any) -> None:
    assert found["off"] == {"theirs": False, "ours": True, "after": False}


def test_the_backward_pass_of_a_frozen_layer_is_one_product_and_was_one_a_row(found: Any) -> None:
    assert (found["mended"], found["unmended"]) == (["mm"], ["bmm"])
    assert found["equal"]


def test_a_layer_finds_its_adapter_without_omegaconf_and_asked_it_at_every_look(found: Any) -> None:
    assert found["asked"]["theirs"] > 0
    assert (found["asked"]["ours"], found["asked"]["enabled"]) == (0, 0)
