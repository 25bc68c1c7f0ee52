"""Bytes by part: on a device in the three moments of a step with most, on a node's host, and on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nemo_magic.model_config import ModelConfig
from nemo_magic.planner.shapes import Shapes

GIB = float(1 << 30)

LOGIT_BYTES = 26
"""Bytes per logit and rank that live at once in the backward pass of NeMo-Aligner's token log-probabilities, beside the
model's own: the 16-bit logits, the saved softmax in fp32, a one-hot of 8-byte integers, its masked copy, and the fp32
gradient (nemo_aligner.utils.distributed.DistributedLogprob)."""

FORWARD_LOGIT_BYTES = 18
"""The same without a backward pass: logits in 16 bits and fp32, scaled, and their log-softmax, cloned."""


@dataclass(frozen=True)
class Precision:
    """Bytes per parameter: of the weight, of the gradient, and of optimizer state that data-parallel ranks shard
    (``shared``) or that each has in full (``own``). ``keeps_gradients``: a role that does not learn keeps the buffer of
    its gradients."""

    weight: int
    gradient: int
    shared: int
    own: int
    keeps_gradients: bool

    @property
    def saved(self) -> int:
        """Bytes per parameter in a checkpoint: the optimizer's fp32 state, and the weights."""
        return self.weight + 12 if self.weight == 2 else self.weight + 8


def _of_nemo_aligner(model: ModelConfig, bf16: bool) -> Precision:
    """apex's distributed Adam keeps fp32 gradients in one buffer and, of 16-bit weights, only the 16 bits that fp32
    weights have beyond them; others keep an fp32 copy."""
    half, optimizer = bf16 and model.megatron_amp_O2, model.optim.name
    weight = 2 if half else 4
    if optimizer == "distributed_fused_adam":
        return Precision(weight, 4, (2 if half else 0) + 8, 0, keeps_gradients=True)
    if optimizer == "mcore_distributed_optim":
        return Precision(weight, 4, (4 if half else 0) + 8, 0, keeps_gradients=False)
    return Precision(weight, 4, 0, (4 if half else 0) + 8, keeps_gradients=False)


def _of_megatron(model: ModelConfig, bf16: bool) -> Precision:
    """Megatron-core sums gradients in an fp32 buffer of each role, whatever the optimizer; its distributed optimizer
    has both names."""
    weight, state = (2, 12) if bf16 else (4, 8)
    if model.optim.name in ("distributed_fused_adam", "mcore_distributed_optim"):
        return Precision(weight, 4, state, 0, keeps_gradients=True)
    return Precision(weight, 4, 0, state, keeps_gradients=True)


PRECISIONS: Mapping[str, Callable[[ModelConfig, bool], Precision]] = {
    "nemo_aligner": _of_nemo_aligner,
    "megatron": _of_megatron,
}
"""``backend`` → what it keeps of each parameter, given the model and whether the run computes in bf16."""


@dataclass(frozen=True)
class Layout:
    """Parallel sizes and batch shape.

    ``rows``: of a microbatch; ``tokens``: of its longest row; ``microbatches``: on a rank, in an optimizer step.
    ``shares_base``: the roles' frozen weights are there once.
    """

    tp: int
    pp: int
    dp: int
    rows: int
    tokens: int
    microbatches: int
    shares_base: bool = False


@dataclass(frozen=True)
class EngineMemory:
    """An engine: rows decoded at once, and the most tokens of a prompt and of a response.

    ``reshard``: a rank's engine has the layers of all pipeline stages. ``unloaded``: it is freed while a role learns.
    ``reserved``: bytes that it holds, weights included, whatever its rows need (vLLM); None: as many as they need.
    """

    rows: int
    prompt: int
    response: int
    reshard: bool
    unloaded: bool
    reserved: float | None = None


@dataclass(frozen=True)
class References:
    """Reference policies that wait on the host: of which roles, in how many bytes a parameter, and whether they are
    part of a checkpoint, as those that move are."""

    roles: tuple[str, ...] = ()
    weight: int = 0
    saved: bool = False

    def in_checkpoint(self, models: Mapping[str, Shapes]) -> float:
        """Bytes in a game's checkpoint, on a tensor-parallel rank's share of all stages."""
        return sum(models[role].rank_trainable for role in self.roles) * float(self.weight if self.saved else 0)


BytesByPart = Mapping[str, float]
"""Name of a part → bytes on the fullest rank."""


def resident(models: Mapping[str, Shapes], stage: int, layout: Layout, precision: Precision) -> dict[str, float]:
    """The weights of all roles on a rank of ``stage``; adapters apart."""
    adapters = sum(m.trainable(stage) for m in models.values() if m.trainable(stage) < m.parameters(stage))
    bases = [_without_adapters(m.parameters(stage), m.trainable(stage)) for m in models.values()]
    weights = max(bases) if layout.shares_base else sum(bases)
    frozen = {"weights": weights * float(precision.weight)}
    return frozen | ({"adapters": adapters * float(precision.weight)} if adapters else {})


def _without_adapters(parameters: int, trainable: int) -> int:
    """Parameters of the base, where only adapters are trainable; all, where all are."""
    return parameters if trainable == parameters else parameters - trainable


def starting(models: Mapping[str, Shapes], layout: Layout, precision: Precision) -> BytesByPart:
    """While a second role is built that will share the first one's base: it has one of its own before that."""
    alone = [resident({name: m}, 0, layout, precision) for name, m in models.items()]
    return {"weights": sum(parts["weights"] for parts in alone)}


def training(
    models: Mapping[str, Shapes], learner: str, layout: Layout, precision: Precision, entropy: bool = False
) -> BytesByPart:
    """While ``learner`` learns, on the fullest pipeline stage. ``entropy``: of which the loss has the gradient, which
    takes one more copy of the logits."""
    shapes = models[learner]

    def of(stage: int) -> dict[str, float]:
        parameters = shapes.trainable(stage)
        in_flight = min(shapes.pp - stage, layout.microbatches)
        logits = shapes.logits * (LOGIT_BYTES + precision.weight * entropy) if stage == shapes.pp - 1 else 0
        # The backward pass starts with the logits, and has freed them before it recomputes its first layer.
        working = (
            {"logits": logits} if logits > shapes.layer.recomputed else {"layer run again": shapes.layer.recomputed}
        )
        return {
            **resident(models, stage, layout, precision),
            "gradients": (sum(m.trainable(stage) for m in models.values()) if precision.keeps_gradients else parameters)
            * precision.gradient,
            "optimizer": parameters * (precision.shared / layout.dp + precision.own),
            "activations": in_flight * shapes.kept(stage),
            **working,
        }

    return max((of(stage) for stage in range(shapes.pp)), key=lambda parts: sum(parts.values()))


def generating(
    models: Mapping[str, Shapes],
    layout: Layout,
    precision: Precision,
    engine: EngineMemory | None,
    kv_bytes: float,
    rows: int,
) -> BytesByPart:
    """While responses are decoded. ``kv_bytes``: keys and values of a token in all layers, on a tensor-parallel rank;
    ``rows``: decoded at once without an engine."""
    stage = max(range(layout.pp), key=lambda s: sum(m.parameters(s) for m in models.values()))
    held = {
        **resident(models, stage, layout, precision),
        "gradients": sum(m.trainable(stage) for m in models.values()) * precision.gradient
        if precision.keeps_gradients
        else 0.0,
        "optimizer": max(m.trainable(stage) for m in models.values()) * (precision.shared / layout.dp + precision.own),
    }
    if engine is None:
        return held | {"keys and values": rows * layout.tokens * kv_bytes / layout.pp}
    share = 1 if engine.reshard else layout.pp
    merged = [_without_adapters(m.rank_parameters, m.rank_trainable) for m in models.values()]
    largest = max(merged) * precision.weight / share
    row = (engine.prompt + engine.response) * kv_bytes / share
    # vLLM does not start with less than what one row takes.
    kept = engine.rows * row if engine.reserved is None else max(engine.reserved - largest, row)
    return held | {"engine": largest, "keys and values": kept}


def refitting(models: Mapping[str, Shapes], layout: Layout, precision: Precision, engine: EngineMemory) -> BytesByPart:
    """While weights are gathered from the pipeline stages, converted, and installed in an engine; into vLLM they are
    streamed, a tensor at a time, and its cache is there already."""
    parts = dict(generating(models, layout, precision, engine, 0.0, 0))
    if engine.reserved is not None:
        return parts
    del parts["keys and values"]
    return parts | {"gathered weights": parts["engine"]}


def host(
    models: Mapping[str, Shapes], layout: Layout, precision: Precision, references: References, devices: int
) -> BytesByPart:
    """On a node with ``devices`` ranks: optimizers of roles that do not learn, reference policies, and the checkpoint
    being written."""
    each = max(sum(m.trainable(s) for m in models.values()) / len(models) for s in range(layout.pp))
    kept = len(references.roles) * each * references.weight
    saved = kept if references.saved else 0.0
    frozen = (len(models) - 1) * each * (precision.shared / layout.dp + precision.own)
    return {
        "frozen optimizers": devices * frozen,
        "reference weights": devices * kept,
        "checkpoint being written": devices * (len(models) * each * precision.saved + saved) / layout.dp,
    }


def checkpoint(models: Mapping[str, Shapes], layout: Layout, precision: Precision, references: References) -> float:
    """Bytes of one game checkpoint: what learns of every role, its optimizer, and a reference policy that moves."""
    learning = sum(m.rank_trainable for m in models.values()) * float(precision.saved)
    return layout.tp * (learning + references.in_checkpoint(models))
