"""One launched world that writes down the logits of a converted folder: ``parity_world.py FOLDER TP PP``.

Not a test module: Megatron cannot be started twice in one process.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import torch

from nemo_magic.compat import cpu
from tests.convert.convert_world import logits_of, save, start

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    cpu.install()
    folder, tp, pp = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    tokens = torch.load(folder / "tokens.pt")
    keys = [f"model.encoder_seq_length={tokens.shape[1]}", f"model.make_vocab_size_divisible_by={math.lcm(128, tp)}"]
    for role in ("attacker", "defender"):
        keys += [f"actors.{role}.length_params.{key}=64" for key in ("max_prompt_length", "max_length")]
    player, _ = start(folder, "given", folder / "nemo", tp, pp, keys)
    save(logits_of(player.actor, tokens), folder / f"tp{tp}-pp{pp}.pt")
