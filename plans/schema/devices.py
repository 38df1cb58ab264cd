"""The machines of a plan: devices with their memory and rates, hosts, links."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class ProductRates:
    """Rates of a matrix product of some number of rows: of the bytes of its weights, and of its operations."""

    bandwidth_bytes_per_s: int
    flops_per_s: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreTime:
    """Time of attention with heads of so many dims."""

    head_dim: int
    ns: int
    """Of 1024 scores: of each the product of a query with a key, its weight, and the sum with its value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredRates:
    """What more is known of a CPU whose products and steps were measured."""

    products: tuple[ProductRates, ...]
    """Rates of products by rising rows, the first with the bandwidth of the device and the last with its rate; what
    lies between two of them takes time in proportion (``plans.roofs``)."""
    row_ns: int
    """Time of a row in a layer for every 1024 values of a hidden state: norms, rotation, activation."""
    tree_ns: int
    """Time that a step with a tree takes longer besides its rows: the mask, and the walk along the tree."""
    stage_ns: int | None = None
    """Time of a stage besides its layers: the rotation's tables, the mask's rows. None: none."""
    scores: tuple[ScoreTime, ...] | None = None
    """Times of attention by rising dims of a head; of others between them in proportion (``plans.cpu_times``). None:
    a score is as many operations of products as it has, and some more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Together:
    """Rates of a device while several devices of its host compute at once, with which it shares cores or memory."""

    devices: int
    """Devices of the host that compute at once, this one included."""
    bandwidth_bytes_per_s: int
    flops_per_s: int
    overhead_ns: int
    pass_ns: int | None = None
    table_ns: int | None = None
    measured: MeasuredRates | None = None
    """All as those of the device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """One GPU, or the host CPU where the inventory lists it as a device."""

    id: str
    host: str
    type: str
    """Catalogue name, or the user's own."""
    kind: Literal["cuda", "cpu"]
    ordinal: int
    """Index of the physical accelerator in its host; several devices may name the same one. 0 for a CPU."""
    uuid: str | None
    """UUID that the driver gives the accelerator or the MIG slice; None: any accelerator of the type at the ordinal."""
    reported_name: str
    """Words that the driver's name of the device must contain, as whole words; empty: any name."""
    memory_bytes: int
    reserve_bytes: int
    """Bytes that are never planned: context of the driver, graphs, fragmentation."""
    bandwidth_bytes_per_s: int
    """Datasheet memory bandwidth."""
    flops_per_s: int
    """Datasheet dense rate at the plan's dtype."""
    overhead_ns: int
    """Fixed time of a dense layer: its launches, norms and element-wise work."""
    compute_capability: int | None
    """Version of CUDA, ten times the major number and the minor one: 86 is sm_86. None: a CPU, or a type of unknown
    capability, which is taken to be at least 80."""
    pass_ns: int | None = None
    """Of a CPU, fixed time of a drafter's pass besides its layers; None: three times ``overhead_ns``."""
    table_ns: int | None = None
    """Of a CPU, fixed time of the embedding, and of the lm_head with what the host does in a step; None:
    ``overhead_ns``."""
    measured: MeasuredRates | None = None
    """None: work takes the longer of reading and arithmetic, and a row no time of its own."""
    together: tuple[Together, ...] | None = None
    """Rates by the devices of the host that compute at once, whose numbers rise from 2; the fields above are those of
    the device alone. None: it has them whoever computes beside it."""

    @property
    def capacity_bytes(self) -> int:
        """Bytes that may be planned: the memory without the reserve."""
        return self.memory_bytes - self.reserve_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupSum:
    """Time of an all-reduce of a short message."""

    members: int
    ns: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """The connection of two devices: a message of b bytes takes latency + b / bandwidth."""

    link_class: str
    latency_ns: int
    bandwidth_bytes_per_s: int
    sums: tuple[GroupSum, ...] | None = None
    """Times of all-reduces over groups with such links, by members, which rise from 2; a group of another size has that
    of the next larger one. None: they follow from the latency."""
    awake_ns: int | None = None
    """Latency of a message to processes that still look for it, however many; ``latency_ns``, no less, is that to one
    that sleeps. None: all messages take the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A link between two devices of one host that differs from the host's own."""

    a: str
    b: str
    link: Link


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """A machine: its devices are connected by ``link`` except for the listed pairs."""

    name: str
    link: Link
    pairs: tuple[Pair, ...]
    transport: Literal["auto", "gloo"]
    """``auto``: nccl between distinct GPUs, else shm on one machine, else gloo. ``gloo``: gloo for every group, as the
    inventory asks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inventory:
    """Hosts and devices, used or not: hosts sorted by name, devices by (host, id), where numbers count as numbers."""

    hosts: tuple[Host, ...]
    network: Link | None
    """Link between any two hosts; None with a single host."""
    devices: tuple[Device, ...]
