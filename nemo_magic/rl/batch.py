"""Sampled rows to token batches: length-bucketed microbatches, and values back to rows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

DUMMY = -1

EXTRAS = ("old_logprobs", "ref_logprobs", "rollout_logprobs")
"""What a row may bring beside its ids: one number per response id, in nats."""


@dataclass(frozen=True)
class Row:
    """A prompt, the sampled ids that answer it, the advantage of that answer, and what the loss compares it with.

    ``old_logprobs``, ``ref_logprobs``, ``rollout_logprobs`` (the generator's own): one number per response id, in nats,
    or None where the loss needs none.
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    advantage: float = 0.0
    old_logprobs: tuple[float, ...] | None = None
    ref_logprobs: tuple[float, ...] | None = None
    rollout_logprobs: tuple[float, ...] | None = None

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True)
class MicroBatch:
    """Rows padded on the right to their own longest.

    ``tokens`` [b, S] long; ``mask`` [b, S−1] float, 1 where position t scores a response token ``tokens[:, t+1]``;
    ``advantages`` [b]; ``row_index`` [b] long, the row's place in the caller's list, or −1 for a dummy whose mask is 0;
    ``old_logprobs``, ``ref_logprobs``, ``rollout_logprobs`` [b, S−1] or None.
    """

    tokens: torch.Tensor
    mask: torch.Tensor
    advantages: torch.Tensor
    row_index: torch.Tensor
    old_logprobs: torch.Tensor | None = None
    ref_logprobs: torch.Tensor | None = None
    rollout_logprobs: torch.Tensor | None = None


def extras_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """The names out of EXTRAS that any of ``rows`` brings."""
    return tuple(name for name in EXTRAS if any(getattr(row, name) is not None for row in rows))


def microbatch_count(rows: int, micro_batch_size: int) -> int:
    """How many microbatches ``rows`` fill; at least one, so that every rank has something to bring."""
    return max(1, -(-rows // micro_batch_size))


def microbatches(
    rows: Sequence[Row],
    micro_batch_size: int,
    pad_id: int,
    count: int | None = None,
    pad_to_multiple: int = 1,
    extras: Collection[str] | None = None,
) -> list[MicroBatch]:
    """Cut ``rows`` into microbatches of similar length.

    Every microbatch has ``micro_batch_size`` rows or, if there are fewer rows than that, all of them; missing rows are
    dummies. ``count`` (≥ what the rows fill) asks for more, all-dummy microbatches, so that data-parallel ranks with
    unequal work bring equally many. ``pad_to_multiple``: widths are multiples of it (sequence parallelism needs the TP
    size). ``extras``: which of EXTRAS every microbatch has, zero where a row has none; by default those that the rows
    bring. A rank whose rows are all dummies cannot tell from them.
    """
    needed = microbatch_count(len(rows), micro_batch_size)
    count = needed if count is None else count
    if count < needed:
        raise ValueError(f"{len(rows)} rows fill {needed} microbatches of {micro_batch_size}; {count} were asked for")
    extras = extras_of(rows) if extras is None else extras
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    chunks = [order[i * micro_batch_size : (i + 1) * micro_batch_size] for i in range(count)]
    return [_microbatch(rows, chunk, micro_batch_size, pad_id, pad_to_multiple, extras) for chunk in chunks]


def scatter_back(batches: Sequence[MicroBatch], values: Sequence[torch.Tensor], rows: int) -> list[tuple[float, ...]]:
    """Per-token ``values`` ([b, S−1] per microbatch) as one tuple per row, response tokens only, in the rows' order."""
    found: list[tuple[float, ...]] = [() for _ in range(rows)]
    for batch, value in zip(batches, values, strict=True):
        keep = batch.mask.bool()
        for r, index in enumerate(batch.row_index.tolist()):
            if index != DUMMY:
                found[index] = tuple(value[r][keep[r]].tolist())
    return found


def _microbatch(
    rows: Sequence[Row], chunk: Sequence[int], size: int, pad_id: int, pad_to_multiple: int, extras: Collection[str]
) -> MicroBatch:
    width = max([len(rows[i]) for i in chunk], default=2)
    width = -(-width // pad_to_multiple) * pad_to_multiple
    tokens = torch.full((size, width), pad_id, dtype=torch.long)
    mask = torch.zeros(size, width - 1)
    advantages = torch.zeros(size)
    row_index = torch.full((size,), DUMMY, dtype=torch.long)
    brought = {name: torch.zeros(size, width - 1) for name in extras}
    for r, index in enumerate(chunk):
        row = rows[index]
        response = slice(len(row.prompt_ids) - 1, len(row) - 1)
        tokens[r, : len(row)] = torch.tensor(row.prompt_ids + row.response_ids)
        mask[r, response] = 1.0
        advantages[r] = row.advantage
        row_index[r] = index
        for name, target in brought.items():
            if (values := getattr(row, name)) is not None:
                target[r, response] = torch.tensor(values)
    return MicroBatch(tokens, mask, advantages, row_index, **brought)
