"""The factory: the one place that knows every backend. It imports the one that is asked for, and no other.

The two need different versions of Megatron-core, so an environment has one of them (docs/backends.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from nemo_magic.actors.config import NATIVE, TRT_LLM, VLLM
from nemo_magic.actors.errors import BackendError

if TYPE_CHECKING:
    from nemo_magic.actors.config import ActorConfig, GenerationConfig
    from nemo_magic.actors.generation import Generator
    from nemo_magic.actors.protocol import Actor
    from nemo_magic.actors.trainable import TrainablePolicy
    from nemo_magic.config.schema import TrainerConfig
    from nemo_magic.game.episode import Role
    from nemo_magic.model_config import ModelConfig

NEMO_ALIGNER, MEGATRON = "nemo_aligner", "megatron"
MEGATRON_CORE = {NEMO_ALIGNER: (0, 10), MEGATRON: (0, 16)}
"""The version of Megatron-core that a backend is written for."""


def prepare_process(backend: str, accelerator: str, engine: str = NATIVE) -> None:
    """What has to hold before the backend is imported; a second call changes nothing.

    Raises:
        BackendError: its packages, or those of ``engine`` (``generation.engine``), are not in this environment, or
            ``accelerator`` is cpu on a machine that has CUDA.
    """
    require_megatron_core(backend)
    if backend == NEMO_ALIGNER and _version("nemo-aligner") is None:
        raise BackendError(f"backend={backend} needs NeMo-Aligner, which is not installed (docs/backends.md)")
    if accelerator == "cpu":
        from nemo_magic.compat import cpu

        try:
            cpu.install(with_nemo=backend == NEMO_ALIGNER)
        except cpu.CudaAvailableError as error:
            raise BackendError(str(error)) from error
    if backend == MEGATRON:
        from nemo_magic.compat import megatron, vllm

        megatron.mend()
        if engine == VLLM:
            try:
                vllm.prepare()
            except vllm.VLLMMissingError as error:
                raise BackendError(str(error)) from error
    elif accelerator != "cpu":
        from nemo_magic.compat import trtllm

        try:
            trtllm.prepare(enabled=engine == TRT_LLM)
        except trtllm.TensorRTLLMMissingError as error:
            raise BackendError(str(error)) from error


def import_backend(backend: str) -> None:
    """Import all of it, for processes that will be forked."""
    import_module(f"nemo_magic.actors.{backend}.builder")


def build_policy(
    role: Role,
    model: ModelConfig,
    actor: ActorConfig,
    trainer: TrainerConfig,
    seed: int,
    *,
    backend: str = NEMO_ALIGNER,
    keep_reference: bool = False,
    moves_reference: bool = False,
    base: Actor | None = None,
) -> TrainablePolicy:
    """Build one role's actor in the present world, starting the process group if nobody has.

    Args:
        model: the role's resolved Megatron configuration.
        keep_reference: keep a host copy of the starting weights as π_ref.
        moves_reference: it follows the policy.
        base: an actor with adapters, on whose frozen weights this one stands too (``config.shares_base``).

    Raises:
        FileNotFoundError: ``actors.<role>.restore_from_path`` names nothing to load.
        ModelError: the tokenizer has not the ``vocab_size`` that the model is said to have, the weights ask for more
            than weights, or the adapters to begin with are of another base or shape.
    """
    if backend == MEGATRON:
        from nemo_magic.actors.megatron import builder as megatron

        return megatron.build_policy(role, model, actor, trainer, seed, keep_reference, moves_reference, base)
    from nemo_magic.actors.nemo_aligner import builder as nemo_aligner

    return nemo_aligner.build_policy(role, model, actor, trainer, seed, keep_reference, moves_reference, base)


def build_actor(
    role: Role,
    model: ModelConfig,
    actor: ActorConfig,
    trainer: TrainerConfig,
    seed: int,
    *,
    backend: str = NEMO_ALIGNER,
    base: Actor | None = None,
) -> Actor:
    """As ``build_policy``, of a role that does not learn. Of the backend megatron it has no gradients and no optimizer;
    NeMo builds them with the model."""
    if backend == MEGATRON:
        from nemo_magic.actors.megatron import builder as megatron

        return megatron.build_actor(role, model, actor, trainer, seed, base)
    return build_policy(role, model, actor, trainer, seed, backend=backend, base=base).actor


def build_generator(
    config: GenerationConfig, actors: Mapping[Role, Actor], options: Mapping[Role, ActorConfig]
) -> Generator:
    """What the models of this world generate with. Close it when nothing is generated any more.

    A TensorRT-LLM engine is built for the longest prompt and response of any role.
    """
    if config.engine == TRT_LLM:
        from nemo_magic.actors.trtllm import TRTLLMGenerator

        limits = {role: options[role].length_params for role in actors}
        longest = max(limits[role].prompt_room(actor.cfg.encoder_seq_length) for role, actor in actors.items())
        return TRTLLMGenerator(config, longest, max(limit.max_length for limit in limits.values()))
    if config.engine == VLLM:
        from nemo_magic.actors.vllm import VLLMGenerator

        return VLLMGenerator(config, {role: options[role] for role in actors})
    from nemo_magic.actors.generation import NativeGenerator

    return NativeGenerator(config)


def require_megatron_core(backend: str) -> None:
    """Raises BackendError where this environment has none, or the other backend's."""
    other = MEGATRON if backend == NEMO_ALIGNER else NEMO_ALIGNER
    wanted, installed = MEGATRON_CORE[backend], _version("megatron-core")
    if installed is None or installed[:2] != wanted:
        has = "no megatron-core" if installed is None else f"megatron-core {'.'.join(map(str, installed))}"
        instead = f", or take backend={other}" if installed and installed[:2] == MEGATRON_CORE[other] else ""
        raise BackendError(
            f"backend={backend} needs megatron-core {'.'.join(map(str, wanted))}, and this environment has {has}: "
            f"install its environment (docs/backends.md){instead}"
        )


def _version(package: str) -> tuple[int, ...] | None:
    try:
        return tuple(int(part) for part in version(package).split(".") if part.isdigit())
    except PackageNotFoundError:
        return None
