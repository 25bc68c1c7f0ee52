# ruff: noqa: F722 (axis names in strings)
"""Sampled rows to token batches: length-bucketed microbatches, and values back to rows."""

# No postponed annotations: jaxtyping cannot check the fields of a dataclass that are strings.
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

DUMMY = -1
"""``MicroBatch.row_index`` of a row that stands for none of the caller's."""

LOGPROB_NAMES = ("old_logprobs", "ref_logprobs", "rollout_logprobs")
"""The log-probabilities that a row may have beside its ids."""


@dataclass(frozen=True)
class Row:
    """A prompt, its sampled response, the advantage of that response, and what the loss compares it with.

    ``old_logprobs``, ``ref_logprobs``, ``rollout_logprobs`` (the generator's own): one number per response id, in nats,
    or None where the loss needs none. ``len(row)`` counts the ids of both.
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
    """Rows padded on the right to the longest of them.

    Column t of ``mask`` and of the log-probabilities is about the token ``tokens[:, t + 1]``, which is scored there.
    ``mask`` is True where that is a response token. ``row_index``: the row's index in the caller's list, or ``DUMMY``
    for a row without any response token. Log-probabilities are 0 outside the mask, and None where no row has them.
    """

    tokens: Int[Tensor, "batch width"]
    mask: Bool[Tensor, "batch width-1"]
    advantages: Float[Tensor, " batch"]
    row_index: Int[Tensor, " batch"]
    old_logprobs: Float[Tensor, "batch width-1"] | None = None
    ref_logprobs: Float[Tensor, "batch width-1"] | None = None
    rollout_logprobs: Float[Tensor, "batch width-1"] | None = None

    @property
    def first(self) -> int:
        """The first column in the mask of any row; the last one where no row has any."""
        used = self.mask.any(dim=0).nonzero()
        return int(used[0]) if len(used) else self.mask.size(1) - 1


def logprob_names(rows: Sequence[Row]) -> tuple[str, ...]:
    """The names out of LOGPROB_NAMES that any of ``rows`` has values for."""
    return tuple(name for name in LOGPROB_NAMES if any(getattr(row, name) is not None for row in rows))


def microbatch_count(rows: int, micro_batch_size: int) -> int:
    """How many microbatches ``rows`` fill; at least one, so that no rank is without."""
    return max(1, -(-rows // micro_batch_size))


def microbatches(
    rows: Sequence[Row],
    micro_batch_size: int,
    pad_id: int,
    count: int | None = None,
    pad_to_multiple: int = 1,
    logprobs: Collection[str] | None = None,
) -> list[MicroBatch]:
    """Cut ``rows`` into microbatches of similar length, ``micro_batch_size`` rows each; dummies fill the last one.

    Args:
        count: how many microbatches to make, at least as many as the rows fill; those beyond are all dummies, so that
            data-parallel ranks with unequal work have equally many.
        pad_to_multiple: widths are multiples of it (sequence parallelism needs the TP size).
        logprobs: which of LOGPROB_NAMES every microbatch has, zero where a row has none; by default those that the rows
            have. A rank whose rows are all dummies cannot tell from them.

    Raises:
        ValueError: ``count`` is less than the rows fill.
    """
    needed = microbatch_count(len(rows), micro_batch_size)
    count = needed if count is None else count
    if count < needed:
        raise ValueError(f"{len(rows)} rows fill {needed} microbatches of {micro_batch_size}; {count} were asked for")
    names = logprob_names(rows) if logprobs is None else logprobs
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    chunks = [order[i * micro_batch_size : (i + 1) * micro_batch_size] for i in range(count)]
    return [_microbatch(rows, chunk, micro_batch_size, pad_id, pad_to_multiple, names) for chunk in chunks]


def scatter_back(
    batches: Sequence[MicroBatch], values: Sequence[Float[Tensor, "_ _"]], rows: int
) -> list[tuple[float, ...]]:
    """Per-token ``values`` ([batch, width − 1] per microbatch) as one tuple per row, in the rows' order.

    A tuple has one value per response token.
    """
    per_row: list[tuple[float, ...]] = [() for _ in range(rows)]
    for batch, value in zip(batches, values, strict=True):
        for r, index in enumerate(batch.row_index.tolist()):
            if index != DUMMY:
                per_row[index] = tuple(value[r][batch.mask[r]].tolist())
    return per_row


def _microbatch(
    rows: Sequence[Row], chunk: Sequence[int], size: int, pad_id: int, pad_to_multiple: int, names: Collection[str]
) -> MicroBatch:
    width = max([len(rows[i]) for i in chunk], default=2)
    width = -(-width // pad_to_multiple) * pad_to_multiple
    tokens = torch.full((size, width), pad_id, dtype=torch.long)
    mask = torch.zeros(size, width - 1, dtype=torch.bool)
    advantages = torch.zeros(size)
    row_index = torch.full((size,), DUMMY, dtype=torch.long)
    logprobs = {name: torch.zeros(size, width - 1) for name in names}
    for r, index in enumerate(chunk):
        row = rows[index]
        response = slice(len(row.prompt_ids) - 1, len(row) - 1)
        tokens[r, : len(row)] = torch.tensor(row.prompt_ids + row.response_ids)
        mask[r, response] = True
        advantages[r] = row.advantage
        row_index[r] = index
        for name, target in logprobs.items():
            if (values := getattr(row, name)) is not None:
                target[r, response] = torch.tensor(values)
    return MicroBatch(tokens, mask, advantages, row_index, **logprobs)
