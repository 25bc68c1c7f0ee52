"""The assumptions of a plan about machines and texts. Imports neither torch nor NeMo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Interval

from nemo_magic.config_checks import CheckedConfig, NonNegativeFloat, PositiveFloat, PositiveInt
from nemo_magic.game.episode import Role

_Share = Annotated[float, Interval(gt=0, le=1)]


@dataclass
class HardwareConfig(CheckedConfig):
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

    KEY: ClassVar[str] = "hardware"

    name: str = "DGX H100"
    memory_gib: PositiveFloat = 79.6
    host_memory_gib: PositiveFloat = 2048.0
    tflops: PositiveFloat = 989.0
    memory_gb_s: PositiveFloat = 3350.0
    nvlink_gb_s: PositiveFloat = 450.0
    network_gb_s: PositiveFloat = 50.0
    host_link_gb_s: PositiveFloat = 55.0
    storage_gb_s: PositiveFloat = 40.0
    node_kilowatts: PositiveFloat = 8.5
    flops_reached: _Share = 0.52
    memory_reached: _Share = 0.75
    links_reached: _Share = 0.5
    layer_floor_us: NonNegativeFloat = 600.0
    decode_layer_us: NonNegativeFloat = 60.0
    refit_gb_s: PositiveFloat = 9.4
    reserved_gib: NonNegativeFloat = 4.0
    slack: Annotated[float, Interval(ge=0, lt=1)] = 0.04


@dataclass
class PlanConfig(CheckedConfig):
    """Mean lengths in tokens that a plan counts with, chat template included, and what else it cannot know.

    ``attacker_prompt``, ``attack``: tokens that the attacker reads and writes in a turn; ``defender_prompt``,
    ``reply``: the same of the defender. ``longest``: the longest response of a decoding batch, which the whole batch
    waits for, as a share of ``length_params.max_length``. ``judge_items_per_second``: of all judges together.
    ``search``: also search for the best layout on these nodes.
    """

    KEY: ClassVar[str] = "plan"

    attacker_prompt: PositiveInt = 300
    attack: PositiveInt = 500
    defender_prompt: PositiveInt = 300
    reply: PositiveInt = 400
    longest: _Share = 1.0
    judge_items_per_second: PositiveFloat = 50.0
    search: bool = True

    def lengths(self) -> dict[Role, tuple[int, int]]:
        """Tokens of each role's (prompt, response)."""
        return {
            Role.ATTACKER: (self.attacker_prompt, self.attack),
            Role.DEFENDER: (self.defender_prompt, self.reply),
        }
