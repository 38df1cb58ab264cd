"""Records of the slot table: a slot, the pieces of tensors that it holds, and the slots of each block by their roles.

``plans.slots`` makes them. Letters as there.
"""

from dataclasses import dataclass
from math import prod
from typing import Literal

from plans.dtypes import HEADER_BYTES
from plans.ranges import Ranges
from plans.rotary import Order
from plans.schema import WeightFormat


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Rows and columns of one tensor of a checkpoint; of the same tensor of every expert where a slot has experts."""

    prefix: str
    """Beginning of the tensor's role: ``layers.3.``."""
    role: str
    """Rest of the role: ``q.weight``."""
    rows: Ranges
    """In the order of ``order``, where there is one."""
    cols: Ranges | None
    """None: whole rows, or a vector."""
    order: Order | None = None
    """Order of the rows of each head: row r is row ``order[r % D]`` of its head in the tensor. None: the tensor's."""
    share: Ranges | None = None
    """Columns of which the slot has codes sorted by groups, where they are some (``WeightFormat.ordered``)."""

    def tensor(self, expert: int | None = None) -> str:
        """Return the role of the tensor, or of that of one expert."""
        return self.prefix + ("" if expert is None else f"experts.{expert}.") + self.role


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotSpec:
    """One tensor of an image; its pieces are stacked along axis 0, of expert after expert where it has experts."""

    name: str
    dtype: str
    """Name in a safetensors header: BF16, F16, F32, I32, I64, U8."""
    shape: tuple[int, ...]
    source: Literal["base", "draft"]
    """The checkpoint whose tensors the pieces are."""
    pieces: tuple[Piece, ...]
    """Empty for rotary frequencies, which are computed from the config."""
    experts: int | None = None
    """E; None: the pieces are of one tensor each."""

    @property
    def nbytes(self) -> int:
        """Bytes without the filler behind the slot."""
        return prod(self.shape) * HEADER_BYTES[self.dtype]


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixSlots:
    """A matrix [out, in], or one of each expert [E, out, in]: values, or codes with their scales and zero points."""

    weight: SlotSpec
    """Values; or codes, in ``form`` (``plans.quantized``)."""
    held_columns: int
    """in: columns of the image."""
    inputs: int
    """Columns of the input: fewer than ``held_columns`` where codes are ordered and fill up groups."""
    form: WeightFormat | None = None
    """None: values."""
    scales: SlotSpec | None = None
    zeros: SlotSpec | None = None
    order: SlotSpec | None = None
    """[in], of experts [E, in]: columns of the input; None: their own order."""

    @property
    def listed(self) -> tuple[SlotSpec, ...]:
        """Slots in the order of the file."""
        return _listed(self.weight, self.scales, self.zeros, self.order)


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionSlots:
    """Projections of a share of the KV heads."""

    qkv: tuple[MatrixSlots, ...]
    """[(h + 2k) * d, width of the input]: query rows, then key, then value; a matrix of each where formats differ."""
    qkv_bias: SlotSpec | None
    q_norm: SlotSpec | None
    """[D], or of all heads [h * D]"""
    k_norm: SlotSpec | None
    """[D], or [k * D]"""
    sinks: SlotSpec | None
    """[h]"""
    o: MatrixSlots
    """[H, w]"""
    o_bias: SlotSpec | None
    """[H], on the group's leader alone."""

    @property
    def listed(self) -> tuple[SlotSpec, ...]:
        """Slots in the order of the file."""
        beside = _listed(self.qkv_bias, self.q_norm, self.k_norm, self.sinks)
        return (*_of(*self.qkv), *beside, *self.o.listed, *_listed(self.o_bias))


@dataclass(frozen=True, kw_only=True, slots=True)
class MlpSlots:
    """A share of an MLP, or of every expert; a share of no channels has the norm, the router and a leader's bias."""

    norm: SlotSpec | None
    """[H]; None: there is none before the MLP."""
    router: SlotSpec | None
    """[E, H] of experts, whole on each device, so that all of them pick the same experts."""
    router_bias: SlotSpec | None
    """[E]"""
    correction: SlotSpec | None
    """[E] in float32: added to scores where experts are picked."""
    gate_up: tuple[MatrixSlots, ...]
    """[2m, H], of experts [E, 2m, H]: gate rows, then up; a matrix of each where formats differ. None of no channels.
    """
    gate_up_bias: SlotSpec | None
    """[2m], of experts [E, 2m]"""
    down: MatrixSlots | None
    """[H, m], of experts [E, H, m]"""
    down_bias: SlotSpec | None
    """[H], of experts [E, H], on the group's leader alone."""
    shared_gate: SlotSpec | None = None
    """[1, H] of the shared expert, whole on each device."""
    shared_gate_up: MatrixSlots | None = None
    """[2s, H] of the shared expert's s channels."""
    shared_down: MatrixSlots | None = None
    """[H, s]"""

    @property
    def listed(self) -> tuple[SlotSpec, ...]:
        """Slots in the order of the file."""
        router = _listed(self.norm, self.router, self.router_bias, self.correction)
        biases = _listed(self.gate_up_bias), _listed(self.down_bias)
        own = (*router, *_of(*self.gate_up), *biases[0], *_of(self.down), *biases[1])
        return (*own, *_listed(self.shared_gate), *_of(self.shared_gate_up), *_of(self.shared_down))


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSlots:
    """A layer of the base model or of the drafter."""

    norms: tuple[SlotSpec, ...]
    """Before attention, [H] each: one, or none where outputs alone are normed; of the first layer of an eagle3 drafter
    that of the embedding and that of the hidden state, of an eagle drafter none."""
    attention: AttentionSlots
    mlp: MlpSlots
    attention_output_norm: SlotSpec | None
    """[H], of the output of the attention before it is added to the residual."""
    mlp_output_norm: SlotSpec | None
    """[H]"""

    @property
    def listed(self) -> tuple[SlotSpec, ...]:
        """Slots in the order of the file."""
        after = _listed(self.attention_output_norm), _listed(self.mlp_output_norm)
        return (*self.norms, *self.attention.listed, *after[0], *self.mlp.listed, *after[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSlots:
    """A device's share of a stage."""

    ropes: tuple[SlotSpec, ...]
    """Rotary tables of the model, of which each device has all: [D/2] frequencies, or [2, D/2] with the factors of
    cosines and sines."""
    layers: tuple[LayerSlots, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TableRows:
    """A device's rows of a vocabulary table, in a matrix [V', H] that may have more of them."""

    matrix: MatrixSlots
    start: int
    """First of them in the matrix."""
    stop: int
    lent: bool = False
    """The slots are listed with another table, whose rows are of the same tensor."""

    @property
    def listed(self) -> tuple[SlotSpec, ...]:
        """Slots in the order of the file, where they are listed with this table."""
        return () if self.lent else self.matrix.listed


@dataclass(frozen=True, kw_only=True, slots=True)
class LmHeadSlots:
    """A device's share of the lm_head."""

    norm: SlotSpec
    """[H]: the final norm, whole on each device."""
    rows: TableRows | None
    """None: no rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseSlots:
    """A device's share of the base model; None where it has no part of it."""

    embed: TableRows | None
    """None: no rows."""
    stage: StageSlots | None
    head: LmHeadSlots | None

    @property
    def listed(self) -> tuple[SlotSpec, ...]:
        """Slots in the order of the file: rotary frequencies, embedding, layers, final norm, lm_head.

        A slot with the rows of both tables is where the embedding is.
        """
        ropes = () if self.stage is None else self.stage.ropes
        layers = () if self.stage is None else self.stage.layers
        of_layers = (slot for layer in layers for slot in layer.listed)
        head = () if self.head is None else (self.head.norm, *_of(self.head.rows))
        return (*ropes, *_of(self.embed), *of_layers, *head)


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftSlots:
    """A device's share of the drafter."""

    rope: SlotSpec
    """As in a stage."""
    embed: TableRows | None
    """None: no rows, or those of the base on the same devices."""
    fc_norm: SlotSpec | None
    """[width of a feature]: of the whole feature, or of each aux layer one behind the other."""
    mask_hidden: SlotSpec | None
    """[width of a feature]: the feature of positions that are drafted in parallel."""
    fc: SlotSpec | None
    """[H, width of a feature] of eagle3, [H, 2H] of eagle; whole on each device. None: a feature is taken as it is."""
    fc_bias: SlotSpec | None
    layers: tuple[LayerSlots, ...]
    norm: SlotSpec | None
    """[H] of eagle3"""
    head: TableRows | None
    """Rows of the lm_head; None as ``embed``."""
    d2t: SlotSpec | None
    """[draft vocabulary], int64"""

    @property
    def listed(self) -> tuple[SlotSpec, ...]:
        """Slots in the order of the file."""
        layers = (slot for layer in self.layers for slot in layer.listed)
        fused = (self.fc_norm, self.mask_hidden, self.fc, self.fc_bias)
        inner = _listed(*fused, *layers, self.norm)
        return (self.rope, *_of(self.embed), *inner, *_of(self.head), *_listed(self.d2t))


def _of(*weights: MatrixSlots | TableRows | None) -> tuple[SlotSpec, ...]:
    return tuple(slot for weight in weights if weight is not None for slot in weight.listed)


def _listed(*slots: SlotSpec | None) -> tuple[SlotSpec, ...]:
    return tuple(slot for slot in slots if slot is not None)
