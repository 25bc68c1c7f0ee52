"""What the actors of both backends compute alike: log-probabilities, the loss and its metrics, on Megatron's GPT model.

Log-probabilities are taken at the sampling temperature, batches are length-bucketed microbatches of unequal width, and
loss and metrics are normalised by global counts instead of averaged over microbatches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, cast

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region, vocab_parallel_cross_entropy

from nemo_magic.actors.adapter_card import AdapterCard
from nemo_magic.actors.adapters import using_adapters
from nemo_magic.actors.distributed import broadcast_from_last_stage
from nemo_magic.actors.entropy import next_token_entropy
from nemo_magic.actors.errors import NotFiniteError
from nemo_magic.actors.output_positions import output_from
from nemo_magic.actors.protocol import LossFunction, Metrics
from nemo_magic.compat import heap
from nemo_magic.rl.batch import MicroBatch

if TYPE_CHECKING:
    from nemo_magic.actors.protocol import Actor
    from nemo_magic.actors.tokenizer import ChatTokenizer
    from nemo_magic.game.episode import Role


class GPTActor:
    """The part of ``protocol.Actor`` that needs Megatron-core and no other library. A backend adds the rest, and

    - ``_schedule``: Megatron's forward and backward over microbatches, pipelined;
    - ``_training_step``: a context around one such pass that gathers gradients, and reduces them at its end;
    - ``_evaluate``: leave training mode until the next such context;
    - ``_temperature``: what logits are divided by.
    """

    role: Role
    cfg: Any
    chat: ChatTokenizer
    card: AdapterCard | None
    keeps_reference: bool
    reference_state: dict[str, Any] | None
    _temperature: float

    def _schedule(self, batches: Sequence[MicroBatch], step: Any, forward_only: bool, **options: Any) -> list[Any]:
        raise NotImplementedError

    def _training_step(self) -> AbstractContextManager[None]:
        raise NotImplementedError

    def _evaluate(self) -> None:
        raise NotImplementedError

    def host_state(self) -> dict[str, Any]:
        """As ``Actor.host_state``."""
        raise NotImplementedError

    def put_host_state(self, state: Mapping[str, Any]) -> None:
        """As ``Actor.put_host_state``."""
        raise NotImplementedError

    # --- learning

    def accumulate(
        self, batches: Sequence[MicroBatch], loss: LossFunction, observe: bool = False, with_entropy: bool = False
    ) -> Metrics:
        """Forward and backward over ``batches``, gradients reduced over data-parallel ranks; no optimizer step.

        Every rank must bring the same number of microbatches. Returns metrics summed over microbatches and ranks; with
        ``observe`` also ``entropy`` and ``neg_logprob_minus_entropy`` of the policy at the tokens that train.
        ``with_entropy``: the loss is given the entropy of the policy too, with its gradient.
        """
        # The schedule divides by the microbatches and the gradient reduction by the ranks; the loss is a global mean
        # already.
        scale = len(batches) * parallel_state.get_data_parallel_world_size()

        def step(iterator: Iterator[MicroBatch], model: torch.nn.Module) -> tuple[torch.Tensor, Any]:
            batch = next(iterator)
            on_cpu = next(model.parameters()).is_cpu
            if on_cpu:
                heap.give_back()  # what the backward pass before freed
            logits = self._forward(model, batch, batch.first)
            if on_cpu:
                heap.give_back()  # gaps between what the layers keep

            def loss_of(logits: torch.Tensor) -> tuple[torch.Tensor, dict[str, tuple[Any, Any]]]:
                logprobs = self._token_logprobs(logits, batch.tokens)
                entropy = self._entropy(logits, batch) if with_entropy else None
                objective = loss(logprobs, batch) if entropy is None else loss(logprobs, batch, entropy)
                observed = self._observed(logits, logprobs, batch, entropy) if observe else {}
                return objective.loss * scale, objective.metrics | observed

            return logits, loss_of

        with self._training_step():
            parts = self._schedule(batches, step, forward_only=False)
        return self._reduced(parts)

    # --- scoring

    @torch.no_grad()
    def token_logprobs(self, batches: Sequence[MicroBatch], temperature: float | None = None) -> list[torch.Tensor]:
        """Log-probabilities of the next tokens, one [b, S-1] tensor per microbatch, on every pipeline stage.

        In nats, at ``temperature`` (None: that of sampling), from the training forward pass; 0 before the first
        position that the mask of any of its rows has. All ranks take part.

        Raises:
            NotFiniteError: on every rank, where one of them is not finite.
        """

        def step(iterator: Iterator[MicroBatch], model: torch.nn.Module) -> tuple[torch.Tensor, Any]:
            batch = next(iterator)
            return self._forward(model, batch, batch.first), lambda logits, non_loss_data=True: self._token_logprobs(
                logits, batch.tokens, temperature
            )

        self._evaluate()
        scores = self._schedule(batches, step, forward_only=True, collect_non_loss_data=True)
        # contiguous: gloo broadcasts the memory of a view, not the view
        logprobs = [broadcast_from_last_stage(scores[i].contiguous() if scores else None) for i in range(len(batches))]
        self._refuse_not_finite(logprobs, "log-probabilities")
        return logprobs

    @torch.no_grad()
    def ranked_logprobs(
        self, batches: Sequence[MicroBatch], top: int
    ) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """``token_logprobs``, and the ``top`` likeliest next tokens of every position, on every pipeline stage.

        Per microbatch: the log-probabilities [b, S-1]; those of the likeliest [b, S, top], descending; their ids
        [b, S, top], all of the tokenizer's vocabulary. The last position's follow the row itself.
        """

        def ranked(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
            own = self._token_logprobs(logits, tokens)
            likeliest, ids = _likeliest(logits, self._temperature, self.chat.size, top)
            return torch.cat([torch.nn.functional.pad(own, (0, 1))[..., None], likeliest, ids.float()], dim=-1)

        def step(iterator: Iterator[MicroBatch], model: torch.nn.Module) -> tuple[torch.Tensor, Any]:
            batch = next(iterator)
            return self._forward(model, batch), lambda logits, non_loss_data=True: ranked(logits, batch.tokens)

        self._evaluate()
        scores = self._schedule(batches, step, forward_only=True, collect_non_loss_data=True)
        packed = [broadcast_from_last_stage(scores[i].contiguous() if scores else None) for i in range(len(batches))]
        return [(p[:, :-1, 0], p[..., 1 : 1 + top], p[..., 1 + top :].long()) for p in packed]

    def reference_logprobs(self, batches: Sequence[MicroBatch]) -> list[torch.Tensor]:
        """``token_logprobs`` under the reference policy π_ref: the actor as it began.

        All its weights wait in host memory; of adapters only they do, and where they began as nothing π_ref is the base
        and costs no memory.
        """
        if not self.keeps_reference:
            raise RuntimeError(f"the {self.role} keeps no reference weights: grpo.kl_beta was 0 when it was built")
        if self.card is not None:
            with using_adapters(cast("Actor", self), self.reference_state):
                return self.token_logprobs(batches)
        assert self.reference_state is not None
        own = self.host_state()
        self.put_host_state(self.reference_state)
        try:
            return self.token_logprobs(batches)
        finally:
            self.put_host_state(own)

    # --- shared

    @torch.no_grad()
    def _refuse_not_finite(self, tensors: Sequence[torch.Tensor], what: str) -> None:
        """All ranks take part, each with its own tensors; where one is not finite, all raise NotFiniteError."""
        finite = torch.stack([torch.isfinite(tensor).all() for tensor in tensors]).all()
        lost = (~finite).int()
        torch.distributed.all_reduce(lost, torch.distributed.ReduceOp.MAX)
        if int(lost):
            raise NotFiniteError(f"the {self.role}'s {what} are not finite: it has diverged")

    def _forward(self, model: torch.nn.Module, batch: MicroBatch, first: int = 0) -> torch.Tensor:
        """Logits [b, S or less, V / TP] of the positions from ``first`` on, at least (``output_from``)."""
        tokens = batch.tokens.cuda(non_blocking=True)
        positions = torch.arange(tokens.size(1), device=tokens.device).expand_as(tokens)
        with output_from(cast("Actor", self), first):
            # Rows are padded on the right, so the causal mask that attention makes by itself is all they need.
            return model(tokens, positions, None)

    def _token_logprobs(
        self, logits: torch.Tensor, tokens: torch.Tensor, temperature: float | None = None
    ) -> torch.Tensor:
        """[b, S-1] from the logits of the last positions of ``tokens`` [b, S]; 0 where there are none."""
        first = tokens.size(1) - logits.size(1)
        # The division copies; the loss works in the copy's memory.
        scaled = logits[:, :-1].float() / (temperature or self._temperature)
        targets = tokens[:, first + 1 :].cuda(non_blocking=True).contiguous()
        return torch.nn.functional.pad(-vocab_parallel_cross_entropy(scaled, targets), (first, 0))

    def _entropy(self, logits: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        """[b, S-1] entropies of the next token, from the logits of the last positions; 0 where there are none."""
        first = batch.tokens.size(1) - logits.size(1)
        return torch.nn.functional.pad(next_token_entropy(logits[:, :-1], self._temperature), (first, 0))

    @torch.no_grad()
    def _observed(
        self, logits: torch.Tensor, logprobs: torch.Tensor, batch: MicroBatch, entropy: torch.Tensor | None
    ) -> dict[str, tuple[Any, Any]]:
        """``entropy``: of the next token, in nats, at the sampling temperature. ``neg_logprob_minus_entropy``: by how
        much less likely the sampled tokens are than the policy's own samples would be on average, ``-log π(token) -
        H(π)``; around 0 where the generator samples from the policy, whatever engine it is."""
        mask = batch.mask.to(logprobs.device)
        spread = self._entropy(logits, batch) if entropy is None else entropy
        count = mask.sum()
        return {
            "entropy": ((spread * mask).sum(), count),
            "neg_logprob_minus_entropy": (((-logprobs - spread) * mask).sum(), count),
        }

    def _reduced(self, parts: Sequence[dict[str, tuple[Any, Any]]]) -> Metrics:
        """Sum (sum, count) pairs over microbatches and data-parallel ranks; only the last stage has any."""
        box: list[Metrics] = [{}]
        if parts:
            names = sorted(parts[0])
            pairs = [[[float(x) for x in part[name]] for name in names] for part in parts]
            each = torch.tensor(pairs, dtype=torch.float64, device=torch.cuda.current_device())
            sums, largest = each.sum(0), each.amax(0)
            group = parallel_state.get_data_parallel_group()
            torch.distributed.all_reduce(sums, group=group)
            torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, group=group)
            values = [(largest if name.endswith("_max") else sums)[i].tolist() for i, name in enumerate(names)]
            box = [{name: (total, count) for name, (total, count) in zip(names, values, strict=True)}]
        if parallel_state.get_pipeline_model_parallel_world_size() > 1:
            torch.distributed.broadcast_object_list(
                box,
                src=parallel_state.get_pipeline_model_parallel_last_rank(),
                group=parallel_state.get_pipeline_model_parallel_group(),
            )
        return box[0]


def _likeliest(
    logits: torch.Tensor, temperature: float, vocabulary: int, top: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and ids [b, S, top] of the likeliest of ``vocabulary`` tokens by vocabulary-parallel ``logits``
    [b, S, V / TP]."""
    scores = _log_softmax(logits.float() / temperature)
    first = parallel_state.get_tensor_model_parallel_rank() * scores.size(-1)
    scores[..., max(0, vocabulary - first) :] = -torch.inf
    # A shard smaller than what is asked for gives all it has, and fills up with what nobody would take.
    missing = max(0, top - scores.size(-1))
    values, ids = torch.nn.functional.pad(scores, (0, missing), value=-torch.inf).topk(top)
    # Ids are exact in fp32 up to 2^24.
    values, ids = (
        gather_from_tensor_model_parallel_region(part.float().contiguous()) for part in (values, ids + first)
    )
    values, order = values.topk(top)
    return values, ids.gather(-1, order).long()


def _log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Over the vocabulary, of vocabulary-parallel ``logits`` [b, S, V / TP]."""
    group = parallel_state.get_tensor_model_parallel_group()
    largest = logits.amax(dim=-1, keepdim=True)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, group=group)
    shifted = logits - largest
    total = shifted.exp().sum(dim=-1, keepdim=True)
    torch.distributed.all_reduce(total, group=group)
    return shifted - total.log()
