"""Slots of a share of one block: of attention, an MLP, a table or a vector; in float or as codes.

Base and drafter make them alike; ``plans.slots`` says which of them each has. Letters as there.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from plans.dtypes import HEADER_NAMES
from plans.kv import KvShare
from plans.quantized import (
    SCALE_NAMES,
    code_bytes,
    groups,
    held_columns,
    share_format,
)
from plans.ranges import Range, Ranges, attention_ranges, length, scaled
from plans.rotary import Order, head_order
from plans.schema import (
    Attention,
    DType,
    Mlp,
    Rotary,
    WeightFormat,
)
from plans.slot_records import (
    AttentionSlots,
    MatrixSlots,
    MlpSlots,
    Piece,
    SlotSpec,
)

ORDER_DTYPE = "I32"
"""Slots of the order of columns, and no others, have this dtype."""
ROPE_DTYPE = "F32"
"""Rotary frequencies are in float32, whatever the plan's dtype."""

DRAFT_PREFIX = "draft."
"""Beginning of the names of the drafter's slots."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Maker:
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


def base_maker(dtype: DType, prefix: str = "") -> Maker:
    return Maker(prefix=prefix, source="base", dtype=HEADER_NAMES[dtype])


def draft_maker(dtype: DType, prefix: str = DRAFT_PREFIX) -> Maker:
    return Maker(prefix=prefix, source="draft", dtype=HEADER_NAMES[dtype])


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


def attention_slots(
    make: Maker,
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
        qkv=_each(make, rows, width, attention.formats, order)
        if attention.qkv_formats is not None
        else (
            matrix(
                make.stacked("qkv.weight", [(f"{name}.weight", span) for name, span in rows], width, order=order),
                attention.qkv_format,
            ),
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


def _head_norm(make: Maker, attention: Attention, name: str, rows: Ranges, order: Order | None) -> SlotSpec:
    """Return the weights of the norm of a head, or of a share of all ``rows`` of the heads that are normed together."""
    span = rows if attention.qk_norm_whole else ((0, attention.head_dim),)
    return make.stacked(name, [(name, span)], None, order=order)


def mlp_slots(make: Maker, hidden: int, mlp: Mlp, units: Range, leader: bool, normed: bool = True) -> MlpSlots:
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
            gate_up=(matrix(gate_up, mlp.gate_up_format),) if channels else (),
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
        gate_up=_gate_up(make, hidden, mlp, span) if channels else (),
        gate_up_bias=biases if channels and mlp.bias else None,
        down=matrix(make.stacked("down.weight", [("down.weight", whole)], channels, span), mlp.down_format)
        if channels
        else None,
        down_bias=make.vector("down.bias", hidden) if mlp.bias and leader else None,
    )


def _gate_up(make: Maker, hidden: int, mlp: Mlp, span: Ranges) -> tuple[MatrixSlots, ...]:
    """Return the slots of some channels of gate and up of an MLP without experts."""
    rows = [("gate", span), ("up", span)]
    if mlp.gate_up_formats is None:
        stacked = make.stacked("gate_up.weight", [(f"{name}.weight", span) for name, span in rows], hidden)
        return (matrix(stacked, mlp.gate_up_format),)
    return _each(make, rows, hidden, mlp.formats)


def _each(
    make: Maker,
    rows: Iterable[tuple[str, Ranges]],
    width: int,
    formats: Mapping[str, WeightFormat | None],
    order: Order | None = None,
) -> tuple[MatrixSlots, ...]:
    """Return slots of rows of matrices that are multiplied with one input and have formats of their own."""
    return tuple(
        matrix(make.stacked(f"{name}.weight", [(f"{name}.weight", span)], width, order=order), formats[name])
        for name, span in rows
    )


def _with_shared(slots: MlpSlots, make: Maker, hidden: int, mlp: Mlp, units: Range) -> MlpSlots:
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
