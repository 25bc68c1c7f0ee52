"""The forward pass of TensorRT-LLM's stand-in, written without either Megatron or transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch


class Llama:
    """A forward pass of a Llama-like model, from TensorRT-LLM's weights of every rank. No cache, no kernel."""

    def __init__(self, config: dict[str, Any], shards: Sequence[tuple[int, int, dict[str, torch.Tensor]]]) -> None:
        self.config = config
        stages = 1 + max(stage for _, stage, _ in shards)
        layers = config["num_hidden_layers"] // stages
        parts: dict[str, list[torch.Tensor]] = {}
        for _, stage, weights in shards:
            for name, value in weights.items():
                if ".layers." in name:
                    head, number, tail = name.split(".", 3)[:2], *name.split(".", 3)[2:]
                    name = ".".join([*head, str(int(number) + stage * layers), tail])
                parts.setdefault(name, []).append(value.float())
        self.weights = {name: self._joined(name, values) for name, values in parts.items()}

    def _joined(self, name: str, values: list[torch.Tensor]) -> torch.Tensor:
        if name.endswith(("attention.dense.weight", "mlp.proj.weight")):
            return torch.cat(values, dim=1)
        if name.endswith("qkv.weight"):
            size = self.config["head_size"]
            kv = self.config["num_key_value_heads"] * size // len(values)
            split = [value.split([len(value) - 2 * kv, kv, kv]) for value in values]
            return torch.cat([torch.cat(part) for part in zip(*split, strict=True)])
        return values[0] if values[0].dim() == 1 else torch.cat(values)

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """[tokens, vocabulary], after every one of ``ids``."""
        config, weights = self.config, self.weights
        heads, groups, size = config["num_attention_heads"], config["num_key_value_heads"], config["head_size"]
        table = weights["transformer.vocab_embedding.weight"]
        x = table[[min(index, len(table) - 1) for index in ids]]
        turn = self._angles(len(ids))
        hidden = torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1)
        for number in range(config["num_hidden_layers"]):
            layer = f"transformer.layers.{number}."
            y = self._normed(x, layer + "input_layernorm.weight")
            qkv = y @ weights[layer + "attention.qkv.weight"].T
            q, k, v = qkv.split([heads * size, groups * size, groups * size], dim=-1)
            q = _turned(q.view(-1, heads, size), turn)
            k = _turned(k.view(-1, groups, size), turn).repeat_interleave(heads // groups, dim=1)
            v = v.view(-1, groups, size).repeat_interleave(heads // groups, dim=1)
            scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(size)
            seen = scores.masked_fill(hidden, -math.inf).softmax(-1)
            mixed = torch.einsum("hqk,khd->qhd", seen, v).reshape(len(ids), -1)
            x = x + mixed @ weights[layer + "attention.dense.weight"].T
            y = self._normed(x, layer + "post_layernorm.weight")
            y = torch.nn.functional.silu(y @ weights[layer + "mlp.fc.weight"].T) * (
                y @ weights[layer + "mlp.gate.weight"].T
            )
            x = x + y @ weights[layer + "mlp.proj.weight"].T
        return self._normed(x, "transformer.ln_f.weight") @ weights["lm_head.weight"].T

    def _normed(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config["norm_epsilon"]) * self.weights[name]

    def _angles(self, count: int) -> torch.Tensor:
        size = self.config["head_size"]
        rates = [self.config["rotary_base"] ** (-2 * i / size) for i in range(size // 2)]
        scaling = self.config.get("rotary_scaling")
        if scaling is not None:
            assert scaling["type"] == "llama3"
            rates = [_llama3(rate, scaling) for rate in rates]
        return torch.outer(torch.arange(count).float(), torch.tensor(rates))


def _llama3(rate: float, scaling: dict[str, Any]) -> float:
    """Slow waves are stretched by the factor, fast ones are not, and between them it is interpolated."""
    waves = scaling["original_max_position_embeddings"] * rate / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = min(1.0, max(0.0, (waves - low) / (high - low)))
    return (1 - kept) * rate / scaling["factor"] + kept * rate


def _turned(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
