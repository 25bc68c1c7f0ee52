"""nemo-magic serve: rank 0 listens, all ranks compute, and the server shuts down in order."""

from __future__ import annotations

import copy
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from types import FrameType, SimpleNamespace

from nemo_magic.actors.builder import build_actor
from nemo_magic.actors.config import SamplingConfig
from nemo_magic.actors.distributed import World
from nemo_magic.actors.generation import NativeGenerator
from nemo_magic.actors.tokenizer import ChatTokenizer
from nemo_magic.config import MagicConfig
from nemo_magic.config.serving import ServeConfig
from nemo_magic.config.validation import models
from nemo_magic.game.episode import Role
from nemo_magic.runtime.started_rank import is_rank_zero
from nemo_magic.serving.engine import GenerationRequest, ServingEngine
from nemo_magic.serving.http_thread import serve_http
from nemo_magic.serving.offset_tokenizer import OffsetTokenizer
from nemo_magic.serving.protocol import ApiError
from nemo_magic.serving.request_queue import PendingRequest, RequestQueue

POLL_INTERVAL = 0.2
"""Seconds between looks at whether the server was asked to end."""
HEARTBEAT = 30.0
"""Seconds after which rank 0 broadcasts an empty batch: a wait longer than the process group's timeout fails."""
_END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def serve(cfg: MagicConfig) -> None:
    """Serve the actor of ``cfg.serve.role`` on this rank's share of it until SIGTERM or SIGINT.

    Raises:
        ConfigError: no token although others can reach the host, or an address that cannot be bound.
    """
    options = cfg.serve
    role = Role(options.role)
    if is_rank_zero():
        queue = RequestQueue(options.max_pending)
        with serve_http(options, queue, cfg.actors.of(role).length_params.max_length) as address:
            engine, world, wrapped = _build(cfg, role)
            chat = ChatTokenizer(SimpleNamespace(tokenizer=wrapped))
            with _StopSignals() as stop:
                queue.open(OffsetTokenizer(wrapped, chat), engine.positions)
                print(f"{options.name} on {address}/v1, ready", flush=True)
                _leader_loop(options, queue, engine, world, stop)
                if chat.neutralised:
                    print(f"control tokens that messages spelled, read as text: {chat.neutralised}", flush=True)
    else:
        engine, world, _ = _build(cfg, role)
        with _StopSignals():
            _follower_loop(engine, world)


def _build(cfg: MagicConfig, role: Role) -> tuple[ServingEngine, World, object]:
    """The engine, the world, and a copy of the tokenizer for another thread."""
    # Served log-probabilities are the model's own, whatever temperature it was trained at.
    options = replace(cfg.actors.of(role), sampling_params=SamplingConfig())
    actor = build_actor(role, models(cfg, "serve")[role], options, cfg.trainer, cfg.seed, backend=cfg.backend)
    world = World.current()
    return ServingEngine(actor, NativeGenerator(cfg.generation), world), world, copy.deepcopy(actor.chat.wrapped)


class _StopSignals:
    """Within this context the signals that end a server only set ``received``."""

    def __init__(self) -> None:
        self.received = False

    def __enter__(self) -> _StopSignals:
        self._before = {number: signal.signal(number, self._handle) for number in _END_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = True


def _leader_loop(
    options: ServeConfig, queue: RequestQueue, engine: ServingEngine, world: World, stop: _StopSignals
) -> None:
    """Rank 0: batch after batch, until it is asked to end and no request waits."""
    last_broadcast, deadline = time.monotonic(), float("inf")
    while True:
        if stop.received and deadline == float("inf"):
            queue.close()
            deadline = time.monotonic() + options.drain_timeout
        if time.monotonic() >= deadline:
            queue.abandon("the server ends")
        batch = queue.take(options.max_batch_size, POLL_INTERVAL)
        if batch or time.monotonic() - last_broadcast >= HEARTBEAT:
            requests = world.broadcast_from_main([request for request, _ in batch])
            last_broadcast = time.monotonic()
            _fulfil(batch, engine, requests)
        elif deadline < float("inf"):
            break
    world.broadcast_from_main(None)


def _fulfil(batch: Sequence[PendingRequest], engine: ServingEngine, requests: Sequence[GenerationRequest]) -> None:
    """Compute a batch and give every future its result. Raises what the engine raises."""
    try:
        results = engine.generate(requests) if requests else []
    except Exception as error:
        for _, future in batch:
            future.set_exception(ApiError(500, f"the model failed: {type(error).__name__}"))
        raise
    for (_, future), result in zip(batch, results, strict=True):
        future.set_result(result)


def _follower_loop(engine: ServingEngine, world: World) -> None:
    """Every other rank: the same batches."""
    while (requests := world.broadcast_from_main(None)) is not None:
        if requests:
            engine.generate(requests)
