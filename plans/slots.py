"""The slot table: name, dtype and shape of every tensor in a device's image, computed from the plan."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Literal

from plans.artifact import DTYPES, ITEM_BYTES, SlotEntry, align
from plans.kv import KvShare, first_head, kv_shares
from plans.ranges import Range, Ranges, attention_ranges, length, scaled, share_range
from plans.schema import Attention, Draft, DType, LayerClass, Mlp, Model, Plan, Run, Stage
from plans.step import layer_class


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Rows of one source tensor, or the same columns of them; the parts of a slot are stacked along axis 0."""

    source: Literal["base", "draft"]
    tensor: str
    rows: Ranges
    cols: Ranges | None
    """None: whole rows (or a vector)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """One tensor of an image: from ``parts`` of a checkpoint, or from ``literal`` bytes."""

    name: str
    dtype: str
    """As safetensors spells it: BF16, F16, F32, I64, U8."""
    shape: tuple[int, ...]
    offset: int
    """From the start of the data, in bytes."""
    nbytes: int
    parts: tuple[Part, ...]
    literal: bytes | None

    @property
    def entry(self) -> SlotEntry:
        return SlotEntry(name=self.name, dtype=self.dtype, shape=self.shape, offset=self.offset, nbytes=self.nbytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Maker:
    """Makes slots of one block: prefix of slot names, prefix of roles, where the tensors are."""

    prefix: str
    role: str
    source: Literal["base", "draft"]
    tensor: Callable[[str], str]
    dtype: str

    def slot(
        self, name: str, pieces: Iterable[tuple[str, Ranges]], width: int | None, cols: Ranges | None = None
    ) -> Slot:
        """One slot of stacked rows of several roles; ``width`` is the row's length, None for a vector."""
        parts = tuple(
            Part(source=self.source, tensor=self.tensor(self.role + role), rows=rows, cols=cols)
            for role, rows in pieces
        )
        rows = sum(length(part.rows) for part in parts)
        return _slot(self.prefix + name, self.dtype, (rows,) if width is None else (rows, width), parts)

    def vector(self, name: str, length: int) -> Slot:
        return self.slot(name, [(name, ((0, length),))], None)

    def rows(self, name: str, rows: Range, width: int) -> list[Slot]:
        """A table's rows, or nothing where there are none."""
        return [self.slot(name, [(name, (rows,))], width)] if rows[1] > rows[0] else []


def _slot(name: str, dtype: str, shape: tuple[int, ...], parts: tuple[Part, ...], literal: bytes | None = None) -> Slot:
    nbytes = prod(shape) * ITEM_BYTES[dtype]
    return Slot(name=name, dtype=dtype, shape=shape, offset=0, nbytes=nbytes, parts=parts, literal=literal)


def _attention(
    make: _Maker, hidden: int, width: int, attention: Attention, first: int, share: KvShare, leader: bool
) -> list[Slot]:
    """qkv [(h+2k)*d, width], norms of q and k [D] and o [H, its columns] of a share of the KV heads from ``first``; the
    leader has o's bias.
    """
    had = attention_ranges(attention, first, share)
    rows = (had.q, had.k, had.v)
    names = ("q", "k", "v")
    slots = [make.slot("qkv.weight", [(f"{n}.weight", r) for n, r in zip(names, rows, strict=True)], width)]
    if attention.qkv_bias:
        slots.append(make.slot("qkv.bias", [(f"{n}.bias", r) for n, r in zip(names, rows, strict=True)], None))
    if attention.qk_norm:
        slots += [make.vector(f"{name}.weight", attention.head_dim) for name in ("q_norm", "k_norm")]
    slots.append(make.slot("o.weight", [("o.weight", ((0, hidden),))], length(had.o), had.o))
    if attention.o_bias and leader:
        slots.append(make.vector("o.bias", hidden))
    return slots


def _mlp(make: _Maker, hidden: int, mlp: Mlp, units: Range, leader: bool) -> list[Slot]:
    """mlp_norm, gate_up [2*m, H] and down [H, m]; a share of no units has the norm, and a leader's bias, alone."""
    start, stop = scaled(units, mlp.unit)
    span = ((start, stop),)
    slots = [make.vector("mlp_norm.weight", hidden)]
    if mlp.kind == "moe":
        return slots + _experts(make, hidden, mlp, (start, stop))
    if stop > start:
        slots.append(make.slot("gate_up.weight", [("gate.weight", span), ("up.weight", span)], hidden))
        if mlp.bias:
            slots.append(make.slot("gate_up.bias", [("gate.bias", span), ("up.bias", span)], None))
        slots.append(make.slot("down.weight", [("down.weight", ((0, hidden),))], stop - start, span))
    if mlp.bias and leader:
        slots.append(make.vector("down.bias", hidden))
    return slots


def _experts(make: _Maker, hidden: int, mlp: Mlp, units: Range) -> list[Slot]:
    """router [E, H], and of every expert a slice: gate_up [E, 2*m, H] and down [E, H, m]; of no units the router alone.

    The router is whole on each device of the group, so that all of them pick the same experts.
    """
    count, channels, span = mlp.num_experts, units[1] - units[0], (units,)
    slots = [make.slot("router.weight", [("router.weight", ((0, count),))], hidden)]
    if not channels:
        return slots
    experts = range(count)
    gate_up = [(f"experts.{e}.{role}.weight", span) for e in experts for role in ("gate", "up")]
    down = [(f"experts.{e}.down.weight", ((0, hidden),)) for e in experts]
    return [
        *slots,
        _reshaped(make.slot("gate_up.weight", gate_up, hidden), (count, 2 * channels, hidden)),
        _reshaped(make.slot("down.weight", down, channels, span), (count, hidden, channels)),
    ]


def _reshaped(slot: Slot, shape: tuple[int, ...]) -> Slot:
    """The same bytes, in another shape."""
    assert prod(shape) == prod(slot.shape), f"{slot.name}: {slot.shape} as {shape}"
    return dataclasses.replace(slot, shape=shape)


def _rope(name: str, head_dim: int, inv_freq: bytes | None) -> Slot:
    """Rotary frequencies [D/2] in float32, scaling already evaluated; None where only bytes are counted."""
    slot = _slot(name, "F32", (head_dim // 2,), (), inv_freq)
    assert inv_freq is None or len(inv_freq) == slot.nbytes, f"{name}: {len(inv_freq or b'')} bytes for {slot.shape}"
    return slot


def _base_attention(
    make: _Maker, model: Model, attention: Attention, first: int, share: KvShare, leader: bool
) -> list[Slot]:
    norm = make.vector("attention_norm.weight", model.hidden_size)
    return [norm, *_attention(make, model.hidden_size, model.hidden_size, attention, first, share, leader)]


def _draft_attention(make: _Maker, draft: Draft, layer: int, first: int, share: KvShare, leader: bool) -> list[Slot]:
    """eagle3 attends over (embedding, hidden), 2H wide; the first layer of eagle has no norm before it."""
    hidden = draft.hidden_size
    if draft.kind == "eagle3":
        norms = [make.vector("input_norm.weight", hidden), make.vector("hidden_norm.weight", hidden)]
        return norms + _attention(make, hidden, 2 * hidden, draft.attention, first, share, leader)
    norms = [make.vector("attention_norm.weight", hidden)] if layer else []
    return norms + _attention(make, hidden, hidden, draft.attention, first, share, leader)


def _draft_fc(make: _Maker, draft: Draft) -> list[Slot]:
    hidden = draft.hidden_size
    width = len(draft.aux_layers) * draft.target_hidden_size if draft.kind == "eagle3" else 2 * hidden
    slots = [make.slot("fc.weight", [("fc.weight", ((0, hidden),))], width)]
    return slots + ([make.vector("fc.bias", hidden)] if draft.fc_bias else [])


def _draft_norm(make: _Maker, draft: Draft) -> list[Slot]:
    return [make.vector("norm.weight", draft.hidden_size)] if draft.kind == "eagle3" else []


def _draft_d2t(make: _Maker, draft: Draft) -> list[Slot]:
    if not draft.maps_vocabulary:
        return []
    maker = dataclasses.replace(make, dtype="I64")
    return [maker.slot("d2t", [("d2t", ((0, draft.draft_vocab_size),))], None)]


def _counter(dtype: DType) -> _Maker:
    return _Maker(prefix="", role="", source="base", tensor=str, dtype=DTYPES[dtype])


def _total(slots: Iterable[Slot]) -> int:
    return sum(align(slot.nbytes) for slot in slots)


@cache
def attention_bytes(model: Model, dtype: DType, layer_class: LayerClass, share: KvShare, leader: bool) -> int:
    """Bytes of the attention slots, with their norm, of one layer on a device with a share of its KV."""
    return _total(_base_attention(_counter(dtype), model, layer_class.attention, 0, share, leader))


@cache
def mlp_bytes(model: Model, dtype: DType, layer_class: LayerClass, mlp_units: int, leader: bool) -> int:
    """Bytes of the MLP slots, with their norm, of one layer on a device with ``mlp_units`` units."""
    return _total(_mlp(_counter(dtype), model.hidden_size, layer_class.mlp, (0, mlp_units), leader))


def embed_bytes(model: Model, dtype: DType, rows: int) -> int:
    """Bytes of ``rows`` rows of the embedding table."""
    return _total(_counter(dtype).rows("embed.weight", (0, rows), model.hidden_size))


def head_bytes(model: Model, dtype: DType, rows: int) -> int:
    """Bytes of ``rows`` rows of the lm_head."""
    return _total(_counter(dtype).rows("head.weight", (0, rows), model.hidden_size))


def norm_bytes(model: Model, dtype: DType) -> int:
    """Bytes of the final norm, on each device of the head's group."""
    return _total([_counter(dtype).vector("norm.weight", model.hidden_size)])


def rope_bytes(model: Model) -> int:
    """Bytes of the rotary frequencies, on each device with layers."""
    return _total([_rope("rope.inv_freq", model.layers[0].attention.head_dim, None)])


@cache
def draft_attention_bytes(draft: Draft, dtype: DType, share: KvShare, leader: bool) -> int:
    """Bytes of the attention slots, with their norms, of all layers of the head on a device with a share of its KV."""
    make = _counter(dtype)
    return sum(_total(_draft_attention(make, draft, layer, 0, share, leader)) for layer in range(draft.num_layers))


@cache
def draft_mlp_bytes(draft: Draft, dtype: DType, mlp_units: int, leader: bool) -> int:
    """Bytes of the MLP slots, with their norms, of all layers of the head."""
    return draft.num_layers * _total(_mlp(_counter(dtype), draft.hidden_size, draft.mlp, (0, mlp_units), leader))


@cache
def draft_fixed_bytes(draft: Draft, dtype: DType) -> int:
    """Bytes that each device of the draft group has whole: rotary frequencies, fc, final norm, d2t."""
    make = _counter(dtype)
    fixed = [_rope("rope.inv_freq", draft.attention.head_dim, None)]
    return _total([*fixed, *_draft_fc(make, draft), *_draft_norm(make, draft), *_draft_d2t(make, draft)])


def draft_embed_bytes(draft: Draft, dtype: DType, rows: int) -> int:
    """Bytes of ``rows`` rows of the head's embedding table."""
    return _total(_counter(dtype).rows("embed.weight", (0, rows), draft.hidden_size))


def draft_head_bytes(draft: Draft, dtype: DType, rows: int) -> int:
    """Bytes of ``rows`` rows of the head's lm_head."""
    return _total(_counter(dtype).rows("head.weight", (0, rows), draft.hidden_size))


def weights_bytes(plan: Plan, device_id: str) -> tuple[int, int]:
    """Bytes of a device's slots, with their fillers: of the base, and of the draft."""
    of_base, of_draft = _base_slots(plan, device_id, _NAMELESS), _draft_slots(plan, device_id, _NAMELESS, _NAMELESS)
    return _total(of_base), _total(of_draft)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Given:
    """What a checkpoint gives: names of tensors by role, and rotary frequencies."""

    tensor: Callable[[str], str]
    inv_freq: bytes | None


_NAMELESS = _Given(tensor=str, inv_freq=None)


def _base_slots(plan: Plan, device_id: str, base: _Given) -> list[Slot]:
    dtype = DTYPES[plan.options.dtype]
    hidden = plan.model.hidden_size
    make = _Maker(prefix="", role="", source="base", tensor=base.tensor, dtype=dtype)
    stage = next((stage for stage in plan.stages if device_id in stage.devices), None)
    slots: list[Slot] = []
    if stage is not None:
        slots.append(_rope("rope.inv_freq", plan.model.layers[0].attention.head_dim, base.inv_freq))
    if device_id in plan.embed.devices:
        member = plan.embed.devices.index(device_id)
        slots += make.rows("embed.weight", share_range(plan.embed.rows, member), hidden)
    if stage is not None:
        slots += _stage_slots(plan.model, make, stage, stage.devices.index(device_id))
    if device_id in plan.head.devices:
        member = plan.head.devices.index(device_id)
        slots.append(make.vector("norm.weight", hidden))
        slots += make.rows("head.weight", share_range(plan.head.rows, member), hidden)
    return slots


def _stage_slots(model: Model, make: _Maker, stage: Stage, member: int) -> list[Slot]:
    slots: list[Slot] = []
    layer = stage.first_layer
    for run in stage.runs:
        for _ in range(run.num_layers):
            slots += _layer_slots(model, make, layer, stage, run, member)
            layer += 1
    return slots


def _layer_slots(model: Model, make: _Maker, layer: int, stage: Stage, run: Run, member: int) -> list[Slot]:
    kind = layer_class(model, layer)
    maker = dataclasses.replace(make, prefix=f"layers.{layer}.", role=f"layers.{layer}.")
    leader = member == 0
    first, share = first_head(stage, run.kv_heads, member), kv_shares(stage, run.kv_heads)[member]
    attention = _base_attention(maker, model, kind.attention, first, share, leader)
    return attention + _mlp(maker, model.hidden_size, kind.mlp, share_range(run.mlp_units, member), leader)


def _draft_slots(plan: Plan, device_id: str, base: _Given, given: _Given) -> list[Slot]:
    draft, placement = plan.draft, plan.draft_placement
    if draft is None or placement is None or device_id not in placement.devices:
        return []
    member = placement.devices.index(device_id)
    leader = member == 0
    dtype = DTYPES[plan.options.dtype]
    make = _Maker(prefix="draft.", role="draft.", source="draft", tensor=given.tensor, dtype=dtype)
    of_base = dataclasses.replace(make, role="", source="base", tensor=base.tensor)
    slots = [_rope("draft.rope.inv_freq", draft.attention.head_dim, given.inv_freq)]
    if placement.embed_rows is not None:
        table = make if draft.own_embedding else of_base
        slots += table.rows("embed.weight", share_range(placement.embed_rows, member), draft.hidden_size)
    slots += _draft_fc(make, draft)
    for layer in range(draft.num_layers):
        maker = dataclasses.replace(make, prefix=f"draft.layers.{layer}.", role=f"draft.layers.{layer}.")
        first = first_head(placement, placement.kv_heads, member)
        share = kv_shares(placement, placement.kv_heads)[member]
        slots += _draft_attention(maker, draft, layer, first, share, leader)
        slots += _mlp(maker, draft.hidden_size, draft.mlp, share_range(placement.mlp_units, member), leader)
    slots += _draft_norm(make, draft)
    if placement.head_rows is not None:
        table = make if draft.kind == "eagle3" else of_base
        slots += table.rows("head.weight", share_range(placement.head_rows, member), draft.hidden_size)
    return slots + _draft_d2t(make, draft)
