"""What a plan says: every record, every field, with its unit.

Records are frozen and hold only integers, strings, booleans, tuples and records, so a plan is a value: two plans
are equal exactly when their canonical YAML is equal. Sizes are in bytes, times in ns, rates in 1/s; the unit is in
the name. ``Device.id`` is the only name by which other records refer to a device.

Shape letters used below: H hidden size, D head dim, K KV heads, U MLP units of one layer, V vocabulary size.
"""

from dataclasses import dataclass
from typing import Literal

SCHEMA_MAJOR = 2
SCHEMA_MINOR = 1

DType = Literal["bfloat16", "float16", "float32"]
DTYPE_BYTES: dict[str, int] = {"bfloat16": 2, "float16": 2, "float32": 4}
KvDType = Literal["bfloat16", "float16", "float32", "float8_e4m3fn"]
KV_DTYPE_BYTES: dict[str, int] = {**DTYPE_BYTES, "float8_e4m3fn": 1}

Strategy = Literal["latency", "balanced", "balanced_low_0", "sequential", "custom"]
KvAxis = Literal["heads", "context", "head_dim", "batch"]
"""What a subgroup divides of the KV cache of its heads; ``heads``: each head is held by one device, or repeated."""

Transport = Literal["gloo", "nccl", "local"]
"""How a group communicates: ``local`` means that the group has one member and never does."""


class PlanError(Exception):
    """A plan, or a file beside it, that cannot be used; ``exit_code`` is what a command ends with."""

    exit_code = 2


class NewerSchemaError(PlanError):
    """The plan was written by a newer major version of the format."""


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
    reported_name: str
    """What the driver's name of the device must contain, as whole words; empty where anything will do."""
    memory_bytes: int
    reserve_bytes: int
    """Never planned: context of the driver, graphs, fragmentation."""
    bandwidth_bytes_per_s: int
    """Datasheet memory bandwidth."""
    flops_per_s: int
    """Datasheet dense rate at the plan's dtype."""
    overhead_ns: int
    """Fixed time of one block: launches, norms, element-wise work."""

    @property
    def capacity_bytes(self) -> int:
        """Bytes that may be planned: the memory without the reserve."""
        return self.memory_bytes - self.reserve_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """The connection of two devices: a message of b bytes takes latency + b / bandwidth."""

    link_class: str
    latency_ns: int
    bandwidth_bytes_per_s: int


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
    """``auto``: nccl between distinct GPUs, gloo otherwise. ``gloo``: asked for by the inventory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inventory:
    """What there is. Hosts sorted by name, devices by (host, id), where numbers in ids count as numbers."""

    hosts: tuple[Host, ...]
    network: Link | None
    """Between any two hosts; None with a single host."""
    devices: tuple[Device, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """Digests of what was planned, and the facts of a checkpoint that its config does not tell."""

    base_config_sha256: str
    base_tensors_sha256: str
    """Of the sorted table of tensor names, shapes (derived by the family); the same for a bare config."""
    draft_config_sha256: str | None
    draft_tensors_sha256: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Tree:
    """The draft token tree of one step, as eagle's ``total_token``, ``depth`` and ``top_k`` define it.

    ``total_token`` counts the root; there are ``depth + 1`` drafted levels. ``dynamic``: the ``total_token`` - 1 most
    probable nodes of those that beams of ``top_k`` find. ``static``: always the nodes of ``paths``; then the numbers
    follow from these.
    """

    kind: Literal["dynamic", "static"]
    total_token: int
    depth: int
    top_k: int
    """Of ``static``: one more than the largest rank."""
    paths: tuple[tuple[int, ...], ...] | None
    """Of ``static``: the drafted nodes, each by the ranks of its ancestors and its own among the children of their
    parents, from the root; the shorter first, then in order. None in ``dynamic``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pin:
    """One line of a device map: a piece of the model and the device it is to be on, whole."""

    module: str
    """``embed``, ``layers.<i>`` of each layer, ``head`` (final norm and lm_head), or ``draft``."""
    device: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What was asked for."""

    batch: int
    context: int
    """Positions of one sequence: prompt and new tokens together."""
    dtype: DType
    """Of weights and activations."""
    kv_dtype: KvDType
    """Of the KV caches of base and draft."""
    prefill_chunk: int
    """Prompt tokens of one forward in prefill."""
    stall_timeout_s: int
    """A run ends when one of its ranks has made no progress for so long, in s; a layer of a forward is progress."""
    strategy: Strategy
    """What comes first: the time of a step (``latency``), the least free memory of a device (``balanced``; in
    ``balanced_low_0`` as little as can be on the first device before that), filling devices in order (``sequential``),
    these three with every layer whole on a device,
    or the device map (``custom``); the rest is then the fastest."""
    kv_axis: KvAxis | None
    """Of all stages, as asked for; None: the solver chooses, stage by stage. Of the draft it always does."""
    custom: tuple[Pin, ...] | None
    """The device map of the strategy ``custom``; None otherwise."""
    gap_ppm: int
    """Accepted relative distance of objective and bound, in parts per million; 0: proven optimal."""
    within_ppm: int | None
    """Of an earlier plan as much was kept as a step allows that takes at most so many millionths longer than the least,
    which is the bound; None: there was none."""
    tree: Tree | None
    """None: plain decoding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """Grouped-query attention with half-split rotary embedding."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool
    o_bias: bool
    qk_norm: bool
    """Each head of q and of k goes through a norm of D weights before it is rotated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mlp:
    """``gated``: down(act(gate(x)) * up(x)), dealt out in units of ``unit`` channels: intermediate_size = U * unit.

    ``moe``: ``num_experts`` of those; a router picks ``experts_per_token`` of them for each token and weighs their
    sum. A unit is that many channels of every expert at once, so each device has a slice of all experts; the router
    is whole on each device.
    """

    kind: Literal["gated", "moe"]
    intermediate_size: int
    """Of one expert."""
    unit: int
    activation: Literal["silu"]
    bias: bool
    """Of the linears; false in ``moe``."""
    num_experts: int
    """E; 1 in ``gated``."""
    experts_per_token: int
    """1 in ``gated``."""
    norm_topk_prob: bool
    """The weights of the picked experts, softmax over all, are divided by their sum; false in ``gated``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerClass:
    """A run of equal layers, in execution order."""

    num_layers: int
    attention: Attention
    mlp: Mlp


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """The base model in the closed vocabulary of blocks: all that the runtime needs to know of a family."""

    family: str
    vocab_size: int
    hidden_size: int
    norm_eps: float
    tied_head: bool
    """The checkpoint stores one tensor for embed and head; images hold what each device needs of it."""
    layers: tuple[LayerClass, ...]
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    @property
    def num_layers(self) -> int:
        """L: layers of all classes together."""
        return sum(layers.num_layers for layers in self.layers)


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """The EAGLE head. ``eagle`` is the head of EAGLE-1 and -2, ``eagle3`` that of EAGLE-3."""

    kind: Literal["eagle", "eagle3"]
    hidden_size: int
    target_hidden_size: int
    num_layers: int
    attention: Attention
    mlp: Mlp
    norm_eps: float
    fc_bias: bool
    draft_vocab_size: int
    """Rows of the head's own lm_head (eagle3), or the base's vocabulary (eagle)."""
    maps_vocabulary: bool
    """d2t is present: target id = draft id + d2t[draft id]."""
    own_embedding: bool
    """The head brings embed_tokens; otherwise it uses the base's."""
    aux_layers: tuple[int, ...]
    """eagle3: the target features are the inputs of these base layers (0-based), concatenated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Consecutive layers of a stage, of one class, with one split; shares are in the order of the stage's devices."""

    num_layers: int
    kv_heads: tuple[int, ...]
    """KV heads of each device, each with its query heads or a part of them, at least 1; members of one subgroup hold
    the same heads and show the same number, and the sum over subgroups is K."""
    mlp_units: tuple[int, ...]
    """MLP units of each device; the sum is U."""


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
    """Of the group."""
    hop_transport: Transport
    """Of {leader of the stage before} + this group; of the first stage, of {leader of the embedding's group} + this
    group. ``local`` where both are the same devices."""
    kv_axis: KvAxis
    kv_subgroups: tuple[int, ...]
    """Sizes of the subgroups, in the order of ``devices``; all 1 for ``heads`` alone, where each divides g. The sum is
    the group's size."""
    runs: tuple[Run, ...]
    predicted_ns: int
    """Of one verify: its layers with their collectives, and the hop into it."""

    @property
    def num_layers(self) -> int:
        return sum(run.num_layers for run in self.runs)


@dataclass(frozen=True, kw_only=True, slots=True)
class VocabSplit:
    """Vocabulary rows over an ordered group of devices, any group; the first is its leader."""

    devices: tuple[str, ...]
    transport: Transport
    """Of the group."""
    hop_transport: Transport
    """Head: of {leader of the last stage} + this group, ``local`` where both are the same devices. Embed: ``local``."""
    rows: tuple[int, ...]
    """Of each device: contiguous ranges in the order of ``devices``; 0 is allowed."""
    predicted_ns: int
    """With receiving."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftPlacement:
    """Where the EAGLE head is; shares are in the order of ``devices``, the first is its leader.

    ``fc``, norms and ``d2t`` are whole on each device.
    """

    devices: tuple[str, ...]
    transport: Transport
    feature_transport: Transport
    """Of {leader of the head's group} + this group: accepted features and the verified tokens; ``local``
    where both are the same devices."""
    kv_axis: KvAxis | None
    """As in a stage; None exactly where no KV head is on more than one device."""
    kv_subgroups: tuple[int, ...] | None
    """As in a stage; None exactly where ``kv_axis`` is."""
    kv_heads: tuple[int, ...]
    mlp_units: tuple[int, ...]
    embed_rows: tuple[int, ...] | None
    """Rows of the head's embedding table; None exactly where it has none of its own and is on the devices of the
    base's: it uses that, with the same rows."""
    head_rows: tuple[int, ...] | None
    """Rows of the lm_head; None exactly for ``eagle`` on the devices of the base's: it uses that, with the same
    rows."""
    predicted_ns: int
    """Of one draft: depth + 1 passes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceMemory:
    """What lies in one device's memory, term by term; with ``reserve_bytes`` it is at most ``memory_bytes``."""

    device: str
    weights_bytes: int
    """Of the base: slots with their alignment."""
    draft_weights_bytes: int
    kv_bytes: int
    draft_kv_bytes: int
    buffers_bytes: int
    """Step buffers: hidden states, features, logits, tree, scratch."""
    comm_bytes: int
    """Collective and hop buffers."""

    @property
    def planned_bytes(self) -> int:
        return (
            self.weights_bytes
            + self.draft_weights_bytes
            + self.kv_bytes
            + self.draft_kv_bytes
            + self.buffers_bytes
            + self.comm_bytes
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """What the solver proved."""

    status: Literal["OPTIMAL", "FEASIBLE"]
    objective_ns: int
    """Predicted time of one step."""
    bound_ns: int
    """No placement of the problem has a smaller objective."""
    min_free_bytes: int
    """Second objective: the least free memory among the devices in use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The frozen answer."""

    schema: str
    inputs: Inputs
    options: Options
    inventory: Inventory
    model: Model
    draft: Draft | None
    stages: tuple[Stage, ...]
    embed: VocabSplit
    """The embedding table."""
    head: VocabSplit
    """Final norm, whole on each device of the group, and lm_head."""
    draft_placement: DraftPlacement | None
    message_transport: Transport
    """Of the group of all devices in use, for the fixed-width message of a step."""
    memory: tuple[DeviceMemory, ...]
    """Of the devices in use, in the order of ``inventory.devices``."""
    proof: Proof

    @property
    def devices(self) -> tuple[Device, ...]:
        """The devices in use, in inventory order: rank r of a run is the r-th."""
        used = {entry.device for entry in self.memory}
        return tuple(device for device in self.inventory.devices if device.id in used)

    def device(self, device_id: str) -> Device:
        return next(device for device in self.inventory.devices if device.id == device_id)
