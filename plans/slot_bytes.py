"""Bytes of slots, with the filler behind each: of a share, which the planner counts, and of a device's image."""

from collections.abc import Iterable
from functools import cache

from plans.artifact import align
from plans.kv import KvShare
from plans.schema import (
    Draft,
    DType,
    LayerClass,
    Model,
    Plan,
)
from plans.share_slots import base_maker, draft_maker, mlp_slots
from plans.slot_records import (
    MatrixSlots,
    SlotSpec,
)
from plans.slots import (
    base_attention,
    base_mlp,
    base_slots,
    draft_attention,
    draft_fixed,
    draft_slots,
    draft_table,
    embed_slots,
    final_norm_slot,
    lm_head_table,
    output_norm,
    rope_slots,
)


def _total(slots: Iterable[SlotSpec | None]) -> int:
    return sum(align(slot.nbytes) for slot in slots if slot is not None)


def _table_bytes(table: MatrixSlots | None) -> int:
    return 0 if table is None else _total(table.listed)


@cache
def attention_bytes(model: Model, dtype: DType, layer_class: LayerClass, share: KvShare, leader: bool) -> int:
    """Bytes of the attention slots, with their norms, of one layer on a device with a share of its KV."""
    make = base_maker(dtype)
    norms, attention = base_attention(make, model, layer_class.attention, 0, share, leader)
    return _total((*norms, *attention.listed, output_norm(make, model, "norm.weight")))


@cache
def mlp_bytes(model: Model, dtype: DType, layer_class: LayerClass, mlp_units: int, leader: bool) -> int:
    """Bytes of the MLP slots, with their norms, of one layer on a device with ``mlp_units`` units."""
    make = base_maker(dtype)
    mlp = base_mlp(make, model, layer_class.mlp, (0, mlp_units), leader)
    return _total((*mlp.listed, output_norm(make, model, "norm.weight")))


def embed_bytes(model: Model, dtype: DType, rows: int) -> int:
    """Bytes of ``rows`` rows of the embedding table."""
    return _table_bytes(embed_slots(model, (0, rows), dtype))


def lm_head_bytes(model: Model, dtype: DType, rows: int) -> int:
    """Bytes of ``rows`` rows of the lm_head that are not the embedding's."""
    return _table_bytes(lm_head_table(model, (0, rows), dtype))


def norm_bytes(model: Model, dtype: DType) -> int:
    """Bytes of the final norm, on each device of the lm_head."""
    return _total([final_norm_slot(model, dtype)])


def rope_bytes(model: Model) -> int:
    """Bytes of the rotary tables, on each device with layers."""
    return _total(rope_slots(model))


@cache
def draft_attention_bytes(draft: Draft, dtype: DType, share: KvShare, leader: bool) -> int:
    """Bytes of the attention slots, with their norms, of all layers of the drafter for a share of its KV."""
    layers = [draft_attention(draft_maker(dtype), draft, layer, 0, share, leader) for layer in range(draft.num_layers)]
    return sum(_total((*norms, *attention.listed)) for norms, attention in layers)


@cache
def draft_mlp_bytes(draft: Draft, dtype: DType, mlp_units: int, leader: bool) -> int:
    """Bytes of the MLP slots, with their norms, of all layers of the drafter."""
    return draft.num_layers * _total(
        mlp_slots(draft_maker(dtype), draft.hidden_size, draft.mlp, (0, mlp_units), leader).listed
    )


@cache
def draft_fixed_bytes(draft: Draft, dtype: DType) -> int:
    """Bytes that each device of the drafter's group has whole: rotary frequencies, fc, final norm, d2t."""
    return _total(draft_fixed(draft_maker(dtype), draft).listed)


def draft_embed_bytes(model: Model, draft: Draft, dtype: DType, rows: int) -> int:
    """Bytes of ``rows`` rows of the drafter's embedding table, or of the base's."""
    return _table_bytes(draft_table(draft_maker(dtype), model, draft, "embed.weight", (0, rows)))


def draft_lm_head_bytes(model: Model, draft: Draft, dtype: DType, rows: int) -> int:
    """Bytes of ``rows`` rows of the drafter's lm_head, or of the base's."""
    return _table_bytes(draft_table(draft_maker(dtype), model, draft, "head.weight", (0, rows)))


def weights_bytes(plan: Plan, device_id: str) -> tuple[int, int]:
    """Return the bytes of a device's slots, with their fillers: of the base, and of the drafter."""
    drafter = draft_slots(plan, device_id)
    return _total(base_slots(plan, device_id).listed), 0 if drafter is None else _total(drafter.listed)
