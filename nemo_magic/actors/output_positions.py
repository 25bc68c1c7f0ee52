"""Logits of some positions only: with a real vocabulary they are most of what a short row costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from nemo_magic.actors.protocol import Actor


def first_output(actor: Actor, first: int) -> int:
    """The position that ``output_from(actor, first)`` begins at: ``first``, or 0 where the head's input is split.

    With sequence parallelism the head itself gathers the positions, each tensor-parallel rank bringing a part of them.
    """
    return 0 if any(module.config.sequence_parallel for module in actor.get_model_module_list()) else first


@contextmanager
def output_from(actor: Actor, first: int) -> Iterator[None]:
    """Let the model's head compute logits from position ``first_output(actor, first)`` on; -1 is the last one."""
    start = first_output(actor, first)

    def cut(_: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *others = args  # [positions, rows, hidden size]
        return (hidden[start:], *others)

    with ExitStack() as hooks:
        for module in actor.get_model_module_list():
            if start and module.post_process:
                hooks.callback(module.output_layer.register_forward_pre_hook(cut).remove)
        yield
