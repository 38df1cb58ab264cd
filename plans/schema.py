"""The records of a plan, with the meaning and the unit of every field.

Records are frozen and hold only integers, strings, booleans, tuples and records, so a plan is a value: two plans
are equal exactly when their canonical YAML is equal. Sizes are in bytes, times in ns, rates in 1/s; the unit is in
the name. ``Device.id`` is the only name by which other records refer to a device.

Shape letters used below: H hidden size, D head dim, K KV heads, U MLP units of one layer, V vocabulary size.
"""

from dataclasses import dataclass
from typing import Literal, get_args

SCHEMA_MAJOR = 4
SCHEMA_MINOR = 5

DType = Literal["bfloat16", "float16", "float32"]
KvDType = Literal["bfloat16", "float16", "float32", "float8_e4m3fn", "int8"]
RoundedWeights = Literal["int8", "int4-g128", "int4-g32", "fp8"]
"""Formats to which plain weights are rounded (``plans.quantized.ROUNDED``)."""

Strategy = Literal["latency", "balanced", "balanced_low_0", "sequential", "custom"]
HeadLayout = Literal["layers", "speculators", "modelopt", "nemo", "vllm"]
"""Layout in which an EAGLE head is published, beside that of its authors (SafeAILab/EAGLE, SpecForge). ``layers``: a
flat config with tensors named ``layers.0.``; ``vllm``: vLLM's wrapper of EAGLE-1."""
AuxSource = Literal["inputs", "outputs", "option"]
Activation = Literal["silu", "gelu_pytorch_tanh"]
KvAxis = Literal["heads", "context", "head_dim", "batch"]
"""Dimension of the KV cache that a subgroup divides; ``heads``: none, each KV head is on one device or repeated."""

Transport = Literal["gloo", "nccl", "shm", "local"]
"""Backend of a group's collectives; ``shm``: memory that its processes share; ``local``: the group has one member, or a
hop goes to the same devices."""


class PlanError(Exception):
    """A plan, or a file beside it, that cannot be used; ``exit_code`` is that of the command.

    PlanError                 2
    ├── NewerSchemaError      2   written by a newer major version of the format
    └── InvalidPlanError      2   reads well and contradicts itself (``plans.check``)
    """

    exit_code = 2


class NewerSchemaError(PlanError):
    """The plan was written by a newer major version of the format."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """Digests of the configs and of the tensor tables that were planned."""

    base_config_sha256: str
    base_tensors_sha256: str
    """SHA-256 of the sorted table of tensor names and shapes that the family derives; the same for a bare config."""
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
    """Width of a beam and children of a node; of a static tree one more than the largest rank."""
    paths: tuple[tuple[int, ...], ...] | None
    """Drafted nodes of a static tree, each as the ranks of its ancestors and its own among the children of their
    parents, from the root; by length, then in order. None in a dynamic tree."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduledTree:
    """A range of the schedule of draft trees, up to the next one's first number."""

    sequences: int
    """Least number of running sequences."""
    tree: Tree | None
    """Tree of a step; None: plain decoding, in which the drafter's caches are kept up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pin:
    """One line of a device map: a piece of the model and the device it is to be on, whole."""

    module: str
    """``embed``, ``layers.<i>`` of each layer, ``head`` (final norm and lm_head), or ``draft``."""
    device: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of the request, with every default written out."""

    batch: int
    context: int
    """Positions of one sequence: prompt and new tokens together."""
    dtype: DType
    """Dtype of weights and activations."""
    weights: RoundedWeights | None = None
    """Format to which the plain weights of the model's layers are rounded; None: they are as in the checkpoint."""
    kv_dtype: KvDType
    """Dtype of the KV caches of base model and drafter."""
    prefill_chunk: int
    """Prompt tokens of one forward in prefill."""
    stall_timeout_s: int
    """Seconds without progress of a rank after which a run ends; a layer of a forward is progress."""
    strategy: Strategy
    """First objective, before the time of a step. ``latency``: none. ``balanced``: the most free memory on the fullest
    device. ``balanced_low_0``: the least on the first device, then as ``balanced``. ``sequential``: devices filled in
    order. ``custom``: the device map. All but ``latency`` put every layer whole on one device."""
    kv_axis: KvAxis | None
    """KV axis asked for in all stages; None: the solver chooses for each. For the drafter it always chooses."""
    custom: tuple[Pin, ...] | None
    """The device map of the strategy ``custom``; None otherwise."""
    gap_ppm: int
    """Accepted relative distance of objective and bound, in parts per million; 0: proven optimal."""
    within_ppm: int | None
    """Parts per million by which a step may exceed the bound so that fewer bytes move against an earlier plan; None: no
    earlier plan was given."""
    simplify_ppm: int
    """Parts per million by which a step may exceed the least for fewer devices in use and fewer different runs."""
    max_devices: int | None
    """Most devices in use; None: any number."""
    tree: Tree | None
    """Draft tree by which the placement is the best; None: plain decoding."""
    schedule: tuple[ScheduledTree, ...] | None = None
    """Draft trees by number of running sequences, ascending from 1; None: always ``tree``."""
    keep_draft: bool | None = None
    """True: with a schedule, the draft was to be kept where plain decoding is faster with all sequences."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightFormat:
    """Format of a quantized matrix [out, in]: codes, and scales that some of its values share (``plans.quantized``)."""

    code: Literal["int4", "int8", "float8_e4m3fn", "float4_e2m1"]
    group: int | None
    """Columns of a row that share a scale; None: all."""
    zeros: bool
    """Codes have zero points, as many as there are scales."""
    scale: Literal["bfloat16", "float16", "float32", "float8_e8m0"]
    ordered: bool | None = None
    """True: columns are sorted by groups that were not neighbours, and a slot has the input's column of each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """Grouped-query attention with half-split rotary embedding."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool
    o_bias: bool
    qk_norm: bool
    """Queries and keys go through an RMS norm before they are rotated: each head by D weights."""
    qk_norm_whole: bool | None = None
    """True: with ``qk_norm``, all query heads go through one norm together, and all key heads through another."""
    scale: float | None = None
    """Factor of the products of queries and keys; None: 1 / sqrt(D)."""
    window: int | None = None
    """Positions that a row attends to: its own and those before it, so many in all; None: all."""
    softcap: float | None = None
    """c: a score s, times the factor, becomes c * tanh(s / c); None: it stays."""
    sinks: bool | None = None
    """True: each query head has a learned score without a value, which takes part in the softmax."""
    qkv_format: WeightFormat | None = None
    """Format of the weights of q, k and v; None: the plan's dtype."""
    o_format: WeightFormat | None = None
    """Format of the weights of o."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Router:
    """Rule by which experts are picked, where it is more than the softmax of a product."""

    scores: Literal["softmax", "sigmoid"]
    """Scores of the experts, of their logits; the weights of those that are picked are their scores."""
    bias: bool
    """The product has a bias."""
    float32: bool
    """Weights and bias of the product are in float32, and so is the product."""
    correction: bool
    """Experts are picked by their scores and a bias, in float32, which their weights do not have."""
    groups: int
    """Groups of consecutive experts, equally many each; 1: none."""
    picked_groups: int
    """Groups of which experts are picked: those with the highest sums of their two best scores, with their biases."""
    scale: float
    """Factor of the weights, after they are divided by their sum."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mlp:
    """``gated``: down(act(gate(x)) * up(x)), dealt out in units of ``unit`` channels: intermediate_size = U * unit.

    ``moe``: ``num_experts`` of those; a router picks ``experts_per_token`` of them for each token and weighs their
    sum. A unit is that many channels of every expert at once, so each device has a slice of all experts; the router
    is whole on each device.
    """

    kind: Literal["gated", "moe"]
    intermediate_size: int
    """Channels of one expert."""
    unit: int
    activation: Activation
    bias: bool
    """The linear layers have biases, those of every expert."""
    num_experts: int
    """E; 1 in ``gated``."""
    experts_per_token: int
    """1 in ``gated``."""
    norm_topk_prob: bool
    """True where weights of the picked experts, scores among all, are divided by their sum; false in ``gated``."""
    shared_size: int | None = None
    """Channels of the expert that every token takes beside the picked ones: a U-th of each unit. None: none."""
    shared_gate: bool | None = None
    """True: its output is multiplied by the sigmoid of a product with the token's input."""
    router: Router | None = None
    """None: the softmax of a product without a bias, in the dtype of activations; none in ``gated``."""
    swiglu_limit: float | None = None
    """c, in ``moe``: gates of picked experts are at most c, ups are from -c to c, and 1 is added to these (gpt-oss).

    None: nothing of that.
    """
    swiglu_alpha: float | None = None
    """a: with ``swiglu_limit`` the activation is g * sigmoid(a * g); None: 1."""
    gate_up_format: WeightFormat | None = None
    """Format of the weights of gate and up, of every expert; None: the plan's dtype."""
    down_format: WeightFormat | None = None
    """Format of the weights of down."""

    @property
    def units(self) -> int:
        """U: units of one layer."""
        return self.intermediate_size // self.unit

    @property
    def shared_unit(self) -> int:
        """Channels of the shared expert in one unit; 0 without one."""
        return (self.shared_size or 0) // self.units


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerClass:
    """Equal layers; those of a model follow one another in execution order unless it has a pattern."""

    num_layers: int
    attention: Attention
    mlp: Mlp


@dataclass(frozen=True, kw_only=True, slots=True)
class Rotary:
    """A rotary table, and the layers whose queries and keys are rotated by it."""

    layers: tuple[int, ...]
    """Layers (0-based), ascending; each layer of the model is in one table."""
    channels: int
    """First channels of each head that are rotated, an even number; the others pass. 0: none, and all frequencies of
    the table are 0."""
    interleaved: bool
    """Channels 2i and 2i + 1 of the checkpoint are a pair; false: i and channels / 2 + i. Images have the rows of q and
    k in the order in which i and D / 2 + i are a pair, whatever ``channels`` is."""
    scaled: bool
    """Cosines and sines have a factor (YaRN, LongRoPE), which the table has for each pair."""
    by_context: bool
    """Frequencies are those of ``Options.context`` (LongRoPE, dynamic NTK), from the first token on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryScaling:
    """Queries at position p are multiplied by 1 + beta * log(1 + floor(p / positions))."""

    beta: float
    positions: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """The base model in the closed vocabulary of blocks; the runtime needs to know no more of a family."""

    family: str
    vocab_size: int
    hidden_size: int
    norm_eps: float
    tied_head: bool
    """The checkpoint has one tensor for embedding and lm_head; images hold what each device needs of it."""
    layers: tuple[LayerClass, ...]
    pattern: tuple[int, ...] | None = None
    """Class of each layer in execution order, as an index of ``layers``, repeated for as many layers as there are; its
    last repetition may be cut short. None: the classes follow one another."""
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    rotary: tuple[Rotary, ...] | None = None
    """Rotary tables; None: one, by which all layers rotate all channels of a head in halves."""
    query_scaling: QueryScaling | None = None
    """Factor of the queries of all layers by their positions; None: 1."""
    norms: Literal["after", "around"] | None = None
    """Norms of a layer: of the outputs of attention and MLP before they are added to the residual (``after``), or of
    inputs and outputs (``around``). None: of the inputs."""
    norm_offset: bool | None = None
    """True: a norm multiplies by 1 + weight, in float32."""
    embedding_multiplier: float | None = None
    """Factor of embeddings; None: 1."""
    embedding_multiplier_rounded: bool | None = None
    """True: the factor is rounded to the dtype of activations first."""
    residual_multiplier: float | None = None
    """Factor of the outputs of attention and MLP where they are added to the residual; None: 1."""
    logits_divisor: float | None = None
    """Divisor of logits; None: 1."""
    logit_softcap: float | None = None
    """c: a logit z of the lm_head becomes c * tanh(z / c); None: it stays."""
    head_format: WeightFormat | None = None
    """Format of the lm_head, of a tied model that of the embedding too; None: the plan's dtype."""

    @property
    def embed_format(self) -> WeightFormat | None:
        """Format of the embedding table; None: the plan's dtype."""
        return self.head_format if self.tied_head else None

    @property
    def num_layers(self) -> int:
        """L: layers of all classes together."""
        return sum(layers.num_layers for layers in self.layers)


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """The drafter (EAGLE head): ``eagle`` of EAGLE-1 and -2, ``eagle3`` of EAGLE-3 and P-EAGLE.

    Optional flags are true or absent.
    """

    kind: Literal["eagle", "eagle3"]
    hidden_size: int
    target_hidden_size: int
    num_layers: int
    attention: Attention
    mlp: Mlp
    norm_eps: float
    fc_bias: bool
    draft_vocab_size: int
    """Rows of its lm_head, or of the base's where it has none."""
    maps_vocabulary: bool
    """``d2t`` is present: target id = draft id + d2t[draft id]."""
    own_embedding: bool
    """The drafter has an embedding table; otherwise it uses the base's."""
    aux_layers: tuple[int, ...]
    """Boundaries of the base (k: the input of layer k, L: the output of the last layer before the final norm) whose
    hidden states, concatenated, are the target feature of eagle3. Empty in eagle, and in an eagle3 head without ``fc``,
    whose layers take the state behind the base's final norm as it is."""
    aux_layers_from: AuxSource | None = None
    """Where they are from: ids of the config that name layers by their inputs or by their outputs, or an option of the
    request. None: the default of a producer that names none, and in plans of 4.0."""
    layout: HeadLayout | None = None
    """None: that of the authors of EAGLE."""
    base_head: bool | None = None
    """True: an eagle3 head without an lm_head, which uses the base's."""
    norm_before_residual: bool | None = None
    """True: the residual of the first layer is the normed hidden state."""
    fc_norm: Literal["joint", "each"] | None = None
    """RMS norm before ``fc``: of the whole target feature, or of the hidden state of each aux layer."""
    norm_output: bool | None = None
    """True: what is fed back is the output behind the final norm."""
    logit_scale: float | None = None
    """Factor of the logits."""
    mask_token_id: int | None = None
    """Token of the positions that are drafted in parallel (P-EAGLE); None: levels are drafted one after the other."""
    rotary: Rotary | None = None
    """Rotary table of all layers; None as in ``Model``."""

    @property
    def fc_width(self) -> int:
        """Width of the input of ``fc``: in eagle3 a target feature, in eagle an embedding beside a feature; 0: none."""
        return len(self.aux_layers) * self.target_hidden_size if self.kind == "eagle3" else 2 * self.hidden_size

    @property
    def own_head(self) -> bool:
        """True: the drafter has an lm_head of its own, otherwise it uses the base's."""
        return self.kind == "eagle3" and not self.base_head

    def attention_width(self, layer: int) -> int:
        """Width of what q, k and v of a layer are computed from: in the first of eagle3 an embedding beside a state."""
        return 2 * self.hidden_size if self.kind == "eagle3" and layer == 0 else self.hidden_size


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Simplicity:
    """Proven of the simplest of the candidate placements within ``Options.simplify_ppm`` of the least step.

    These are settled in turn, each within a budget of work: where a bound is not the plan's own number, nothing simpler
    was found within it, and what is between the two is not excluded.
    """

    devices_bound: int
    """No placement has fewer devices in use."""
    runs_bound: int | None
    """None on as few devices as the plan has fewer different runs of layers; None where an earlier plan is kept."""
    step_bound_ns: int
    """None with as few devices and runs as the plan takes less."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """Proof of the solver, over the candidate placements of the problem (``plans/FORMAT.md`` names them)."""

    status: Literal["OPTIMAL", "FEASIBLE"]
    objective_ns: int
    """Predicted time of one step."""
    least_ns: int
    """Predicted step time of the fastest candidate placement that was found; the least, as the bound shows, when
    OPTIMAL. The plan takes longer where that makes it simpler, keeps weights in place, or is within the rounding."""
    bound_ns: int
    """Lower bound: no candidate placement has a smaller objective."""
    simplicity: Simplicity | None
    """None where no simpler placement was asked for, or a gap was accepted; and in plans of version 3.0."""
    min_free_bytes: int
    """Least free memory among the devices in use, the second objective."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunnerUp:
    """The best choice of a draft tree but one."""

    tree: Tree | None
    """None: no draft."""
    acceptance_ppm: int
    """Expected tokens of a step, in parts per million."""
    least_ns: int
    """Predicted step time of the fastest candidate placement with it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduledStep:
    """Prediction for a range of the schedule, at its first number of sequences."""

    acceptance_ppm: int
    """Expected tokens of a step and sequence, in parts per million; 1000000 in plain decoding."""
    predicted_ns: int
    """Predicted time of a step on the plan's placement."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Speculation:
    """Choice of the draft tree, or of none, by expected tokens per second: batch * acceptance / step."""

    profile_sha256: str
    """Digest of the acceptance profile, ``acceptance.yaml`` beside the plan."""
    profile_source: str
    """Source that the profile names: what was decoded, or whose published figures it is derived from."""
    acceptance_ppm: int
    """Expected tokens of a step with ``Options.tree``, in parts per million; 1000000 without a draft."""
    plain_ns: int
    """Predicted step time of the fastest candidate placement without a draft."""
    trees: int
    """Trees that were compared, one of which or none is the best."""
    runner_up: RunnerUp | None
    """The best of the others whose placement was solved for the proof; None: there is none."""
    schedule: tuple[ScheduledStep, ...] | None = None
    """Of each range of ``Options.schedule``, in its order; None exactly where that is."""


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
    """Placement of the embedding table."""
    head: VocabSplit
    """Final norm, whole on each device of the group, and lm_head."""
    draft_placement: DraftPlacement | None
    message_transport: Transport
    """Transport of the group of all devices in use, for the step message."""
    memory: tuple[DeviceMemory, ...]
    """Memory of the devices in use, in the order of ``inventory.devices``."""
    proof: Proof
    speculation: Speculation | None = None
    """None: the tree, or none, was asked for."""

    @property
    def devices(self) -> tuple[Device, ...]:
        """The devices in use, in inventory order: rank r of a run is the r-th."""
        used = {entry.device for entry in self.memory}
        return tuple(device for device in self.inventory.devices if device.id in used)

    @property
    def placed(self) -> tuple[str, ...]:
        """Ids of the devices of stages, embedding, lm_head and drafter, in inventory order."""
        names = {device for stage in self.stages for device in stage.devices}
        names.update(self.embed.devices, self.head.devices)
        names.update(self.draft_placement.devices if self.draft_placement is not None else ())
        return tuple(device.id for device in self.inventory.devices if device.id in names)

    @property
    def transports(self) -> frozenset[Transport]:
        """Transports of all groups."""
        drafter, tables = self.draft_placement, (self.embed, self.head)
        stages = {transport for stage in self.stages for transport in (stage.transport, stage.hop_transport)}
        ends = {transport for split in tables for transport in (split.transport, split.hop_transport)}
        draft = {drafter.transport, drafter.feature_transport} if drafter else set()
        return frozenset({self.message_transport, *stages, *ends, *draft})

    def device(self, device_id: str) -> Device:
        return next(device for device in self.inventory.devices if device.id == device_id)
