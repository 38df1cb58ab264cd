"""The slot table: name, dtype and shape of every tensor in a device's image, and the piece of the model that it holds.

The one place from which images are laid out (``planner.images.layout`` adds offsets and names of the checkpoint's
tensors), weights are counted (``plans.slot_bytes``, and ``plans.weights``) and blocks are bound to an image
(``runtime.model.blocks``). The records are in ``plans.slot_records``; they list the slots of a block in the order of
the file. ``plans.share_slots`` makes the slots of a share of a block; here is which of them base and drafter have.

Letters: H hidden size, D head dim, k KV heads and h query heads of the device, d the dims of each head that it has (D,
or a part by ``head_dim``), w its columns of o, m its MLP channels, E experts, V' its rows of a vocabulary table.
"""

import dataclasses

from plans.kv import KvShare, first_head, kv_share
from plans.quantized import draft_embed_format, draft_head_format
from plans.ranges import Range, share_range
from plans.rotary import table_of, tables
from plans.schema import (
    Attention,
    Draft,
    DraftPlacement,
    DType,
    Mlp,
    Model,
    Plan,
    Rotary,
    Stage,
    VocabSplit,
)
from plans.share_slots import DRAFT_PREFIX, Maker, attention_slots, base_maker, draft_maker, matrix, mlp_slots
from plans.slot_records import (
    AttentionSlots,
    BaseSlots,
    DraftSlots,
    LayerSlots,
    LmHeadSlots,
    MatrixSlots,
    MlpSlots,
    Piece,
    SlotSpec,
    StageSlots,
    TableRows,
)
from plans.step import layer_class

TOKEN_MAP = f"{DRAFT_PREFIX}d2t"
"""Name of the slot of the drafter's tokens as tokens of the base: target id = draft id + d2t[draft id]."""


def base_attention(
    make: Maker,
    model: Model,
    attention: Attention,
    first: int,
    share: KvShare,
    leader: bool,
    rotary: Rotary | None = None,
) -> tuple[tuple[SlotSpec, ...], AttentionSlots]:
    hidden = model.hidden_size
    norms = () if model.norms == "after" else (make.vector("attention_norm.weight", hidden),)
    return norms, attention_slots(make, hidden, hidden, attention, first, share, leader, rotary)


def base_mlp(make: Maker, model: Model, mlp: Mlp, units: Range, leader: bool) -> MlpSlots:
    return mlp_slots(make, model.hidden_size, mlp, units, leader, normed=model.norms != "after")


def output_norm(make: Maker, model: Model, name: str) -> SlotSpec | None:
    return make.vector(name, model.hidden_size) if model.norms is not None else None


def draft_attention(
    make: Maker, draft: Draft, layer: int, first: int, share: KvShare, leader: bool
) -> tuple[tuple[SlotSpec, ...], AttentionSlots]:
    hidden, width = draft.hidden_size, draft.attention_width(layer)
    # the first layer of eagle3 attends over (embedding, hidden); that of eagle has no norm before it
    first_names = ("input_norm", "hidden_norm") if draft.kind == "eagle3" else ()
    names = ("attention_norm",) if layer else first_names
    norms = tuple(make.vector(f"{name}.weight", hidden) for name in names)
    return norms, attention_slots(make, hidden, width, draft.attention, first, share, leader, draft.rotary)


def layer_slots(
    model: Model, layer: int, first: int, share: KvShare, units: Range, leader: bool, dtype: DType
) -> LayerSlots:
    """Return the slots of a layer of the base: KV heads from ``first``, and a range of MLP units."""
    make, kind = base_maker(dtype, f"layers.{layer}."), layer_class(model, layer)
    rotary = tables(model)[table_of(model, layer)]
    norms, attention = base_attention(make, model, kind.attention, first, share, leader, rotary)
    return LayerSlots(
        norms=norms,
        attention=attention,
        mlp=base_mlp(make, model, kind.mlp, units, leader),
        attention_output_norm=output_norm(make, model, "attention_output_norm.weight"),
        mlp_output_norm=output_norm(make, model, "mlp_output_norm.weight"),
    )


def rope_slots(model: Model) -> tuple[SlotSpec, ...]:
    """Return the slots of the rotary tables of the base."""
    head_dim = model.layers[0].attention.head_dim
    return tuple(base_maker("float32").rope(head_dim, rotary, number) for number, rotary in enumerate(tables(model)))


def draft_rope_slot(draft: Draft) -> SlotSpec:
    """Return the slot of the rotary table of the drafter."""
    return draft_maker("float32").rope(draft.attention.head_dim, draft.rotary)


def embed_slots(model: Model, rows: Range, dtype: DType) -> MatrixSlots | None:
    """Return the slots of rows of the embedding table; None of no rows."""
    return base_maker(dtype).table("embed.weight", rows, model.hidden_size, model.embed_format)


def final_norm_slot(model: Model, dtype: DType) -> SlotSpec:
    """Return the slot of the final norm, which each device of the lm_head has."""
    return base_maker(dtype).vector("norm.weight", model.hidden_size)


def lm_head_table(model: Model, rows: Range, dtype: DType) -> MatrixSlots | None:
    """Return the slots of rows of the lm_head that are not the embedding's; None of no rows."""
    return base_maker(dtype).table("head.weight", rows, model.hidden_size, model.head_format)


def vocabulary_rows(plan: Plan, device_id: str) -> tuple[TableRows | None, TableRows | None]:
    """Return a device's rows of the embedding and of the lm_head, each None where it has none.

    Of a tied model both are in the same slots where one of them has all rows of the other.
    """
    model, dtype = plan.model, plan.options.dtype
    rows, of_head = _rows(plan.embed, device_id), _rows(plan.head, device_id)
    embed, head = _whole(embed_slots(model, rows, dtype)), _whole(lm_head_table(model, of_head, dtype))
    if not model.tied_head or embed is None or head is None:
        return embed, head
    if of_head[0] <= rows[0] and rows[1] <= of_head[1]:
        both = embed_slots(model, of_head, dtype)
        assert both is not None
        embed = TableRows(matrix=both, start=rows[0] - of_head[0], stop=rows[1] - of_head[0])
    return embed, _lent(head, embed)


def _whole(matrix: MatrixSlots | None) -> TableRows | None:
    """Return all rows of a matrix."""
    return None if matrix is None else TableRows(matrix=matrix, start=0, stop=matrix.weight.shape[0])


def _lent(table: TableRows | None, *others: TableRows | None) -> TableRows | None:
    """Return the rows of a table as rows of one of the others of its tensor, where one has them all."""
    if table is None:
        return None
    start, stop = _first_row(table) + table.start, _first_row(table) + table.stop
    for other in others:
        if other is not None and _first_row(other) <= start and stop <= _first_row(other) + _rows_of(other):
            first = _first_row(other)
            return TableRows(matrix=other.matrix, start=start - first, stop=stop - first, lent=True)
    return table


def _first_row(table: TableRows) -> int:
    """Return the row of the tensor that is the first in the matrix."""
    (piece,) = table.matrix.weight.pieces
    return piece.rows[0][0]


def _rows_of(table: TableRows) -> int:
    """Return the rows of the whole matrix."""
    return table.matrix.weight.shape[0]


def stage_slots(model: Model, stage: Stage, member: int, dtype: DType) -> StageSlots:
    """Return the slots of one member of a stage."""
    layers: list[LayerSlots] = []
    for run in stage.runs:
        first, share = first_head(stage, run.kv_heads, member), kv_share(stage, run.kv_heads, member)
        units = share_range(run.mlp_units, member)
        for _ in range(run.num_layers):
            layer = stage.first_layer + len(layers)
            layers.append(layer_slots(model, layer, first, share, units, member == 0, dtype))
    return StageSlots(ropes=rope_slots(model), layers=tuple(layers))


def drafter_slots(model: Model, draft: Draft, placement: DraftPlacement, member: int, dtype: DType) -> DraftSlots:
    """Return the slots of one member of the drafter's group; ``model``: the base, whose tables it may have rows of."""
    make, hidden = draft_maker(dtype), draft.hidden_size
    first, share = first_head(placement, placement.kv_heads, member), kv_share(placement, placement.kv_heads, member)
    units, leader, layers = share_range(placement.mlp_units, member), member == 0, []
    for layer in range(draft.num_layers):
        of_layer = draft_maker(dtype, f"{DRAFT_PREFIX}layers.{layer}.")
        norms, attention = draft_attention(of_layer, draft, layer, first, share, leader)
        mlp = mlp_slots(of_layer, hidden, draft.mlp, units, leader)
        layers.append(
            LayerSlots(norms=norms, attention=attention, mlp=mlp, attention_output_norm=None, mlp_output_norm=None)
        )

    def table(name: str, shares: tuple[int, ...] | None) -> TableRows | None:
        return None if shares is None else _whole(draft_table(make, model, draft, name, share_range(shares, member)))

    return dataclasses.replace(
        draft_fixed(make, draft),
        embed=table("embed.weight", placement.embed_rows),
        layers=tuple(layers),
        head=table("head.weight", placement.head_rows),
    )


def draft_fixed(make: Maker, draft: Draft) -> DraftSlots:
    """Return the slots that every device of the drafter's group has whole."""
    hidden, eagle3 = draft.hidden_size, draft.kind == "eagle3"
    numbers = Maker(prefix=make.prefix, source="draft", dtype="I64")
    return DraftSlots(
        rope=draft_rope_slot(draft),
        embed=None,
        fc_norm=_fc_norm(make, draft),
        mask_hidden=make.vector("mask_hidden", draft.fc_width) if draft.mask_token_id is not None else None,
        fc=make.matrix("fc.weight", hidden, draft.fc_width) if draft.fc_width else None,
        fc_bias=make.vector("fc.bias", hidden) if draft.fc_bias else None,
        layers=(),
        norm=make.vector("norm.weight", hidden) if eagle3 else None,
        head=None,
        d2t=numbers.vector("d2t", draft.draft_vocab_size) if draft.maps_vocabulary else None,
    )


def _fc_norm(make: Maker, draft: Draft) -> SlotSpec | None:
    """Return the slot of the norms before ``fc``, those of the aux layers one behind the other."""
    if draft.fc_norm is None:
        return None
    if draft.fc_norm == "joint":
        return make.vector("fc_norm.weight", draft.fc_width)
    whole = ((0, draft.target_hidden_size),)
    return make.stacked("fc_norm.weight", [(f"fc_norm.{i}.weight", whole) for i in range(len(draft.aux_layers))], None)


def draft_table(make: Maker, model: Model, draft: Draft, name: str, rows: Range) -> MatrixSlots | None:
    """Return the slots of rows of the drafter's embedding or lm_head, which may be the base's tensor."""
    if rows[1] == rows[0]:
        return None
    own = draft.own_embedding if name == "embed.weight" else draft.own_head
    form = draft_embed_format(model, draft) if name == "embed.weight" else draft_head_format(model, draft)
    piece = Piece(prefix="draft." if own else "", role=name, rows=(rows,), cols=None)
    values = SlotSpec(
        name=make.prefix + name,
        dtype=make.dtype,
        shape=(rows[1] - rows[0], draft.hidden_size),
        source="draft" if own else "base",
        pieces=(piece,),
    )
    return matrix(values, form)


def base_slots(plan: Plan, device_id: str) -> BaseSlots:
    """Return a device's slots of the base model."""
    model, dtype = plan.model, plan.options.dtype
    stage = next((stage for stage in plan.stages if device_id in stage.devices), None)
    return BaseSlots(
        embed=vocabulary_rows(plan, device_id)[0],
        stage=None if stage is None else stage_slots(model, stage, stage.devices.index(device_id), dtype),
        head=lm_head_slots(plan, device_id) if device_id in plan.head.devices else None,
    )


def lm_head_slots(plan: Plan, device_id: str) -> LmHeadSlots:
    """Return the slots of a device of the lm_head."""
    _, rows = vocabulary_rows(plan, device_id)
    return LmHeadSlots(norm=final_norm_slot(plan.model, plan.options.dtype), rows=rows)


def draft_slots(plan: Plan, device_id: str) -> DraftSlots | None:
    """Return a device's slots of the drafter; None where it has no share of it.

    Rows of a tensor of the base have no slot of their own where one of the base's on this device has them all.
    """
    draft, placement = plan.draft, plan.draft_placement
    if draft is None or placement is None or device_id not in placement.devices:
        return None
    own = drafter_slots(plan.model, draft, placement, placement.devices.index(device_id), plan.options.dtype)
    embed, head = vocabulary_rows(plan, device_id)
    tied = plan.model.tied_head
    return dataclasses.replace(
        own,
        embed=own.embed if draft.own_embedding else _lent(own.embed, embed, head if tied else None),
        head=own.head if draft.own_head else _lent(own.head, head, embed if tied else None),
    )


def device_slots(plan: Plan, device_id: str) -> tuple[SlotSpec, ...]:
    """Return all slots of a device's image in the order of the file, fillers not counted."""
    drafter = draft_slots(plan, device_id)
    return (*base_slots(plan, device_id).listed, *(() if drafter is None else drafter.listed))


def _rows(split: VocabSplit, device_id: str) -> Range:
    """Return the rows of a table that a device has; (0, 0) where it is not in the table's group."""
    return share_range(split.rows, split.devices.index(device_id)) if device_id in split.devices else (0, 0)
