"""Rotary embeddings while decoding: keys are rotated once, when they are projected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb

if TYPE_CHECKING:
    from nemo_magic.actors.protocol import Actor


@contextmanager
def cached_rotary(actor: Actor) -> Iterator[None]:
    """Let attention keep keys that are rotated already.

    Megatron keeps them as they were projected and rotates the whole cache in every layer at every token; here queries
    and keys are rotated as they leave their (possibly identical) norms, and attention is given no rotary embedding.
    """
    embedding: list[torch.Tensor] = []

    def intercept(_: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        cache = kwargs.get("inference_context") or kwargs["inference_params"]  # Megatron-core 0.16, 0.10
        offset = cache.sequence_len_offset
        embedding[:] = [kwargs["rotary_pos_emb"][offset:]]
        return args, {**kwargs, "rotary_pos_emb": None}

    with ExitStack() as hooks:
        for module in actor.get_model_module_list():
            if module.position_embedding_type != "rope":
                continue
            hooks.callback(module.decoder.register_forward_pre_hook(intercept, with_kwargs=True).remove)

            def rotate(
                _: torch.nn.Module, args: Any, states: torch.Tensor, config: Any = module.config
            ) -> torch.Tensor:
                return apply_rotary_pos_emb(states, embedding[0][: states.size(0)], config=config)

            for layer in module.decoder.layers:
                for norm in (layer.self_attention.q_layernorm, layer.self_attention.k_layernorm):
                    hooks.callback(norm.register_forward_hook(rotate).remove)
        yield
