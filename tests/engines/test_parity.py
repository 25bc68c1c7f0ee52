"""The published model itself: an actor's logits are those of transformers at every layout that its heads allow.

The model is a tiny random one, or the folder that NEMO_MAGIC_ENGINES_MODEL names (`make test-engines MODEL=FOLDER`).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from nemo_magic.convert.hf_to_nemo import hf_to_nemo
from tests import zygote
from tests.evaluation.served_world import make_tiny
from tests.judge.tiny_checkpoint import ALPHABET

pytestmark = [pytest.mark.process, pytest.mark.engines]

LENGTH = 256


def test_an_actor_has_the_logits_of_transformers_at_every_layout(
    tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    given = os.environ.get("NEMO_MAGIC_ENGINES_MODEL")
    hf = Path(given).resolve() if given else make_tiny(tmp_path, ALPHABET, 256, heads=2, context=LENGTH)
    hf_to_nemo(hf, tmp_path / "nemo", say=lambda _: None)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "own.yaml").write_text("defaults: [magic, _self_]\nname: own\n")
    (tmp_path / "conf" / "model" / "given.yaml").write_text((tmp_path / "nemo" / "model.yaml").read_text())

    model = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32, attn_implementation="eager")
    rows = model.config.vocab_size
    tokens = torch.randint(4, rows, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    torch.save(tokens, tmp_path / "tokens.pt")
    with torch.no_grad():
        expected = model(tokens).logits
    del model

    keys = yaml.safe_load((tmp_path / "nemo" / "model.yaml").read_text())
    parts = next(n for n in (2, 3, 5, 7) if keys["num_query_groups"] % n == 0)
    assert keys["num_layers"] % 2 == 0
    for tp, pp in ((1, 1), (parts, 1), (1, 2)):
        program = Path(__file__).with_name("parity_world.py")
        run = zygote.run(zygote.script(program, str(tmp_path), str(tp), str(pp), ranks=tp * pp), timeout=300)
        assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
        found = torch.load(tmp_path / f"tp{tp}-pp{pp}.pt")
        difference = float((found[..., :rows] - expected).abs().max())
        print(f"TP{tp} PP{pp}: logits of {expected.abs().max():.1f} at most differ by {difference:.1e} at most")
        record_property(f"tp{tp}_pp{pp}", difference)
        assert difference <= 2e-5 * float(expected.abs().max())
