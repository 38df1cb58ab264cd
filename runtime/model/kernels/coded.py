"""Products with quantized weights: codes become numbers in registers, or in memory for many rows of x.

A row of x is brought into the order of the numbers once (``decoding``). The sum of each block is multiplied by the
scale of its group, so that a weight takes a mask, a conversion and a multiply-add. Codes of int4 are multiplied as
integers, whatever the number of rows is (``int4``). A result has the same bits whatever the number of rows is, and so
whether its numbers were in memory. Where the processor multiplies tiles of bfloat16 and x is of them, floats and
int4 with zero points are multiplied by tiles (``coded_tiles``).
"""

from typing import Any

import numpy as np
from numba.core import types

from runtime.model.kernels import coded_tiles, int4, int8, int8_tiles
from runtime.model.kernels.arguments import CODED_ROWS, CodedProduct
from runtime.model.kernels.coded_loops import coded_dots, exact_dots
from runtime.model.kernels.decoding import (
    BLOCK,
    FLOAT4,
    FLOAT8,
    INT4,
    INT8,
    arranged,
    factors,
    spread,
    start_factor,
    write_factors,
)
from runtime.model.kernels.elements import (
    LANES,
    arguments_of,
    elements,
    floats,
    integers,
    itemsize,
    octets,
    put,
    stack_floats,
)
from runtime.model.kernels.inner_loops import finish
from runtime.model.kernels.subroutines import by_tiles, subroutine
from runtime.model.kernels.team import barrier, thread, threads

GROUP = 4
"""Rows of codes that are multiplied together."""
PASS_ROWS = 3
"""Most rows of x that numbers in memory are multiplied with at once: their sums fill the registers."""
DIRECT_PASS_ROWS = 4
"""Most rows of x that codes are multiplied with at once."""
DIRECT_ROWS, DIRECT_ROWS_FLOATS = 12, 3
"""Most rows of x for which integers and floats are decoded in registers, for each pass anew."""
TILED_ROWS = 3
"""Least rows of x for which codes are multiplied by tiles."""
PANEL = 16
"""Rows of codes whose scales and zero points are made float32 together."""

FLOAT_BYTES = 4

ROWS = int8_tiles.ROWS

coded_arguments = arguments_of(CodedProduct)
int8_blocks, float8_blocks, float4_blocks = (spread(code) for code in (INT8, FLOAT8, FLOAT4))
arrange_int8, arrange_floats = arranged(INT8), arranged(FLOAT8)


def coded(data: Any) -> None:
    """Multiply x by the transpose of a weight in codes; arguments: ``CodedProduct``."""
    a = coded_arguments(data)
    me, team = np.int64(thread()), np.int64(threads())
    x = a.widened
    place = a.values + me * CODED_ROWS * a.values_stride
    if a.widened_per_thread:
        x += me * a.rows * a.widened_stride
        _arrange_rows(data, a, x, place, 0, 1)
    else:
        _arrange_rows(data, a, x, place, me, team)
        barrier()
    of_part = a.outputs // a.parts
    for part in range(a.parts):
        first = part * of_part
        _multiply_rows(data, a, x, first + of_part * me // team, first + of_part * (me + 1) // team, me)


@subroutine(apart=True, fast=frozenset())
def _arrange(data: Any, a: Any, out: Any, place: Any, first: Any, step: Any) -> None:
    """Bring rows ``first``, ``first`` + ``step``, … of x into the order of the numbers of ``a``, a CodedProduct.

    ``place``: scratch of this thread for a row whose columns are in another order.
    """
    blocks, all_blocks, factor = a.inputs // BLOCK, (a.inputs + BLOCK - 1) // BLOCK, start_factor(a)
    if _tiled(a):
        _pack(data, a, out, place, first, step)
        return
    for row in range(first, a.rows, step):
        source, target = a.x + row * a.x_stride, out + row * a.widened_stride
        if a.order:
            _gather(data, a, source, place)
            source = place
        if a.code == INT4:
            int4.arrange(data, source, target, blocks)
            continue
        if _exact(a):
            arrange_exact(data, source, target, a.inputs)
            continue
        begins = target + 4 * BLOCK * all_blocks
        if blocks:
            _arrange_blocks(data, a, source, target, blocks, begins, factor)
        if blocks < all_blocks:  # the last columns, and zeros in the place of others
            filled = stack_floats()
            rest, last = elements(data, filled), elements(data, source + blocks * BLOCK * itemsize(data))
            for column in range(BLOCK):
                if blocks * BLOCK + column < a.inputs:
                    rest[column] = last[column]
                else:
                    put(rest, column, np.float32(0))
            _arrange_blocks(data, a, filled, target + 4 * BLOCK * blocks, 1, begins + 4 * blocks, factor)
        for number in range(all_blocks, (all_blocks + LANES - 1) // LANES * LANES):
            floats(begins)[number] = np.float32(0)


@subroutine(apart=True, fast=frozenset())
def _pack(data: Any, a: Any, out: Any, place: Any, first: Any, step: Any) -> None:
    """Pack blocks ``first``, ``first`` + ``step``, … of the rows of x, as ``_arrange`` does rows."""
    gathered = place + ROWS * a.values_stride
    for row in range(first * ROWS, a.rows, step * ROWS):
        rows = min(ROWS, a.rows - row)
        for number in range(rows):
            source = a.x + (row + number) * a.x_stride
            if a.order:
                _gather(data, a, source, gathered)
                source = gathered
            arrange_exact(data, source, place + number * a.values_stride, a.inputs)
        pack_exact(data, place, a.values_stride, rows, a.inputs, out + row * a.widened_stride)


@subroutine()
def _gather(data: Any, a: Any, x: Any, out: Any) -> None:
    """Copy a row of x in the order of the columns of the weight; 0 where a column is none of x."""
    values, gathered, order = elements(data, x), elements(data, out), integers(a.order)
    for column in range(a.inputs):
        if order[column] >= 0:
            gathered[column] = values[order[column]]
        else:
            put(gathered, column, np.float32(0))


@subroutine()
def _arrange_blocks(data: Any, a: Any, x: Any, out: Any, blocks: Any, begins: Any, factor: Any) -> None:
    if a.code == INT8:
        arrange_int8(data, x, out, blocks, begins, factor)
    else:
        arrange_floats(data, x, out, blocks, begins, factor)


@subroutine(apart=True)
def _multiply(data: Any, a: Any, x: Any, output: Any, last: Any, me: Any) -> None:
    """Compute outputs ``output`` … ``last`` - 1 of ``a``, a CodedProduct; ``x``: its rows, arranged."""
    values = a.values + me * CODED_ROWS * a.values_stride
    few = a.rows <= (DIRECT_ROWS if a.code == INT8 else DIRECT_ROWS_FLOATS)
    if a.code == INT4 and last - output < GROUP:
        narrow_int4(data, a, x, output, last, values)
    elif a.code == INT4 and a.zeros:
        direct_int4_zeros(data, a, x, output, last, values)
    elif a.code == INT4:
        direct_int4(data, a, x, output, last, values)
    elif _exact(a):
        _multiply_exact(data, a, x, output, last, values)
    elif few and a.inputs % BLOCK == 0 and last - output >= GROUP:
        if a.code == INT8 and a.zeros:
            direct_int8_zeros(data, a, x, output, last, values)
        elif a.code == INT8:
            direct_int8(data, a, x, output, last, values)
        elif a.code == FLOAT8:
            direct_float8(data, a, x, output, last, values)
        else:
            direct_float4(data, a, x, output, last, values)
    else:
        scales = values + GROUP * a.values_stride
        points = scales + 4 * GROUP * factors(a)
        scratch = points + 4 * (GROUP * factors(a) + LANES)
        while output < last:
            count = min(GROUP, last - output)
            write_factors(a, output, count, scales, points, scratch)
            for number in range(count):
                _decode(a, output + number, values + number * a.values_stride)
            if a.zeros:
                multiply_numbers_zeros(data, a, x, output, values, count, scales, points)
            else:
                multiply_numbers(data, a, x, output, values, count, scales, points)
            output += count


def _one_pass(code: int | None, outputs: int, rows: int, *, zeros: bool) -> Any:
    """Return a function that computes a range of at least ``outputs`` outputs for ``rows`` rows of x.

    Its arguments: the kernel's pointer; ``a``, a CodedProduct; address of x, its first row; address and stride of the
    codes of the first output, or of its numbers (``code`` None); first output and the one behind the last; scales and
    zero points of these, float32 [outputs, factors(a)].
    """
    dots, store = coded_dots(code, outputs, rows, zeros=zeros), finish(outputs, rows)

    @subroutine(apart=True)
    def computed(
        data: Any, a: Any, x: Any, row: Any, left: Any, left_stride: Any, output: Any, last: Any, scales: Any,
        points: Any,
    ) -> None:  # fmt: skip
        sums, size, blocks = stack_floats(), itemsize(data), (a.inputs + BLOCK - 1) // BLOCK
        stride, x_stride = 4 * factors(a), a.widened_stride
        right, added, out = x + row * x_stride, a.added + row * a.added_stride, a.out + row * a.out_stride
        for first in range(output, last, outputs):
            number = min(first, last - outputs)
            own, beyond = left + (number - output) * left_stride, (number - output) * stride
            scale, point = scales + beyond, points + beyond
            dots(data, own, left_stride, right, x_stride, sums, scale, stride, point, blocks)
            more = added + number * size if a.added else np.int64(0)
            store(data, sums, more, a.added_stride, out + number * size, a.out_stride)

    return computed


def _direct(code: int, *, zeros: bool) -> Any:
    """Return a function that computes a range of at least GROUP outputs for some rows of x, pass by pass."""
    pass_1, pass_2, pass_3, pass_4 = (
        _one_pass(code, 4 if rows == 1 else 2, rows, zeros=zeros) for rows in range(1, DIRECT_PASS_ROWS + 1)
    )

    @subroutine(apart=True)
    def direct(data: Any, a: Any, x: Any, output: Any, last: Any, scales: Any) -> None:
        passes, stride = (a.rows + DIRECT_PASS_ROWS - 1) // DIRECT_PASS_ROWS, a.codes_stride
        points = scales + 4 * PANEL * factors(a)
        scratch = points + 4 * (PANEL * factors(a) + LANES)
        for start in range(output, last, PANEL):
            end = min(start + PANEL, last)
            first = min(start, end - GROUP)
            write_factors(a, first, end - first, scales, points, scratch)
            left = a.codes + first * stride
            for number in range(passes):
                row = a.rows * number // passes
                rows = a.rows * (number + 1) // passes - row
                if rows == 1:
                    pass_1(data, a, x, row, left, stride, first, end, scales, points)
                elif rows == 2:
                    pass_2(data, a, x, row, left, stride, first, end, scales, points)
                elif rows == 3:
                    pass_3(data, a, x, row, left, stride, first, end, scales, points)
                else:
                    pass_4(data, a, x, row, left, stride, first, end, scales, points)

    return direct


@subroutine(apart=True)
def narrow_int4(data: Any, a: Any, x: Any, output: Any, last: Any, scales: Any) -> None:
    """Compute fewer than GROUP outputs, as ``direct`` does more."""
    points = scales + 4 * GROUP * factors(a)
    write_factors(a, output, last - output, scales, points, points + 4 * (GROUP * factors(a) + LANES))
    left = a.codes + output * a.codes_stride
    for row in range(a.rows):
        if a.zeros:
            single_int4_zeros(data, a, x, row, left, a.codes_stride, output, last, scales, points)
        else:
            single_int4(data, a, x, row, left, a.codes_stride, output, last, scales, points)


single_int4, single_int4_zeros = (_one_pass(INT4, 1, 1, zeros=zeros) for zeros in (False, True))
direct_int4, direct_int8, direct_float8, direct_float4 = (
    _direct(code, zeros=False) for code in (INT4, INT8, FLOAT8, FLOAT4)
)
direct_int4_zeros, direct_int8_zeros = (_direct(code, zeros=True) for code in (INT4, INT8))


@subroutine()
def _multiply_exact(data: Any, a: Any, x: Any, output: Any, last: Any, scales: Any) -> None:
    if _tiled(a):
        multiply_tiles(data, a, x, output, last, scales)
    else:
        direct_exact(data, a, x, output, last, scales)


@subroutine(types.boolean)
def _exact(a: Any) -> Any:
    """Return whether codes of ``a``, a CodedProduct, are multiplied as integers of all columns (``int8``)."""
    return EXACT and a.code == INT8 and a.group >= a.inputs and not a.zeros and a.inputs <= int8.MOST_INPUTS


@subroutine(types.boolean)
def _tiled(a: Any) -> Any:
    """Return whether these integers are multiplied by tiles."""
    return TILED and a.rows >= TILED_ROWS and _exact(a)


def _exact_pass(outputs: int, rows: int) -> Any:
    """Return a function that computes at least ``outputs`` outputs, at most PANEL, for ``rows`` rows of x by ``int8``.

    Arguments as those of ``_one_pass``, without zero points.
    """
    dots, store = exact_dots(outputs, rows), finish(outputs, rows)

    @subroutine(apart=True)
    def computed(data: Any, a: Any, x: Any, row: Any, left: Any, output: Any, last: Any, scales: Any) -> None:
        sums, size = stack_floats(), itemsize(data)
        right, added, out = x + row * a.widened_stride, a.added + row * a.added_stride, a.out + row * a.out_stride
        for first in range(output, last, outputs):
            number = min(first, last - outputs)
            own, scale = left + (number - output) * a.codes_stride, scales + FLOAT_BYTES * (number - output)
            dots(data, own, a.codes_stride, right, a.widened_stride, sums, scale, a.inputs)
            more = added + number * size if a.added else np.int64(0)
            store(data, sums, more, a.added_stride, out + number * size, a.out_stride)

    return computed


def _exactly() -> Any:
    """Return a function that computes a range of outputs by ``int8``, pass by pass; arguments as of ``_direct``'s."""
    single, pass_1, pass_2, pass_3 = (_exact_pass(*both) for both in ((1, 1), (GROUP, 1), (2, 2), (2, 3)))

    @subroutine(apart=True)
    def direct(data: Any, a: Any, x: Any, output: Any, last: Any, scales: Any) -> None:
        passes = (a.rows + PASS_ROWS - 1) // PASS_ROWS
        for start in range(output, last, PANEL):
            end = min(start + PANEL, last)
            first = max(output, min(start, end - GROUP))
            write_factors(a, first, end - first, scales, scales, scales)
            left = a.codes + first * a.codes_stride
            for number in range(passes):
                row = a.rows * number // passes
                rows = a.rows * (number + 1) // passes - row
                if end - first < GROUP:
                    for beyond in range(rows):
                        single(data, a, x, row + beyond, left, first, end, scales)
                elif rows == 1:
                    pass_1(data, a, x, row, left, first, end, scales)
                elif rows == 2:
                    pass_2(data, a, x, row, left, first, end, scales)
                else:
                    pass_3(data, a, x, row, left, first, end, scales)

    return direct


@subroutine(types.boolean)
def _widened(a: Any) -> Any:
    """Return whether codes of ``a``, a CodedProduct, become bfloat16 for tiles, where tiles are multiplied."""
    return a.code == FLOAT8 or a.code == FLOAT4 or (a.code == INT4 and a.zeros != 0)


@subroutine()
def _arrange_for_tiles(data: Any, a: Any, out: Any, place: Any, first: Any, step: Any) -> None:
    """Arrange rows of x as ``_arrange`` does, or for tiles."""
    if _widened(a):
        coded_tiles.pack(data, a, out, first, step)
    else:
        _arrange(data, a, out, place, first, step)


@subroutine()
def _multiply_by_tiles(data: Any, a: Any, x: Any, output: Any, last: Any, me: Any) -> None:
    """Compute outputs as ``_multiply`` does, or by tiles."""
    if _widened(a):
        coded_tiles.multiply(data, a, x, output, last, a.values + me * CODED_ROWS * a.values_stride)
    else:
        _multiply(data, a, x, output, last, me)


_arrange_rows = by_tiles(_arrange_for_tiles, _arrange)
_multiply_rows = by_tiles(_multiply_by_tiles, _multiply)


@subroutine()
def _no_pack(data: Any, source: Any, stride: Any, rows: Any, inputs: Any, out: Any) -> None:
    """Take the place of ``int8_tiles.pack``."""


EXACT = int8.AVAILABLE
TILED = int8_tiles.AVAILABLE
arrange_exact, direct_exact = (int8.arrange, _exactly()) if EXACT else (int4.arrange, direct_int8)
pack_exact, multiply_tiles = (int8_tiles.pack, int8_tiles.multiply) if TILED else (_no_pack, direct_int8)
"""Where the processor cannot multiply so, functions with the same arguments, which are not called."""


@subroutine(apart=True, fast=frozenset())
def _decode(a: Any, row: Any, out: Any) -> None:
    """Write the numbers of row ``row`` of the weight of ``a``, a CodedProduct, to ``out``: whole blocks."""
    codes, blocks = a.codes + row * a.codes_stride, a.inputs // BLOCK
    if blocks:
        _decode_blocks(a, codes, out, blocks)
    if blocks * BLOCK < a.inputs:  # of 8 bits; x is 0 beyond the last column
        place = stack_floats()
        rest, last = octets(place), octets(codes + blocks * BLOCK)
        for column in range(BLOCK):
            rest[column] = last[column] if blocks * BLOCK + column < a.inputs else np.uint8(0)
        _decode_blocks(a, place, out + 4 * BLOCK * blocks, 1)


@subroutine()
def _decode_blocks(a: Any, codes: Any, out: Any, blocks: Any) -> None:
    if a.code == INT8:
        int8_blocks(codes, out, blocks)
    elif a.code == FLOAT8:
        float8_blocks(codes, out, blocks)
    else:
        float4_blocks(codes, out, blocks)


def _of_numbers(*, zeros: bool) -> Any:
    """Return a function that computes at most GROUP outputs from their numbers in memory."""
    single = _one_pass(None, 1, 1, zeros=zeros)
    pass_1, pass_2, pass_3 = (_one_pass(None, GROUP, rows, zeros=zeros) for rows in range(1, PASS_ROWS + 1))

    @subroutine(apart=True)
    def multiply(data: Any, a: Any, x: Any, output: Any, values: Any, count: Any, scales: Any, points: Any) -> None:
        last, stride = output + count, a.values_stride
        if count < GROUP:
            for row in range(a.rows):
                single(data, a, x, row, values, stride, output, last, scales, points)
        else:
            passes = (a.rows + PASS_ROWS - 1) // PASS_ROWS
            for number in range(passes):
                row = a.rows * number // passes
                rows = a.rows * (number + 1) // passes - row
                if rows == 1:
                    pass_1(data, a, x, row, values, stride, output, last, scales, points)
                elif rows == 2:
                    pass_2(data, a, x, row, values, stride, output, last, scales, points)
                else:
                    pass_3(data, a, x, row, values, stride, output, last, scales, points)

    return multiply


multiply_numbers, multiply_numbers_zeros = _of_numbers(zeros=False), _of_numbers(zeros=True)
