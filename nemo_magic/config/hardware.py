"""The assumptions of a plan about machines and texts. Imports neither torch nor NeMo."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass
class HardwareConfig:
    """A node of the cluster; the defaults are a DGX H100. Sizes in GiB, rates in 10⁹ bytes per second, per GPU.

    Published: ``memory_gib`` and ``host_memory_gib`` (of the node), ``tflops`` (dense, at the training precision),
    ``memory_gb_s``, ``nvlink_gb_s`` (within a node, one direction), ``network_gb_s`` (between nodes, one direction),
    ``host_link_gb_s`` (device to host), ``storage_gb_s`` (the shared file system, all nodes together),
    ``node_kilowatts`` (under load).

    Assumed of software, as shares of these: ``flops_reached`` by large matrix products, ``memory_reached`` by kernels
    that only read, ``links_reached`` by collectives. ``layer_floor_us``: the least time of a layer's forward pass,
    however little there is to compute; a backward pass takes twice that. ``decode_layer_us``: time of a layer in a
    decode step beside reading memory: kernel launches, and two all-reduces of a few kilobytes. ``refit_gb_s``: rate at
    which a rank gathers, converts and installs weights in an engine. ``reserved_gib``: memory of the driver, the
    collectives' buffers and the libraries on a device. ``slack``: share of a device's memory that the allocator cannot
    use.
    """

    name: str = "DGX H100"
    memory_gib: float = 79.6
    host_memory_gib: float = 2048.0
    tflops: float = 989.0
    memory_gb_s: float = 3350.0
    nvlink_gb_s: float = 450.0
    network_gb_s: float = 50.0
    host_link_gb_s: float = 55.0
    storage_gb_s: float = 40.0
    node_kilowatts: float = 8.5
    flops_reached: float = 0.52
    memory_reached: float = 0.75
    links_reached: float = 0.5
    layer_floor_us: float = 600.0
    decode_layer_us: float = 60.0
    refit_gb_s: float = 9.4
    reserved_gib: float = 4.0
    slack: float = 0.04

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("flops_reached", "memory_reached", "links_reached"):
                if not 0 < value <= 1:
                    raise ValueError(f"hardware.{field.name}={value} must be above 0 and at most 1")
            elif field.name == "slack":
                if not 0 <= value < 1:
                    raise ValueError(f"hardware.slack={value} must be at least 0 and below 1")
            elif field.name in ("layer_floor_us", "decode_layer_us", "reserved_gib"):
                if not value >= 0:
                    raise ValueError(f"hardware.{field.name}={value} must be at least 0")
            elif field.name != "name" and not value > 0:
                raise ValueError(f"hardware.{field.name}={value} must be greater than 0")


@dataclass
class PlanConfig:
    """Mean lengths in tokens, chat template included, and other assumptions of a plan.

    ``attacker_prompt``, ``attack``: tokens that the attacker reads and writes in a turn; ``defender_prompt``,
    ``reply``: the same of the defender. ``longest``: the longest response of a decoding batch, which the whole batch
    waits for, as a share of ``length_params.max_length``. ``judge_items_per_second``: of all judges together.
    ``search``: also search for the best layout on these nodes.
    """

    attacker_prompt: int = 300
    attack: int = 500
    defender_prompt: int = 300
    reply: int = 400
    longest: float = 1.0
    judge_items_per_second: float = 50.0
    search: bool = True

    def __post_init__(self) -> None:
        for key in ("attacker_prompt", "attack", "defender_prompt", "reply"):
            if getattr(self, key) < 1:
                raise ValueError(f"plan.{key}={getattr(self, key)} must be at least 1")
        if not 0 < self.longest <= 1:
            raise ValueError(f"plan.longest={self.longest} must be above 0 and at most 1")
        if not self.judge_items_per_second > 0:
            raise ValueError(f"plan.judge_items_per_second={self.judge_items_per_second} must be greater than 0")
