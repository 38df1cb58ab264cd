"""The slot table: name, dtype and shape of every tensor in a device's image, and the piece of the model that it holds.

The one place from which images are laid out (``planner.images.layout`` adds offsets and names of the checkpoint's
tensors), weights are counted (the functions ``*_bytes`` here, and ``plans.weights``) and blocks are bound to an image
(``runtime.model.blocks``). The records are in ``plans.slot_records``; they list the slots of a block in the order of
the file.

Letters: H hidden size, D head dim, k KV heads and h query heads of the device, d the dims of each head that it has (D,
or a part by ``head_dim``), w its columns of o, m its MLP channels, E experts, V' its rows of a vocabulary table.
"""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

from plans.artifact import align
from plans.dtypes import HEADER_NAMES
from plans.kv import KvShare, first_head, kv_share
from plans.quantized import (
    SCALE_NAMES,
    code_bytes,
    draft_embed_format,
    draft_head_format,
    groups,
    held_columns,
    share_format,
)
from plans.ranges import Range, Ranges, attention_ranges, length, scaled, share_range
from plans.rotary import Order, head_order, table_of, tables
from plans.schema import (
    Attention,
    Draft,
    DraftPlacement,
    DType,
    LayerClass,
    Mlp,
    Model,
    Plan,
    Rotary,
    Stage,
    VocabSplit,
    WeightFormat,
)
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

ORDER_DTYPE = "I32"
"""Slots of the order of columns, and no others, have this dtype."""
ROPE_DTYPE = "F32"
"""Rotary frequencies are in float32, whatever the plan's dtype."""

DRAFT_PREFIX = "draft."
"""Beginning of the names of the drafter's slots."""
TOKEN_MAP = f"{DRAFT_PREFIX}d2t"
"""Name of the slot of the drafter's tokens as tokens of the base: target id = draft id + d2t[draft id]."""


# ---- slots of a share ----


@dataclass(frozen=True, kw_only=True, slots=True)
class _Maker:
    """Makes slots whose names, and whose tensors' roles, begin alike."""

    prefix: str
    source: Literal["base", "draft"]
    dtype: str

    def stacked(
        self,
        name: str,
        roles: Iterable[tuple[str, Ranges]],
        width: int | None,
        cols: Ranges | None = None,
        order: Order | None = None,
    ) -> SlotSpec:
        """Return the slot of stacked rows of several tensors; ``width``: of a row, None for a vector.

        ``order``: of the rows of each head of q and k.
        """
        pieces = tuple(
            Piece(prefix=self.prefix, role=role, rows=rows, cols=cols, order=None if role.startswith("v.") else order)
            for role, rows in roles
        )
        rows = sum(length(piece.rows) for piece in pieces)
        shape = (rows,) if width is None else (rows, width)
        return SlotSpec(name=self.prefix + name, dtype=self.dtype, shape=shape, source=self.source, pieces=pieces)

    def vector(self, name: str, size: int, order: Order | None = None) -> SlotSpec:
        """Return the slot of a whole vector; ``order``: of its values for each head."""
        return self.stacked(name, [(name, ((0, size),))], None, order=order)

    def matrix(self, name: str, rows: int, width: int) -> SlotSpec:
        """Return the slot of a whole matrix."""
        return self.stacked(name, [(name, ((0, rows),))], width)

    def table(self, name: str, rows: Range, width: int, form: WeightFormat | None) -> MatrixSlots | None:
        """Return the slots of rows of a vocabulary table; None of no rows."""
        return matrix(self.stacked(name, [(name, (rows,))], width), form) if rows[1] > rows[0] else None

    def rope(self, head_dim: int, rotary: Rotary | None, number: int = 0) -> SlotSpec:
        """Return the slot of a rotary table: frequencies [D/2], scaling already evaluated, or with factors [2, D/2]."""
        of_table = f"{number}." if number else ""
        return SlotSpec(
            name=f"{self.prefix}rope.{of_table}inv_freq",
            dtype=ROPE_DTYPE,
            shape=(2, head_dim // 2) if rotary is not None and rotary.scaled else (head_dim // 2,),
            source=self.source,
            pieces=(),
        )

    def experts(
        self, name: str, roles: Iterable[tuple[str, Ranges]], shape: tuple[int, ...], cols: Ranges | None = None
    ) -> SlotSpec:
        """Return the slot of the same pieces of every expert."""
        pieces = tuple(Piece(prefix=self.prefix, role=role, rows=rows, cols=cols) for role, rows in roles)
        return SlotSpec(
            name=self.prefix + name,
            dtype=self.dtype,
            shape=shape,
            source=self.source,
            pieces=pieces,
            experts=shape[0],
        )


def _base(dtype: DType, prefix: str = "") -> _Maker:
    return _Maker(prefix=prefix, source="base", dtype=HEADER_NAMES[dtype])


def _draft(dtype: DType, prefix: str = DRAFT_PREFIX) -> _Maker:
    return _Maker(prefix=prefix, source="draft", dtype=HEADER_NAMES[dtype])


def matrix(values: SlotSpec, form: WeightFormat | None, whole: int | None = None) -> MatrixSlots:
    """Return the slots of a matrix, or of one of each expert, from the slot that its values would have.

    ``whole``: columns of all devices; None: as many as here.
    """
    *rows, columns = values.shape
    if form is None:
        return MatrixSlots(weight=values, held_columns=columns, inputs=columns)
    whole = whole or columns
    own, held = share_format(form, columns, whole), held_columns(form, columns, whole)

    def part(kind: str, dtype: str, width: Callable[[int], int]) -> SlotSpec:
        pieces = tuple(
            dataclasses.replace(
                piece,
                role=piece.role.removesuffix("weight") + kind,
                cols=None
                if piece.cols is None or form.ordered or (kind != "weight" and form.group is None)
                else tuple((width(start), width(stop)) for start, stop in piece.cols),
                share=piece.cols if form.ordered else None,
            )
            for piece in values.pieces
        )
        name, shape = values.name.removesuffix("weight") + kind, (*rows, width(held))
        return dataclasses.replace(values, name=name, dtype=dtype, shape=shape, pieces=pieces)

    of_groups = partial(groups, own)
    return MatrixSlots(
        weight=part("weight", "U8", partial(code_bytes, own)),
        held_columns=held,
        inputs=columns,
        form=own,
        scales=part("scales", SCALE_NAMES[form.scale], of_groups),
        zeros=part("zeros", "U8", of_groups) if form.zeros else None,
        order=_order(values, held) if form.ordered else None,
    )


def _order(values: SlotSpec, columns: int) -> SlotSpec:
    """Return the slot of the order of columns, which all rows of a matrix have alike."""
    first = values.pieces[0]
    role = first.role.removesuffix("weight") + "order"
    piece = dataclasses.replace(first, role=role, rows=((0, columns),), cols=None, share=first.cols)
    name, shape = values.name.removesuffix("weight") + "order", (*values.shape[:-2], columns)
    return dataclasses.replace(values, name=name, dtype=ORDER_DTYPE, shape=shape, pieces=(piece,))


def _attention(
    make: _Maker,
    hidden: int,
    width: int,
    attention: Attention,
    first: int,
    share: KvShare,
    leader: bool,
    rotary: Rotary | None,
) -> AttentionSlots:
    """Return the slots of a share of the KV heads from ``first``; ``width``: of what q, k and v are computed from."""
    ranges = attention_ranges(attention, first, share)
    order = head_order(rotary, attention.head_dim)
    rows = (("q", ranges.q), ("k", ranges.k), ("v", ranges.v))
    bias, normed = attention.qkv_bias, attention.qk_norm
    return AttentionSlots(
        qkv=matrix(
            make.stacked("qkv.weight", [(f"{name}.weight", span) for name, span in rows], width, order=order),
            attention.qkv_format,
        ),
        qkv_bias=make.stacked("qkv.bias", [(f"{name}.bias", span) for name, span in rows], None, order=order)
        if bias
        else None,
        q_norm=_head_norm(make, attention, "q_norm.weight", ranges.q, order) if normed else None,
        k_norm=_head_norm(make, attention, "k_norm.weight", ranges.k, order) if normed else None,
        sinks=make.stacked("sinks", [("sinks", ranges.heads)], None) if attention.sinks else None,
        o=matrix(
            make.stacked("o.weight", [("o.weight", ((0, hidden),))], length(ranges.o), ranges.o),
            attention.o_format,
            attention.num_heads * attention.head_dim,
        ),
        o_bias=make.vector("o.bias", hidden) if attention.o_bias and leader else None,
    )


def _head_norm(make: _Maker, attention: Attention, name: str, rows: Ranges, order: Order | None) -> SlotSpec:
    """Return the weights of the norm of a head, or of a share of all ``rows`` of the heads that are normed together."""
    span = rows if attention.qk_norm_whole else ((0, attention.head_dim),)
    return make.stacked(name, [(name, span)], None, order=order)


def _mlp(make: _Maker, hidden: int, mlp: Mlp, units: Range, leader: bool, normed: bool = True) -> MlpSlots:
    """Return the slots of a range of MLP units; ``normed``: its input is."""
    start, stop = scaled(units, mlp.unit)
    span, channels, whole = ((start, stop),), stop - start, ((0, hidden),)
    rows = [("gate.weight", span), ("up.weight", span)]
    norm = make.vector("mlp_norm.weight", hidden) if normed else None
    of_channels = [("gate.bias", span), ("up.bias", span)]
    if mlp.kind == "moe":
        count, router = mlp.num_experts, mlp.router
        gate_up = make.experts("gate_up.weight", rows, (count, 2 * channels, hidden))
        gate_up_bias = make.experts("gate_up.bias", of_channels, (count, 2 * channels))
        down = make.experts("down.weight", [("down.weight", whole)], (count, hidden, channels), span)
        down_bias = make.experts("down.bias", [("down.bias", whole)], (count, hidden))
        wide = dataclasses.replace(make, dtype=HEADER_NAMES["float32"])
        routing = wide if router is not None and router.float32 else make
        alone = MlpSlots(
            norm=norm,
            router=routing.matrix("router.weight", count, hidden),
            router_bias=routing.vector("router.bias", count) if router and router.bias else None,
            correction=wide.vector("router.correction", count) if router and router.correction else None,
            gate_up=matrix(gate_up, mlp.gate_up_format) if channels else None,
            gate_up_bias=gate_up_bias if channels and mlp.bias else None,
            down=matrix(down, mlp.down_format) if channels else None,
            down_bias=down_bias if mlp.bias and leader else None,
        )
        return alone if mlp.shared_size is None else _with_shared(alone, make, hidden, mlp, units)
    biases = make.stacked("gate_up.bias", of_channels, None)
    return MlpSlots(
        norm=norm,
        router=None,
        router_bias=None,
        correction=None,
        gate_up=matrix(make.stacked("gate_up.weight", rows, hidden), mlp.gate_up_format) if channels else None,
        gate_up_bias=biases if channels and mlp.bias else None,
        down=matrix(make.stacked("down.weight", [("down.weight", whole)], channels, span), mlp.down_format)
        if channels
        else None,
        down_bias=make.vector("down.bias", hidden) if mlp.bias and leader else None,
    )


def _with_shared(slots: MlpSlots, make: _Maker, hidden: int, mlp: Mlp, units: Range) -> MlpSlots:
    """Return the slots of experts with those of a range of units of the shared one."""
    start, stop = scaled(units, mlp.shared_unit)
    span, channels, whole = ((start, stop),), stop - start, ((0, hidden),)
    rows = [("shared.gate.weight", span), ("shared.up.weight", span)]
    down = make.stacked("shared.down.weight", [("shared.down.weight", whole)], channels, span)
    return dataclasses.replace(
        slots,
        shared_gate=make.matrix("shared_gate.weight", 1, hidden) if mlp.shared_gate else None,
        shared_gate_up=matrix(make.stacked("shared.gate_up.weight", rows, hidden), mlp.gate_up_format)
        if channels
        else None,
        shared_down=matrix(down, mlp.down_format) if channels else None,
    )


def _base_attention(
    make: _Maker,
    model: Model,
    attention: Attention,
    first: int,
    share: KvShare,
    leader: bool,
    rotary: Rotary | None = None,
) -> tuple[tuple[SlotSpec, ...], AttentionSlots]:
    hidden = model.hidden_size
    norms = () if model.norms == "after" else (make.vector("attention_norm.weight", hidden),)
    return norms, _attention(make, hidden, hidden, attention, first, share, leader, rotary)


def _base_mlp(make: _Maker, model: Model, mlp: Mlp, units: Range, leader: bool) -> MlpSlots:
    return _mlp(make, model.hidden_size, mlp, units, leader, normed=model.norms != "after")


def _output_norm(make: _Maker, model: Model, name: str) -> SlotSpec | None:
    return make.vector(name, model.hidden_size) if model.norms is not None else None


def _draft_attention(
    make: _Maker, draft: Draft, layer: int, first: int, share: KvShare, leader: bool
) -> tuple[tuple[SlotSpec, ...], AttentionSlots]:
    hidden, width = draft.hidden_size, draft.attention_width(layer)
    # the first layer of eagle3 attends over (embedding, hidden); that of eagle has no norm before it
    first_names = ("input_norm", "hidden_norm") if draft.kind == "eagle3" else ()
    names = ("attention_norm",) if layer else first_names
    norms = tuple(make.vector(f"{name}.weight", hidden) for name in names)
    return norms, _attention(make, hidden, width, draft.attention, first, share, leader, draft.rotary)


def layer_slots(
    model: Model, layer: int, first: int, share: KvShare, units: Range, leader: bool, dtype: DType
) -> LayerSlots:
    """Return the slots of a layer of the base: KV heads from ``first``, and a range of MLP units."""
    make, kind = _base(dtype, f"layers.{layer}."), layer_class(model, layer)
    rotary = tables(model)[table_of(model, layer)]
    norms, attention = _base_attention(make, model, kind.attention, first, share, leader, rotary)
    return LayerSlots(
        norms=norms,
        attention=attention,
        mlp=_base_mlp(make, model, kind.mlp, units, leader),
        attention_output_norm=_output_norm(make, model, "attention_output_norm.weight"),
        mlp_output_norm=_output_norm(make, model, "mlp_output_norm.weight"),
    )


def rope_slots(model: Model) -> tuple[SlotSpec, ...]:
    """Return the slots of the rotary tables of the base."""
    head_dim = model.layers[0].attention.head_dim
    return tuple(_base("float32").rope(head_dim, rotary, number) for number, rotary in enumerate(tables(model)))


def draft_rope_slot(draft: Draft) -> SlotSpec:
    """Return the slot of the rotary table of the drafter."""
    return _draft("float32").rope(draft.attention.head_dim, draft.rotary)


def embed_slots(model: Model, rows: Range, dtype: DType) -> MatrixSlots | None:
    """Return the slots of rows of the embedding table; None of no rows."""
    return _base(dtype).table("embed.weight", rows, model.hidden_size, model.embed_format)


def final_norm_slot(model: Model, dtype: DType) -> SlotSpec:
    """Return the slot of the final norm, which each device of the lm_head has."""
    return _base(dtype).vector("norm.weight", model.hidden_size)


def lm_head_table(model: Model, rows: Range, dtype: DType) -> MatrixSlots | None:
    """Return the slots of rows of the lm_head that are not the embedding's; None of no rows."""
    return _base(dtype).table("head.weight", rows, model.hidden_size, model.head_format)


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
    make, hidden = _draft(dtype), draft.hidden_size
    first, share = first_head(placement, placement.kv_heads, member), kv_share(placement, placement.kv_heads, member)
    units, leader, layers = share_range(placement.mlp_units, member), member == 0, []
    for layer in range(draft.num_layers):
        of_layer = _draft(dtype, f"{DRAFT_PREFIX}layers.{layer}.")
        norms, attention = _draft_attention(of_layer, draft, layer, first, share, leader)
        mlp = _mlp(of_layer, hidden, draft.mlp, units, leader)
        layers.append(
            LayerSlots(norms=norms, attention=attention, mlp=mlp, attention_output_norm=None, mlp_output_norm=None)
        )

    def table(name: str, shares: tuple[int, ...] | None) -> TableRows | None:
        return None if shares is None else _whole(_draft_table(make, model, draft, name, share_range(shares, member)))

    return dataclasses.replace(
        _draft_fixed(make, draft),
        embed=table("embed.weight", placement.embed_rows),
        layers=tuple(layers),
        head=table("head.weight", placement.head_rows),
    )


def _draft_fixed(make: _Maker, draft: Draft) -> DraftSlots:
    """Return the slots that every device of the drafter's group has whole."""
    hidden, eagle3 = draft.hidden_size, draft.kind == "eagle3"
    numbers = _Maker(prefix=make.prefix, source="draft", dtype="I64")
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


def _fc_norm(make: _Maker, draft: Draft) -> SlotSpec | None:
    """Return the slot of the norms before ``fc``, those of the aux layers one behind the other."""
    if draft.fc_norm is None:
        return None
    if draft.fc_norm == "joint":
        return make.vector("fc_norm.weight", draft.fc_width)
    whole = ((0, draft.target_hidden_size),)
    return make.stacked("fc_norm.weight", [(f"fc_norm.{i}.weight", whole) for i in range(len(draft.aux_layers))], None)


def _draft_table(make: _Maker, model: Model, draft: Draft, name: str, rows: Range) -> MatrixSlots | None:
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


# ---- slots of a device ----


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


# ---- bytes, with the filler behind each slot ----


def _total(slots: Iterable[SlotSpec | None]) -> int:
    return sum(align(slot.nbytes) for slot in slots if slot is not None)


def _table_bytes(table: MatrixSlots | None) -> int:
    return 0 if table is None else _total(table.listed)


@cache
def attention_bytes(model: Model, dtype: DType, layer_class: LayerClass, share: KvShare, leader: bool) -> int:
    """Bytes of the attention slots, with their norms, of one layer on a device with a share of its KV."""
    make = _base(dtype)
    norms, attention = _base_attention(make, model, layer_class.attention, 0, share, leader)
    return _total((*norms, *attention.listed, _output_norm(make, model, "norm.weight")))


@cache
def mlp_bytes(model: Model, dtype: DType, layer_class: LayerClass, mlp_units: int, leader: bool) -> int:
    """Bytes of the MLP slots, with their norms, of one layer on a device with ``mlp_units`` units."""
    make = _base(dtype)
    mlp = _base_mlp(make, model, layer_class.mlp, (0, mlp_units), leader)
    return _total((*mlp.listed, _output_norm(make, model, "norm.weight")))


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
    layers = [_draft_attention(_draft(dtype), draft, layer, 0, share, leader) for layer in range(draft.num_layers)]
    return sum(_total((*norms, *attention.listed)) for norms, attention in layers)


@cache
def draft_mlp_bytes(draft: Draft, dtype: DType, mlp_units: int, leader: bool) -> int:
    """Bytes of the MLP slots, with their norms, of all layers of the drafter."""
    return draft.num_layers * _total(_mlp(_draft(dtype), draft.hidden_size, draft.mlp, (0, mlp_units), leader).listed)


@cache
def draft_fixed_bytes(draft: Draft, dtype: DType) -> int:
    """Bytes that each device of the drafter's group has whole: rotary frequencies, fc, final norm, d2t."""
    return _total(_draft_fixed(_draft(dtype), draft).listed)


def draft_embed_bytes(model: Model, draft: Draft, dtype: DType, rows: int) -> int:
    """Bytes of ``rows`` rows of the drafter's embedding table, or of the base's."""
    return _table_bytes(_draft_table(_draft(dtype), model, draft, "embed.weight", (0, rows)))


def draft_lm_head_bytes(model: Model, draft: Draft, dtype: DType, rows: int) -> int:
    """Bytes of ``rows`` rows of the drafter's lm_head, or of the base's."""
    return _table_bytes(_draft_table(_draft(dtype), model, draft, "head.weight", (0, rows)))


def weights_bytes(plan: Plan, device_id: str) -> tuple[int, int]:
    """Return the bytes of a device's slots, with their fillers: of the base, and of the drafter."""
    drafter = draft_slots(plan, device_id)
    return _total(base_slots(plan, device_id).listed), 0 if drafter is None else _total(drafter.listed)
