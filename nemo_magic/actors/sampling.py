"""Sampling, whatever computes the logits: which token is drawn, what ends a response, what its text is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from nemo_magic.actors.config import SamplingConfig
from nemo_magic.actors.errors import NotFiniteError
from nemo_magic.actors.tokenizer import ChatTokenizer
from nemo_magic.game.episode import Completion

_UNFINISHED = "\ufffd"


@dataclass(frozen=True)
class StopConditions:
    """What ends a response: ids (checked on tensors), and strings anywhere in the text (checked on decoded tails).

    A string that is one token is both, since other tokens may contain it too; one that no text shows, such as a special
    token, is an id only.
    """

    ids: torch.Tensor
    strings: tuple[str, ...]

    @classmethod
    def of(
        cls, tokenizer: ChatTokenizer, end_strings: Sequence[str], device: torch.device | int | str
    ) -> StopConditions:
        """The tokenizer's end token and ``end_strings``, with ids on ``device``."""
        ids, strings = [tokenizer.end_id], []
        for end in end_strings:
            single = tokenizer.single_id(end)
            if single is not None:
                ids.append(single)
            if single is None or end in tokenizer.raw_text([single]):
                strings.append(end)
        return cls(torch.tensor(ids, device=device), tuple(strings))

    def hit_by(self, chat: ChatTokenizer, response: Sequence[int]) -> bool:
        """Whether the last tokens of ``response``, as many as a string can span, contain one of the strings."""
        # A token that is seen carries one byte at least, and a decoder may strip a space off the first.
        tail = max((len(end.encode()) for end in self.strings), default=0) + 1
        visible = list(islice(filter(chat.is_visible, reversed(response)), tail))[::-1]
        # A tail may begin within a character of up to 4 bytes, and some decoders then read none of the bytes behind it.
        for start in range(4):
            text = chat.raw_text(visible[start:])
            if any(end in text for end in self.strings):
                return True
            if _UNFINISHED not in text:
                break
        return False

    def end_of(self, chat: ChatTokenizer, response: Sequence[int]) -> int | None:
        """How many ids of ``response`` there are up to its end, what ends it included; None where nothing does. It is
        the end that decoding one token after the other comes to."""
        ids = set(self.ids.tolist())
        for size, index in enumerate(response, 1):
            if index in ids or (self.strings and self.hit_by(chat, response[:size])):
                return size
        return None


def uniform_draws(seeds: Sequence[int], count: int, device: torch.device | int | str) -> torch.Tensor:
    """[rows, count] uniform numbers in [0, 1), float64; a row's depend on its own seed only."""
    draws = [np.random.Generator(np.random.Philox(key=seed)).random(count) for seed in seeds]
    return torch.as_tensor(np.stack(draws), device=device)


def sample_tokens(
    logits: torch.Tensor,
    draw: torch.Tensor,
    sampling: SamplingConfig,
    vocabulary: int,
    banned: torch.Tensor,
    end_ids: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose a token per row by inverting the distribution at ``draw``.

    Args:
        logits: [rows, padded vocabulary].
        draw: [rows, 1] uniform numbers in [0, 1).
        vocabulary: real vocabulary size; ids beyond it are never chosen.
        banned: [rows] bool, rows that may not end yet.
        end_ids: ids that end a response.

    Returns:
        ids [rows] and their log-probabilities [rows] in nats at the sampling temperature, before top-k and top-p. Where
        a row's logits are not finite, its log-probability is not: ``refuse_not_finite`` before its id is used.
    """
    # Greedy decoding has no temperature of its own; its log-probabilities are those of temperature 1.
    temperature = 1.0 if sampling.use_greedy else sampling.temperature
    # Over a real vocabulary this costs much of a token's time: one copy, one exponential.
    weights = logits.to(torch.float64, copy=True).div_(temperature)
    highest = weights[:, :vocabulary].amax(dim=-1, keepdim=True)
    weights.sub_(highest).exp_()
    total = weights.sum(dim=-1)
    choosable = weights[:, :vocabulary]
    choosable[:, end_ids] = choosable[:, end_ids].masked_fill(banned[:, None], 0.0)
    if sampling.use_greedy:
        ids = choosable.argmax(dim=-1)
    else:
        cdf = _truncated(choosable, sampling).cumsum(dim=-1)
        ids = torch.searchsorted(cdf, draw * cdf[:, -1:], right=True).squeeze(1).clamp(max=vocabulary - 1)
    chosen = logits.gather(1, ids[:, None]).double() / temperature
    logprobs = (chosen - highest).squeeze(1) - total.log()
    return ids, logprobs


def refuse_not_finite(logprobs: torch.Tensor, whose: str) -> None:
    """Refuse what was sampled by logits that are no distribution.

    Args:
        logprobs: of the sampled tokens, as ``sample_tokens`` gives them.
        whose: model, for the message.

    Raises:
        NotFiniteError: one of them is not finite.
    """
    rows = int((~torch.isfinite(logprobs)).sum())
    if rows:
        raise NotFiniteError(
            f"the logits of {whose} are not finite in {rows} of {logprobs.numel()} rows: nothing can be sampled from "
            "them. Its weights have diverged (a lower model.optim.lr, an earlier checkpoint), or are no weights"
        )


def _truncated(weights: torch.Tensor, sampling: SamplingConfig) -> torch.Tensor:
    """[rows, V] ``weights``, which are proportional to probabilities, with what is outside top-k and top-p at zero."""
    if sampling.top_k > 0:
        kth = weights.topk(min(sampling.top_k, weights.size(-1)), dim=-1).values[:, -1:]
        weights = weights.masked_fill(weights < kth, 0.0)
    if sampling.top_p < 1.0:
        ordered, order = weights.sort(dim=-1, descending=True)
        outside = ordered.cumsum(dim=-1) - ordered >= sampling.top_p * ordered.sum(dim=-1, keepdim=True)
        weights = weights.scatter(1, order, ordered.masked_fill(outside, 0.0))
    return weights


def hits_stop_string(
    chat: ChatTokenizer,
    tokens: torch.Tensor,
    prompt_lengths: torch.Tensor,
    response_lengths: torch.Tensor,
    live: torch.Tensor,
    stops: StopConditions,
) -> torch.Tensor:
    """[rows] bool: live rows whose response now contains a stop string."""
    hits = torch.zeros_like(live)
    for row in live.nonzero().flatten().tolist():
        start, size = int(prompt_lengths[row]), int(response_lengths[row])
        hits[row] = stops.hit_by(chat, tokens[row, start : start + size].tolist())
    return hits


def to_completion(
    chat: ChatTokenizer,
    prompt: list[int],
    tokens: list[int],
    logprobs: list[float],
    size: int,
    ended: bool,
    stops: StopConditions,
) -> Completion:
    """The completion of a decoded row.

    Args:
        tokens: prompt and response ids; ``logprobs`` has one value for each.
        size: response ids that count, the end token included.
        ended: whether a stop condition ended the response; otherwise the length limit did.
    """
    span = slice(len(prompt), len(prompt) + size)
    response = tokens[span]
    visible = response[:-1] if ended and response and response[-1] in stops.ids.tolist() else response
    text = chat.raw_text(visible)
    for end in stops.strings:
        text = text.split(end, 1)[0]
    return Completion(tuple(prompt), tuple(response), tuple(logprobs[span]), text.strip(), ended)
