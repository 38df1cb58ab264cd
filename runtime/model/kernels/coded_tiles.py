"""Products of bfloat16 with weights in codes by AMX: 16 outputs and 32 columns, a block, a tile; up to 16 rows of x.

Codes become bfloat16 in memory (``tiles_of_codes``), for 16 outputs and CHUNK blocks at a time, and all rows of x are
multiplied with them. Codes of int8, and of int4 without zero points, are multiplied otherwise (``coded``), as one row
takes less time so.

    sum of a span      of number * x, of the blocks of one group, CHUNK blocks at most: in the order of ``tiles.dot``
    dot product        sum of a span * scale of its group, in float32, from the first span to the last

Neither order depends on the number of rows, so a row has the same bits among any others. Rows of x are packed as in
``multiply_tiles``, in blocks of ``width(rows)``, the last one filled with its last row.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from runtime.model.kernels.arguments import CodedProduct
from runtime.model.kernels.decoding import (
    BLOCK,
    in_blocks,
    scales_alone,
    write_factors,
)
from runtime.model.kernels.elements import (
    F32,
    I32,
    I64,
    chosen,
    elements,
    floats,
    function,
    integers,
    numbers,
    pointer,
    put,
    reserved,
)
from runtime.model.kernels.multiply_tiles import ELEMENT_BYTES, addresses, pack_block, padded, write_results
from runtime.model.kernels.subroutines import subroutine
from runtime.model.kernels.tiles import (
    STEP,
    TILE,
    TILE_BYTES,
    TILE_ROWS,
    configure,
    dot,
    load_tile,
    release_tiles,
    store_tile,
    turn_rows,
    zero_tiles,
)
from runtime.model.kernels.tiles_of_codes import widen

assert STEP == BLOCK
CHUNK = 16
"""Blocks of columns of which codes are widened at a time: as many as a vector has scales."""
PASS_BLOCKS = 8
"""Blocks of 16 rows that are multiplied with the same widened codes."""
WIDTHS = (1, 2, 4, 8, 16)
"""Rows of x that a tile may have."""
FLOATS = ir.VectorType(F32, 16)

load_codes, load_more_codes, load_x, load_more_x = (load_tile(tile) for tile in (4, 5, 6, 7))
dot_0, dot_1 = dot(0, 4, 6), dot(1, 5, 7)
store_0, store_1, zero_two = store_tile(0), store_tile(1), zero_tiles(2)
wide_codes, sums_of_chunk = reserved(CHUNK * TILE // 4), reserved(CHUNK * TILE // 4)
turned_scales, totals_of_rows = reserved(CHUNK * TILE_ROWS), reserved(PASS_BLOCKS * TILE // 4)
results_of_rows = reserved(TILE // 4)


# ---- rows of x ----


@subroutine(types.int64)
def width(rows: Any) -> Any:
    """Return the rows of x of a tile, of so many rows of x: one of WIDTHS."""
    if rows <= 2:
        return rows
    return 4 if rows <= 4 else 8 if rows <= 8 else TILE_ROWS


@subroutine(apart=True)
def pack(data: Any, a: Any, out: Any, first: Any, step: Any) -> None:
    """Pack blocks ``first``, ``first`` + ``step``, … of the rows of x of ``a``, a CodedProduct."""
    table, wide = addresses(), width(a.rows)
    for start in range(first * wide, a.rows, step * wide):
        for number in range(TILE_ROWS):
            numbers(table)[number] = a.x + a.x_stride * min(start + number, a.rows - 1)
        place = out + start * padded(a.inputs) * ELEMENT_BYTES
        if a.order:
            _pack_in_order(data, a, table, wide, place)
        else:
            pack_block(data, table, wide, a.inputs, place)


@subroutine(apart=True)
def _pack_in_order(data: Any, a: Any, table: Any, rows: Any, out: Any) -> None:
    """Pack a block of rows of x in the order of the columns of the weight; 0 where a column is none of x."""
    target, order = elements(data, out), integers(a.order)
    for row in range(rows):
        source = elements(data, numbers(table)[row])
        for column in range(padded(a.inputs)):
            place = column // 2 * 2 * rows + 2 * row + column % 2
            if column < a.inputs and order[column] >= 0:
                target[place] = source[order[column]]
            else:
                put(target, place, np.float32(0))


# ---- products ----


@subroutine(apart=True)
def multiply(data: Any, a: Any, x: Any, output: Any, last: Any, scales: Any) -> None:
    """Compute outputs ``output`` … ``last`` - 1 of ``a``, a CodedProduct; ``x``: its rows, packed.

    ``scales``: scratch for what ``write_factors`` writes of 16 outputs.
    """
    if last <= output:
        return
    height, wide = min(last - output, TILE_ROWS), width(a.rows)
    configure(height, wide)
    for start in range(output, last, TILE_ROWS):
        first = max(output, min(start, last - TILE_ROWS))
        for row in range(0, a.rows, PASS_BLOCKS * TILE_ROWS):
            rows = min(a.rows - row, PASS_BLOCKS * TILE_ROWS)
            some(data, a, x + row * padded(a.inputs) * ELEMENT_BYTES, row, rows, wide, first, height, scales)
    release_tiles()


@subroutine(types.int64)
def _span(a: Any) -> Any:
    """Return the blocks of a span."""
    blocks = (a.group + BLOCK - 1) // BLOCK
    if a.group >= a.inputs:
        return min(CHUNK, (a.inputs + BLOCK - 1) // BLOCK)
    if blocks <= CHUNK:
        return blocks
    span = np.int64(CHUNK)
    while blocks % span:
        span //= 2
    return span


@subroutine(apart=True)
def some(
    data: Any, a: Any, x: Any, row: Any, rows: Any, wide: Any, first: Any, height: Any, scales: Any
) -> None:  # fmt: skip
    """Compute up to 16 outputs from ``first`` on for some rows of x from ``row`` on."""
    blocks, span = (a.inputs + BLOCK - 1) // BLOCK, _span(a)
    of_group = (a.group + BLOCK - 1) // BLOCK
    chunk = CHUNK // span * span if span == of_group else span  # else one span, so that it has one zero point
    size, turned, table = 4 * scales_alone(a), turned_scales(), addresses()
    totals, sums, codes = totals_of_rows(), sums_of_chunk(), wide_codes()
    write_scales(a, first, height, scales)
    for number in range(TILE_ROWS):
        numbers(table)[number] = scales + size * min(number, height - 1)
    parts = (rows + wide - 1) // wide
    for i in range(parts * wide * TILE_ROWS):
        floats(totals)[i] = np.float32(0)
    for begin in range(0, blocks, chunk):
        count = min(chunk, blocks - begin)
        if begin == 0 or scales_alone(a) > 1:
            turn_rows(table, 4 * begin if scales_alone(a) > 1 else 0, turned, TILE_BYTES)
        widen(a, first, height, begin, count, span, codes)
        for part in range(parts):
            own = x + part * wide * padded(a.inputs) * ELEMENT_BYTES
            multiply_chunk(own + begin * TILE_ROWS * 4 * wide, 4 * wide, codes, sums, count, span)
            add_sums(wide, totals + part * 4 * wide * TILE_ROWS, sums, turned, (count + span - 1) // span, span)
    results = results_of_rows()
    for part in range(parts):
        turn_totals(wide, totals + part * 4 * wide * TILE_ROWS, results)
        write_results(
            data, a, results, min(wide, rows - part * wide), height, first, row + part * wide
        )  # fmt: skip


@subroutine()
def write_scales(a: Any, first: Any, height: Any, scales: Any) -> None:
    """Write the scales of some outputs, float32 [height, scales_alone(a)]; zero points are subtracted from codes."""
    plain = CodedProduct(
        x=a.x, x_stride=a.x_stride, code=a.code, codes=a.codes, codes_stride=a.codes_stride, scale=a.scale,
        scales=a.scales, scales_stride=a.scales_stride, zeros=0, zeros_stride=0, group=a.group,
        order=a.order, added=a.added, added_stride=a.added_stride, out=a.out, out_stride=a.out_stride, rows=a.rows,
        inputs=a.inputs, outputs=a.outputs, widened=a.widened, widened_stride=a.widened_stride,
        widened_per_thread=a.widened_per_thread, values=a.values, values_stride=a.values_stride, parts=a.parts,
    )  # fmt: skip
    write_factors(plain, first, height, scales, scales, scales + 4 * (TILE_ROWS * scales_alone(a) + TILE_ROWS))


@subroutine(apart=True)
def multiply_chunk(x: Any, line: Any, codes: Any, sums: Any, blocks: Any, span: Any) -> None:
    """Write the sums [16, rows] of the spans of ``blocks`` blocks; ``line``: bytes of a row of a tile of x."""
    tile, of_sums = TILE_ROWS * line, TILE_ROWS * line
    spans = (blocks + span - 1) // span
    for pair in range(0, spans, 2):
        begin, second = pair * span, (pair + 1) * span
        zero_two()
        for block in range(span):
            if begin + block < blocks:
                load_codes(codes + (begin + block) * TILE, TILE_BYTES)
                load_x(x + (begin + block) * tile, line)
                dot_0()
            if second + block < blocks:
                load_more_codes(codes + (second + block) * TILE, TILE_BYTES)
                load_more_x(x + (second + block) * tile, line)
                dot_1()
        store_0(sums + pair * of_sums, line)
        if second < blocks:
            store_1(sums + (pair + 1) * of_sums, line)


@subroutine()
def add_sums(wide: Any, totals: Any, sums: Any, scales: Any, spans: Any, span: Any) -> None:
    """Add the sums of spans, scaled, to totals, both [16, rows]; ``scales``: of blocks [blocks, 16]."""
    if wide == 1:
        add_1(totals, sums, scales, spans, span)
    elif wide == 2:
        add_2(totals, sums, scales, spans, span)
    elif wide == 4:
        add_4(totals, sums, scales, spans, span)
    elif wide == 8:
        add_8(totals, sums, scales, spans, span)
    else:
        add_16(totals, sums, scales, spans, span)


@subroutine()
def turn_totals(wide: Any, totals: Any, results: Any) -> None:
    """Write totals [16, rows] as results [rows, 16]."""
    if wide == 1:
        turn_1(totals, results)
    elif wide == 2:
        turn_2(totals, results)
    elif wide == 4:
        turn_4(totals, results)
    elif wide == 8:
        turn_8(totals, results)
    else:
        turn_16(totals, results)


def _vector(builder: ir.IRBuilder, start: Any, number: int) -> Any:
    return builder.load(pointer(builder, builder.add(start, I64(TILE_BYTES * number))), typ=FLOATS, align=4)


def scaled(rows: int) -> Any:
    """Return an intrinsic that adds sums of spans, scaled, to totals, float32 [16 outputs, ``rows``].

    Its arguments: addresses of the totals, of the sums [spans, 16, rows], and of the scales of blocks [blocks, 16];
    number of spans; blocks of a span.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def add(typing: Any, totals: Any, sums: Any, scales: Any, spans: Any, span: Any) -> Any:
        def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            totals, sums, scales, spans, span = args
            fma = function(builder, FLOATS, [FLOATS] * 3, "llvm.fma.v16f32")

            def body(number: Any, so_far: Sequence[Any]) -> list[Any]:
                place = builder.add(scales, builder.mul(builder.mul(number, span), I64(TILE_BYTES)))
                own = builder.add(sums, builder.mul(number, I64(TILE_BYTES * rows)))
                of_outputs = _vector(builder, place, 0)
                following = []
                for vector, total in enumerate(so_far):
                    if rows == TILE_ROWS:
                        address = pointer(builder, builder.add(place, I64(4 * vector)))
                        single = builder.load(address, typ=ir.VectorType(F32, 1), align=4)
                        scale = chosen(builder, single, [0] * 16)
                    else:
                        scale = chosen(builder, of_outputs, [(16 * vector + lane) // rows for lane in range(16)])
                    following.append(builder.call(fma, [_vector(builder, own, vector), scale, total]))
                return following

            loaded = [_vector(builder, totals, vector) for vector in range(rows)]
            for vector, result in enumerate(in_blocks(builder, I64(0), spans, 1, loaded, body)):
                place = pointer(builder, builder.add(totals, I64(TILE_BYTES * vector)))
                builder.store(result, place, align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), code

    return add


def turned(rows: int) -> Any:
    """Return an intrinsic that writes totals, float32 [16 outputs, ``rows``], as results [``rows``, 16]."""

    @intrinsic  # type: ignore[untyped-decorator]
    def turn(typing: Any, totals: Any, results: Any) -> Any:
        def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            vectors = [_vector(builder, args[0], number) for number in range(rows)]
            for number, vector in enumerate(_apart(builder, vectors)):
                place = pointer(builder, builder.add(args[1], I64(TILE_BYTES * number)))
                builder.store(vector, place, align=4)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), code

    return turn


def _apart(builder: ir.IRBuilder, vectors: list[Any]) -> list[Any]:
    """Return vectors of each n-th value of n vectors that lie one behind the other, n a power of two."""
    if len(vectors) == 1:
        return vectors
    halves = []
    for first in (0, 1):
        places = ir.Constant(ir.VectorType(I32, 16), [2 * lane + first for lane in range(16)])
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        halves.append(_apart(builder, [builder.shuffle_vector(*pair, places) for pair in pairs]))
    return [vector for both in zip(*halves, strict=True) for vector in both]


add_1, add_2, add_4, add_8, add_16 = (scaled(rows) for rows in WIDTHS)
turn_1, turn_2, turn_4, turn_8, turn_16 = (turned(rows) for rows in WIDTHS)
