"""``nemo-magic`` on one rank, with TensorRT-LLM's double in its place: ``trtllm_game.py train -cn … key=value …``."""

from __future__ import annotations

import sys

import torch

from tests.actors import trtllm_double as double

double.install()
# ruff: noqa: E402
from nemo_magic import cli
from nemo_magic.compat import cpu
from nemo_magic.config import engines

if __name__ == "__main__":
    install, refuse = cpu.install, engines.trt_llm_problems

    def install_with_double(**options: bool) -> None:
        install(**options)
        torch.cuda.current_device = lambda: 0  # the wrapper counts a node's devices by their numbers
        sys.modules.pop("nemo_aligner.utils.trt_llm")

    cpu.install = install_with_double
    # Everything but this is refused as ever.
    engines.trt_llm_problems = lambda *args: (text for text in refuse(*args) if "needs a GPU" not in text)
    sys.exit(cli.main(sys.argv[1:]))
