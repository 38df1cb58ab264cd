"""The base model in the closed vocabulary of blocks."""

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu_pytorch_tanh"]


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
class QkvFormats:
    """Formats of the weights of q, k and v, which are not all the same; None: the plan's dtype."""

    q: WeightFormat | None = None
    k: WeightFormat | None = None
    v: WeightFormat | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class GateUpFormats:
    """Formats of the weights of gate and up, which differ; None: the plan's dtype."""

    gate: WeightFormat | None = None
    up: WeightFormat | None = None


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
    """Format of the weights of q, k and v; None: the plan's dtype, or ``qkv_formats``."""
    o_format: WeightFormat | None = None
    """Format of the weights of o."""
    qkv_formats: QkvFormats | None = None
    """Formats of q, k and v, each of which has slots of its own then; None: all have one."""

    @property
    def formats(self) -> dict[str, WeightFormat | None]:
        """Formats of q, k, v and o."""
        one, each = self.qkv_format, self.qkv_formats
        own = {"q": one, "k": one, "v": one} if each is None else {"q": each.q, "k": each.k, "v": each.v}
        return own | {"o": self.o_format}


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
    """Format of the weights of gate and up, of every expert; None: the plan's dtype, or ``gate_up_formats``."""
    down_format: WeightFormat | None = None
    """Format of the weights of down."""
    gate_up_formats: GateUpFormats | None = None
    """Formats of gate and up in ``gated``, each of which has slots of its own then; None: both have one."""

    @property
    def formats(self) -> dict[str, WeightFormat | None]:
        """Formats of gate, up and down."""
        one, each = self.gate_up_format, self.gate_up_formats
        own = {"gate": one, "up": one} if each is None else {"gate": each.gate, "up": each.up}
        return own | {"down": self.down_format}

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
