"""How ranks share the work: tensor × pipeline × data parallelism, as one value that cannot be inconsistent."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_magic.config.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Parallelism:
    """``world`` ranks, of which ``tp`` share a layer, ``pp`` share the layers, and ``dp`` see different data.

    Raises ConfigError when ``tp × pp × dp`` is not ``world``.
    """

    tp: int
    pp: int
    dp: int
    world: int

    def __post_init__(self) -> None:
        for name in ("tp", "pp", "dp", "world"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1 (in {self})")
        if self.tp * self.pp * self.dp != self.world:
            raise ConfigError(
                f"tp × pp × dp = {self.tp} × {self.pp} × {self.dp} = {self.tp * self.pp * self.dp} is not the world "
                f"size {self.world}"
            )

    @classmethod
    def of(cls, num_nodes: int, devices: int, tp: int, pp: int) -> Parallelism:
        """The layout of ``num_nodes × devices`` ranks; what ``tp × pp`` leaves is data-parallel."""
        for key, value in (
            ("trainer.num_nodes", num_nodes),
            ("trainer.devices", devices),
            ("model.tensor_model_parallel_size", tp),
            ("model.pipeline_model_parallel_size", pp),
        ):
            if value < 1:
                raise ConfigError(f"{key}={value} must be at least 1")
        world = num_nodes * devices
        if world % (tp * pp):
            raise ConfigError(
                f"the world of trainer.num_nodes={num_nodes} × trainer.devices={devices} = {world} ranks is not "
                f"divisible by model.tensor_model_parallel_size={tp} × model.pipeline_model_parallel_size={pp} = "
                f"{tp * pp}: use a multiple of {tp * pp} ranks, or smaller parallel sizes"
            )
        return cls(tp=tp, pp=pp, dp=world // (tp * pp), world=world)
