"""Where everything is: stages, vocabulary tables and drafter on their devices, and the bytes of each device."""

from dataclasses import dataclass
from typing import Literal, get_args

from plans.schema.options import KvAxis

Transport = Literal["gloo", "nccl", "shm", "local"]
"""Backend of a group's collectives; ``shm``: memory that its processes share; ``local``: the group has one member, or a
hop goes to the same devices."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Consecutive layers of a stage with one MLP and one split; shares are in the order of the stage's devices."""

    num_layers: int
    kv_heads: tuple[int, ...]
    """KV heads per device, at least 1, with their query heads or a part of them; members of a subgroup hold the same KV
    heads and have the same number, and the sum over subgroups is K."""
    mlp_units: tuple[int, ...]
    """MLP units per device; the sum is U."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A contiguous range of layers run by one ordered group of devices; the first is its leader.

    Consecutive devices form subgroups. The m members of a subgroup share the KV cache of its heads along ``kv_axis``:
    ``context``: the tree's rows, and of every sequence each m-th position; ``head_dim``: D/m dims of every head;
    ``batch``: ceil(B/m) sequences.
    ``heads``: none of it is shared, each member has it whole; the i-th has query heads [i*g/m, (i+1)*g/m) of the g of
    each KV head.
    """

    first_layer: int
    devices: tuple[str, ...]
    transport: Transport
    """Transport of the group's collectives."""
    hop_transport: Transport
    """Transport between the leader of the stage before, or of the embedding's group, and this group; ``local`` where
    both groups are the same devices."""
    kv_axis: KvAxis
    kv_subgroups: tuple[int, ...]
    """Sizes of the subgroups in the order of ``devices``; the sum is the group's size. All 1 where no KV head is on
    several devices; by ``heads`` each size divides g."""
    runs: tuple[Run, ...]
    predicted_ns: int
    """Time of one verify: the layers with their collectives, and the hop into the stage."""

    @property
    def num_layers(self) -> int:
        return sum(run.num_layers for run in self.runs)


@dataclass(frozen=True, kw_only=True, slots=True)
class VocabSplit:
    """Vocabulary rows over an ordered group of devices, any group; the first is its leader."""

    devices: tuple[str, ...]
    transport: Transport
    """Transport of the group's collectives."""
    hop_transport: Transport
    """lm_head: transport between the leader of the last stage and this group, ``local`` where both groups are the same
    devices. Embedding: ``local``."""
    rows: tuple[int, ...]
    """Rows per device: contiguous ranges in the order of ``devices``; 0 is allowed."""
    predicted_ns: int
    """Time of one verify, with the hop into the group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftPlacement:
    """Placement of the drafter; shares are in the order of ``devices``, the first of which is its leader.

    ``fc``, norms and ``d2t`` are whole on each device.
    """

    devices: tuple[str, ...]
    transport: Transport
    feature_transport: Transport
    """Transport between the leader of the lm_head's group and this group, for accepted features and verified tokens;
    ``local`` where both groups are the same devices."""
    kv_axis: KvAxis | None
    """Axis as in a stage; None exactly where no KV head is on more than one device."""
    kv_subgroups: tuple[int, ...] | None
    """Sizes as in a stage; None exactly where ``kv_axis`` is None."""
    kv_heads: tuple[int, ...]
    mlp_units: tuple[int, ...]
    embed_rows: tuple[int, ...] | None
    """Rows of the drafter's embedding table; None exactly where it has none of its own and is on the devices of the
    base's, whose rows it uses."""
    head_rows: tuple[int, ...] | None
    """Rows of the drafter's lm_head; None exactly where it has none of its own and is on the devices of the base's,
    whose rows it uses."""
    predicted_ns: int
    """Time of one draft: depth + 1 passes, of P-EAGLE one."""


MemoryTerm = Literal["weights", "draft_weights", "kv", "draft_kv", "buffers", "comm"]


MEMORY_TERMS: tuple[MemoryTerm, ...] = get_args(MemoryTerm)
"""Terms of a device's memory, in the order of ``DeviceMemory``, whose fields are ``<term>_bytes``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceMemory:
    """Bytes in one device's memory, term by term; with ``reserve_bytes`` at most ``memory_bytes``."""

    device: str
    weights_bytes: int
    """Slots of the base model with their alignment."""
    draft_weights_bytes: int
    kv_bytes: int
    draft_kv_bytes: int
    buffers_bytes: int
    """Step buffers: hidden states, features, logits, tree, scratch."""
    comm_bytes: int
    """Collective and hop buffers."""

    @property
    def terms(self) -> dict[str, int]:
        """Bytes by term."""
        return {term: getattr(self, f"{term}_bytes") for term in MEMORY_TERMS}

    @property
    def planned_bytes(self) -> int:
        """Sum of the terms."""
        return sum(self.terms.values())
