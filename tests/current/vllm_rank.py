"""One rank with vLLM in its process: python -m tests.current.vllm_rank OUT OVERRIDES. Rank 0 writes OUT."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nemo_magic.actors.builder import build_generator, build_policy, prepare_process
from nemo_magic.config import compose, role_model
from nemo_magic.game.episode import Role

PROMPTS = ((7, 11), (3, 12), (12, 13), (5, 14), (7, 11), (1, 15))
"""Length, and what the ids are drawn with; two are equal."""


def main(out: Path, overrides: list[str]) -> None:
    cfg = compose("magic_sandbox", overrides)
    prepare_process(cfg.backend, "cpu", cfg.generation.engine)
    from nemo_magic.actors import hf_weights
    from nemo_magic.actors.distributed import World, destroy
    from nemo_magic.actors.generation import NativeGenerator, StaleWeightsError
    from nemo_magic.actors.random_state import random_states
    from nemo_magic.actors.vllm import RefitError
    from nemo_magic.rl.batch import Row, microbatches, scatter_back

    options = cfg.actors.attacker
    with_adapters = role_model(cfg, Role.ATTACKER).peft.is_lora
    first = _built(cfg, Role.ATTACKER, None)
    second = _built(cfg, Role.DEFENDER, first.actor if with_adapters else None)
    actor, world = first.actor, World.current()
    _move(actor, 1)
    _move(second.actor, 2)
    prompts = [
        torch.randint(5, actor.chat.size, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
        for length, seed in PROMPTS
    ]
    seeds, lengths = [2**63 + i for i in range(len(prompts))], options.length_params
    actors = {one.role: one.actor for one in (first, second)}
    generator = build_generator(cfg.generation, actors, {role: cfg.actors.of(role) for role in Role})

    def rollout(one: Any, **changes: Any) -> dict[str, Any]:
        """What vLLM samples, and what the training forward pass thinks of it."""
        generator.load(one.actor)
        sampling = replace(options.sampling_params, **changes)
        completions = generator.generate(prompts, seeds, sampling, lengths)
        rows = [Row(tuple(prompt), answer.response_ids) for prompt, answer in zip(prompts, completions, strict=True)]
        batches = microbatches(rows, 4, actor.chat.pad_id)
        return {
            "ids": [answer.response_ids for answer in completions],
            "texts": [answer.text for answer in completions],
            "ended": [answer.finished for answer in completions],
            "logprobs": [answer.logprobs for answer in completions],
            "trained": [tuple(row) for row in scatter_back(batches, one.actor.token_logprobs(batches), len(rows))],
            "metrics": generator.drain(),
        }

    def raised(work: Any, kind: type[Exception]) -> str:
        try:
            work()
        except kind as error:
            return str(error)
        return ""

    def unloaded() -> None:
        generator.generate(prompts, seeds, options.sampling_params, lengths)

    found: dict[str, Any] = {"too_early": raised(unloaded, StaleWeightsError)}
    found["first"] = rollout(first)
    found["again"] = rollout(first)
    states = [str(random_states())]
    found["second"] = rollout(second)
    found["cold"] = rollout(first, temperature=0.7)["logprobs"]
    found["top"] = rollout(first, top_k=2)
    states.append(str(random_states()))
    found["greedy"] = rollout(first, use_greedy=True)
    native = NativeGenerator(cfg.generation)
    native.load(actor)
    greedy = replace(options.sampling_params, use_greedy=True)
    found["native"] = [one.response_ids for one in native.generate(prompts, seeds, greedy, lengths)]
    native.close()
    spoken = [actor.chat.raw_text([index]).strip() for index in found["greedy"]["ids"][0]]
    at, word = next((at, text) for at, text in enumerate(spoken) if at and text)
    found["word"], found["word_at"] = word, at
    found["stopped"] = rollout(first, use_greedy=True, end_strings=[word])
    found["same_states"] = states[0] == states[1]
    generator.load(actor)
    _move(actor, 3)
    found["stale"] = raised(unloaded, StaleWeightsError)
    found["moved"] = rollout(first)
    if not with_adapters:
        theirs = hf_weights.LiveWeights.tensors
        for number, (name, fault) in enumerate(FAULTS.items()):
            _move(actor, 10 + number)
            hf_weights.LiveWeights.tensors = fault(theirs)  # type: ignore[method-assign]
            found[name] = raised(lambda: generator.load(actor), RefitError)
            hf_weights.LiveWeights.tensors = theirs  # type: ignore[method-assign]
        found["mended"] = rollout(first)
    generator.close()
    if world.is_main:
        torch.save(found, out)
    destroy()


def _built(cfg: Any, role: Role, base: Any) -> Any:
    model, options = role_model(cfg, role), cfg.actors.of(role)
    return build_policy(role, model, options, cfg.trainer, 7, backend=cfg.backend, base=base)


@torch.no_grad()
def _move(actor: Any, seed: int) -> None:
    """Weights that no engine has yet: equal at every layout only where no tensor is cut."""
    draws = torch.Generator().manual_seed(seed)
    for parameter in actor.learning_parameters():
        parameter.add_(torch.randn(parameter.shape, generator=draws) * 0.05)
    actor.weights_version += 1


def _stale_head(theirs: Any) -> Any:
    """The output head keeps what it had."""

    def tensors(self: Any) -> Iterator[tuple[str, torch.Tensor]]:
        return ((name, tensor) for name, tensor in theirs(self) if name != "lm_head.weight")

    return tensors


def _swapped_layers(theirs: Any) -> Any:
    """Two layers trade places."""
    other = {"model.layers.0.": "model.layers.1.", "model.layers.1.": "model.layers.0."}

    def tensors(self: Any) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in theirs(self):
            swapped = next((name.replace(a, b) for a, b in other.items() if name.startswith(a)), name)
            yield swapped, tensor

    return tensors


def _missing_shard(theirs: Any) -> Any:
    """The last rank brings nothing of one tensor."""

    def tensors(self: Any) -> Iterator[tuple[str, torch.Tensor]]:
        if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
            self._shards.pop("model.decoder.layers.mlp.linear_fc2.weight")
        return theirs(self)

    return tensors


FAULTS = {"stale_head": _stale_head, "swapped_layers": _swapped_layers, "missing_shard": _missing_shard}

if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
