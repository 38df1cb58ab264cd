"""Products of int8 weights by AMX, for more rows of x than vectors multiply as fast as memory is read.

The sums are those of ``int8``, so a result has the same bits. Codes are read as they lie, 16 outputs and 64 columns a
tile. Rows of x are packed in blocks of four, the last one smaller: 16 sums of each output are a tile's row, one of each
digit of each row. Block of r rows, of n blocks of 32 columns:

    128 n * r bytes    [8 n, r, 4 digits, 4]: the digits of four columns of all rows, then those of the next four
    float64 [r, 2]     sum and quantum of each row
"""

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from runtime.model.kernels import int8
from runtime.model.kernels.decoding import BLOCK, write_factors
from runtime.model.kernels.elements import (
    F32,
    F64,
    I64,
    chosen,
    integers,
    numbers,
    octets,
    pointer,
    reserved,
)
from runtime.model.kernels.multiply_tiles import write_results
from runtime.model.kernels.processor import has, multiplies_tiles
from runtime.model.kernels.subroutines import subroutine
from runtime.model.kernels.tiles import (
    TILE,
    TILE_BYTES,
    TILE_ROWS,
    dot,
    four_stack_tiles,
    load_configuration,
    load_tile,
    prefetched,
    release_tiles,
    stack_tile,
    store_tile,
    transposed,
    two_stack_tiles,
    zero_tiles,
)

AVAILABLE = int8.AVAILABLE and has("amx-int8") and multiplies_tiles(torch.bfloat16)
"""Whether the processor multiplies tiles of bytes, and Linux lets this process use it."""
ROWS = 4
"""Rows of x of a block: with their digits they fill a tile."""
BLOCKS, LAST = 4, 3
"""Blocks that are multiplied at once; the tile with the sums of one that is not whole."""
ROW_BYTES = TILE_BYTES // ROWS
"""Bytes of a tile's row that are of one row of x."""
PANEL_BYTES = 1 << 17
"""Codes with which blocks of x are multiplied in turn: they stay in the second level of cache."""

load_codes, load_x, load_last_x = (load_tile(tile) for tile in (4, 6, 7))
dot_0, dot_1, dot_2, dot_3 = (dot(tile, 4, 6, "tdpbusd") for tile in range(BLOCKS))
dot_last = dot(LAST, 4, 7, "tdpbusd")
store_0, store_1, store_2, store_3 = (store_tile(tile) for tile in range(BLOCKS))
zero_all, fetch = zero_tiles(BLOCKS), prefetched(TILE_ROWS)
results_of_tile = reserved(ROWS * TILE_ROWS)


# ---- rows of x ----


@subroutine(apart=True)
def pack(data: Any, source: Any, stride: Any, rows: Any, inputs: Any, out: Any) -> None:
    """Pack a block of ``rows`` rows of x, which lie with a stride as ``int8.arrange`` leaves them."""
    blocks = (inputs + BLOCK - 1) // BLOCK
    place, row_bytes = stack_tile(), ROW_BYTES * rows
    for step in range((blocks + 1) // 2):
        half = 2 * step + 1 == blocks  # of one block
        apart = TILE_BYTES // 2 if half else TILE_BYTES
        turn_digits(source + step * int8.DIGITS * TILE_BYTES, stride, rows, apart, place)
        target = out + step * TILE_ROWS * row_bytes
        for number in range(TILE_ROWS // 2 if half else TILE_ROWS):
            words, copied = integers(place + number * TILE_BYTES), integers(target + number * row_bytes)
            for i in range(ROWS * rows):
                copied[i] = words[i]
    behind, target = source + int8.DIGITS * BLOCK * blocks, out + int8.DIGITS * BLOCK * blocks * rows
    for row in range(rows):
        for i in range(2):
            numbers(target + 16 * row)[i] = numbers(behind + row * stride)[i]


@intrinsic  # type: ignore[untyped-decorator]
def turn_digits(typing: Any, source: Any, stride: Any, rows: Any, apart: Any, target: Any) -> Any:
    """Transpose the words of the digits of up to ROWS rows, of which ``rows`` are there; others are the last one."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        source, stride, rows, apart, target = args
        loaded = []
        for row in range(ROWS):
            is_there = builder.icmp_signed("<", I64(row), rows)
            number = builder.select(is_there, I64(row), builder.sub(rows, I64(1)))
            start = builder.add(source, builder.mul(number, stride))
            for digit in range(int8.DIGITS):
                place = pointer(builder, builder.add(start, builder.mul(apart, I64(digit))))
                loaded.append(builder.load(place, typ=int8.SUMS, align=1))
        for number, words in enumerate(transposed(builder, loaded)):
            builder.store(words, pointer(builder, builder.add(target, I64(TILE_BYTES * number))), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), code


# ---- products ----


@subroutine(apart=True)
def _configure(outputs: Any, last: Any) -> None:
    """Configure tiles of up to 16 outputs; ``last``: rows of the block that is not whole, or 0."""
    place = stack_tile()
    word = octets(place)
    for i in range(TILE_BYTES):
        word[i] = 0
    word[0] = 1
    for tile in range(8):
        word[16 + 2 * tile] = ROW_BYTES * last if last and (tile == LAST or tile == 7) else TILE_BYTES
        word[48 + tile] = TILE_ROWS if tile > 5 else outputs
    load_configuration(place)


@subroutine(apart=True)
def multiply(data: Any, a: Any, x: Any, output: Any, last: Any, scales: Any) -> None:
    """Compute outputs ``output`` … ``last`` - 1 of ``a``, a CodedProduct; ``x``: its rows, packed.

    ``scales``: scratch for float32 [16].
    """
    if last <= output:
        return
    height, panel = min(last - output, TILE_ROWS), max(1, PANEL_BYTES // (TILE_ROWS * a.codes_stride)) * TILE_ROWS
    passes = (a.rows + BLOCKS * ROWS - 1) // (BLOCKS * ROWS)
    if passes == 1:
        panel = last - output
        _configure(height, a.rows % ROWS)
    for start in range(output, last, panel):
        end = min(start + panel, last)
        for number in range(passes):
            row = number * BLOCKS * ROWS
            rows = min(a.rows - row, BLOCKS * ROWS)
            if passes > 1:
                _configure(height, rows % ROWS)
            for own in range(start, end, TILE_ROWS):
                first = max(output, min(own, last - TILE_ROWS))
                some(data, a, x + row * a.widened_stride, row, rows, first, height, scales)
    release_tiles()


@subroutine(apart=True)
def some(data: Any, a: Any, x: Any, row: Any, rows: Any, first: Any, height: Any, scales: Any) -> None:
    """Compute up to 16 outputs from ``first`` on for up to 16 rows of x from ``row`` on."""
    blocks, few, left = rows // ROWS, rows % ROWS, a.codes + first * a.codes_stride
    block, last, sums = ROWS * a.widened_stride, ROW_BYTES * (rows % ROWS), four_stack_tiles()
    ahead, last_x, steps = left + TILE_ROWS * a.codes_stride, x + rows // ROWS * block, a.inputs // TILE_BYTES
    zero_all()
    for step in range(steps):
        fetch(ahead + step * TILE)
        load_codes(left + step * TILE_BYTES, a.codes_stride)
        _add_blocks(x + step * TILE, block, blocks)
        if few:
            load_last_x(last_x + step * TILE_ROWS * last, last)
            dot_last()
    if steps * TILE_BYTES < a.inputs:
        _add_rest(a, left, x, blocks, few, height)
    store_0(sums, TILE_BYTES)
    store_1(sums + TILE, TILE_BYTES)
    store_2(sums + 2 * TILE, TILE_BYTES)
    store_3(sums + 3 * TILE, TILE_BYTES)
    write_factors(a, first, height, scales, scales, scales)
    for number in range(blocks):
        _finish(data, a, sums + number * TILE, x + number * block, row + number * ROWS, ROWS, first, height, scales)
    if few:
        _finish(data, a, sums + LAST * TILE, last_x, row + blocks * ROWS, few, first, height, scales)


@subroutine()
def _add_blocks(x: Any, block: Any, blocks: Any) -> None:
    """Add the products of the codes that are loaded with a step of each whole block of rows of x."""
    if blocks > 0:
        load_x(x, TILE_BYTES)
        dot_0()
    if blocks > 1:
        load_x(x + block, TILE_BYTES)
        dot_1()
    if blocks > 2:
        load_x(x + 2 * block, TILE_BYTES)
        dot_2()
    if blocks > 3:
        load_x(x + 3 * block, TILE_BYTES)
        dot_3()


@subroutine(apart=True)
def _add_rest(a: Any, left: Any, x: Any, blocks: Any, few: Any, outputs: Any) -> None:
    """Add the products of the last columns, which are no multiple of a step, for all blocks of rows."""
    place, rest, steps = two_stack_tiles(), four_stack_tiles(), a.inputs // TILE_BYTES
    _copy_codes(a, left, outputs, place)
    load_codes(place, TILE_BYTES)
    for number in range(blocks):
        _copy_x(a, x + number * ROWS * a.widened_stride + steps * TILE, ROWS, rest + number * TILE)
    _add_blocks(rest, TILE, blocks)
    if few:
        last = ROW_BYTES * few
        _copy_x(a, x + blocks * ROWS * a.widened_stride + steps * TILE_ROWS * last, few, place + TILE)
        load_last_x(place + TILE, last)
        dot_last()


@subroutine(apart=True)
def _copy_codes(a: Any, left: Any, outputs: Any, place: Any) -> None:
    """Copy the last codes of some outputs, which are no multiple of a step, with zeros behind them."""
    whole = a.inputs // TILE_BYTES * TILE_BYTES
    for output in range(outputs):
        source, target = octets(left + output * a.codes_stride + whole), octets(place + output * TILE_BYTES)
        for i in range(TILE_BYTES):
            target[i] = source[i] if whole + i < a.inputs else np.uint8(0)


@subroutine(apart=True)
def _copy_x(a: Any, x: Any, rows: Any, place: Any) -> None:
    """Copy the last digits of a block of rows, which may be of half a tile."""
    words, copied = integers(x), integers(place)
    left = (a.inputs % TILE_BYTES + BLOCK - 1) // BLOCK * BLOCK
    for i in range(TILE_ROWS * ROWS * rows):
        copied[i] = words[i] if i < left * rows else np.int32(0)


@subroutine(apart=True)
def _finish(
    data: Any, a: Any, sums: Any, x: Any, row: Any, rows: Any, first: Any, outputs: Any, scales: Any
) -> None:  # fmt: skip
    """Write sums, int32 [16, rows, DIGITS] with stride TILE_BYTES, as results of a block of rows and outputs."""
    results = results_of_tile()
    scale_tile(sums, x + int8.DIGITS * BLOCK * ((a.inputs + BLOCK - 1) // BLOCK) * rows, scales, results)
    write_results(data, a, results, rows, outputs, first, row)


@intrinsic  # type: ignore[untyped-decorator]
def scale_tile(typing: Any, sums: Any, behind: Any, scales: Any, out: Any) -> Any:
    """Write results of sums [16 outputs, ROWS, DIGITS] as float32 [ROWS, 16], as ``int8.scaled`` computes them.

    ``behind``: float64 [ROWS, 2], sum and quantum of each row; of rows that are not there anything.
    """

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        sums, behind, scales, out = args
        half = ir.VectorType(F64, 8)

        def all_of(address: Any) -> Any:
            value = builder.load(pointer(builder, address), typ=ir.VectorType(F64, 1), align=4)
            return chosen(builder, value, [0] * 8)

        loaded = [
            builder.load(pointer(builder, builder.add(sums, I64(TILE_BYTES * number))), typ=int8.SUMS, align=4)
            for number in range(TILE_ROWS)
        ]
        columns = transposed(builder, loaded)
        for row in range(ROWS):
            total, quantum = (all_of(builder.add(behind, I64(16 * row + place))) for place in (0, 8))
            zero = builder.fmul(total, ir.Constant(half, [float(int8.ZERO)] * 8))
            for part in (0, 8):
                digits = []
                for digit in range(int8.DIGITS):
                    own = chosen(builder, columns[row * int8.DIGITS + digit], range(part, part + 8))
                    unit = ir.Constant(half, [2.0 ** (8 * digit)] * 8)
                    digits.append(builder.fmul(builder.sitofp(own, half), unit))
                pairs = [builder.fadd(*digits[first : first + 2]) for first in (0, 2)]
                number = builder.fsub(builder.fadd(*pairs), zero)
                source = pointer(builder, builder.add(scales, I64(4 * part)))
                factors = builder.fpext(builder.load(source, typ=ir.VectorType(F32, 8), align=4), half)
                result = builder.fptrunc(builder.fmul(builder.fmul(number, quantum), factors), ir.VectorType(F32, 8))
                place = builder.add(out, I64(TILE_BYTES * row + 4 * part))
                builder.store(result, pointer(builder, place), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), code
