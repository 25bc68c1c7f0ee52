"""nemo-magic serve: rank 0 listens, all ranks compute, and the server comes to an orderly end."""

from __future__ import annotations

import copy
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType, SimpleNamespace

import uvicorn

from nemo_magic.actors.builder import build_policy
from nemo_magic.actors.config import SamplingConfig
from nemo_magic.actors.distributed import World
from nemo_magic.actors.generation import NativeGenerator
from nemo_magic.actors.tokenizer import ChatTokenizer
from nemo_magic.config import ConfigError, MagicConfig
from nemo_magic.config.serving import ServeConfig
from nemo_magic.config.validation import models
from nemo_magic.game.episode import Role
from nemo_magic.judge.server import listen
from nemo_magic.serving.app import create_app
from nemo_magic.serving.engine import GenerationRequest, ServingEngine
from nemo_magic.serving.offset_tokenizer import OffsetTokenizer
from nemo_magic.serving.protocol import ApiError
from nemo_magic.serving.request_queue import RequestQueue, Waiting

TICK = 0.2
"""Seconds between looks at whether the server was asked to end."""
BEAT = 30.0
"""Seconds after which the other ranks hear of rank 0 though there is nothing to do: what waits longer than the process
group's timeout fails."""
_END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def serve(cfg: MagicConfig) -> None:
    """Serve the actor of ``cfg.serve.role`` on this rank's share of it until SIGTERM or SIGINT.

    Raises:
        ConfigError: no token although others can reach the host, or an address that cannot be bound.
    """
    options = cfg.serve
    role = Role(options.role)
    if int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0:
        desk = RequestQueue(options.max_pending)
        with _front(options, desk, cfg.actors.of(role).length_params.max_length) as address:
            engine, world, wrapped = _built(cfg, role)
            with _Ending() as ending:
                desk.open(OffsetTokenizer(wrapped, ChatTokenizer(SimpleNamespace(tokenizer=wrapped))), engine.positions)
                print(f"{options.name} on {address}/v1, ready", flush=True)
                _lead(options, desk, engine, world, ending)
    else:
        engine, world, _ = _built(cfg, role)
        with _Ending():
            _follow(engine, world)


def _built(cfg: MagicConfig, role: Role) -> tuple[ServingEngine, World, object]:
    """The engine, the world, and a copy of the tokenizer for another thread."""
    # Served log-probabilities are the model's own, whatever temperature it was trained at.
    options = replace(cfg.actors.of(role), sampling_params=SamplingConfig())
    actor = build_policy(role, models(cfg, "serve")[role], options, cfg.trainer, cfg.seed).actor
    world = World.current()
    return ServingEngine(actor, NativeGenerator(cfg.generation), world), world, copy.deepcopy(actor.tokenizer.tokenizer)


@contextmanager
def _front(options: ServeConfig, desk: RequestQueue, longest: int) -> Iterator[str]:
    """The HTTP side in a thread, from now on until the end of the context; its address."""
    try:
        app = create_app(options, desk, longest)
        listener = listen(options.host, options.port)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"serve.host={options.host}, serve.port={options.port}: {error}") from error
    with listener:
        server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=5)
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="http", daemon=True)
        thread.start()
        host = f"[{options.host}]" if ":" in options.host else options.host
        address = f"http://{host}:{listener.getsockname()[1]}"
        try:
            yield address
        finally:
            desk.abandon("the server ends")
            server.should_exit = True  # whoever has an answer still gets it
            thread.join()


class _Ending:
    """Within its context the signals that end a server are remembered instead of obeyed."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> _Ending:
        self._before = {number: signal.signal(number, self._note) for number in _END_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def _lead(options: ServeConfig, desk: RequestQueue, engine: ServingEngine, world: World, ending: _Ending) -> None:
    """Rank 0: batch after batch, until it is asked to end and nobody waits any more."""
    told, deadline = time.monotonic(), float("inf")
    while True:
        if ending.asked and deadline == float("inf"):
            desk.close()
            deadline = time.monotonic() + options.drain_timeout
        if time.monotonic() >= deadline:
            desk.abandon("the server ends")
        batch = desk.take(options.max_batch_size, TICK)
        if batch or time.monotonic() - told >= BEAT:
            jobs = world.broadcast_from_main([job for job, _ in batch])
            told = time.monotonic()
            _keep(batch, engine, jobs)
        elif deadline < float("inf"):
            break
    world.broadcast_from_main(None)


def _keep(batch: Sequence[Waiting], engine: ServingEngine, jobs: Sequence[GenerationRequest]) -> None:
    try:
        answers = engine.answer(jobs) if jobs else []
    except Exception as error:
        for _, promise in batch:
            promise.set_exception(ApiError(500, f"the model failed: {type(error).__name__}"))
        raise
    for (_, promise), answer in zip(batch, answers, strict=True):
        promise.set_result(answer)


def _follow(engine: ServingEngine, world: World) -> None:
    """Every other rank: the same batches."""
    while (jobs := world.broadcast_from_main(None)) is not None:
        if jobs:
            engine.answer(jobs)
