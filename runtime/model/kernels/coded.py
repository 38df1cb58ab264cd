"""Products with quantized weights: codes are made float32 in registers, or row by row for many rows of x.

The values are exactly those of the weight, and the order of summation is that of float32 weights, so the results have
the bits of ``product`` on these values, for any number of rows.
"""

from typing import Any

import numpy as np
from numba.core import types

from runtime.model.kernels.arguments import CODED_ROWS, CodedProduct, Product
from runtime.model.kernels.decoding import (
    BLOCK,
    FLOAT4,
    FLOAT8,
    INT4,
    INT8,
    float8_column,
    int8_column,
    spread,
    write_factors,
    write_zeros,
)
from runtime.model.kernels.elements import arguments_of, floats, itemsize, stack_floats
from runtime.model.kernels.inner_loops import LANES, coded_dots, finish
from runtime.model.kernels.products import GROUP, MOST_ROWS, sweep, widen
from runtime.model.kernels.subroutines import subroutine
from runtime.model.kernels.team import barrier, thread, threads

DIRECT_ROWS = 3
"""Most rows of x for which codes are decoded in registers, for each of them anew."""

coded_arguments = arguments_of(CodedProduct)
int4_blocks, int8_blocks, float8_blocks, float4_blocks = (spread(code, LANES) for code in (INT4, INT8, FLOAT8, FLOAT4))


def coded(data: Any) -> None:
    """Multiply x by the transpose of a weight in codes; arguments: ``CodedProduct``."""
    a = coded_arguments(data)
    me, team = np.int64(thread()), np.int64(threads())
    x, x_stride, single = a.x, a.x_stride, floats(a.x)
    if a.widened and not a.widened_per_thread:
        x, x_stride = a.widened, a.widened_stride
        widen(data, single, a.x, a.x_stride, x, x_stride, a.inputs, me, a.rows, team)
        barrier()
    elif a.widened:
        x, x_stride = a.widened + me * a.rows * a.widened_stride, a.widened_stride
        widen(data, single, a.x, a.x_stride, x, x_stride, a.inputs, 0, a.rows, 1)
    values = a.values + me * CODED_ROWS * a.values_stride
    output, last = a.outputs * me // team, a.outputs * (me + 1) // team
    if a.rows <= DIRECT_ROWS and a.inputs % BLOCK == 0 and last - output >= GROUP:
        if a.code == INT4:
            direct_int4(data, a, x, x_stride, output, last, values)
        elif a.code == INT8:
            direct_int8(data, a, x, x_stride, output, last, values)
        elif a.code == FLOAT8:
            direct_float8(data, a, x, x_stride, output, last, values)
        else:
            direct_float4(data, a, x, x_stride, output, last, values)
    else:
        factors = values + GROUP * a.values_stride
        if not a.zeros:
            write_zeros(a, factors + 4 * ((a.inputs + BLOCK - 1) // BLOCK))
        while output < last:
            count = min(GROUP, last - output)
            for number in range(count):
                decode(a, output + number, values + number * a.values_stride, factors)
            multiply_values(data, a, x, x_stride, output, values, count)
            output += count


def _direct(code: int) -> Any:
    """Return a function that computes a range of at least two outputs of few rows of x, two at a time."""
    dots = [coded_dots(code, 2 if rows > 1 else 4, rows) for rows in range(1, DIRECT_ROWS + 1)]
    stores = [finish(2 if rows > 1 else 4, rows) for rows in range(1, DIRECT_ROWS + 1)]
    dots_1, dots_2, dots_3 = dots
    store_1, store_2, store_3 = stores

    @subroutine(apart=True)
    def direct(data: Any, a: Any, x: Any, x_stride: Any, output: Any, last: Any, factors: Any) -> None:
        sums, size, blocks = stack_floats(), itemsize(data), a.inputs // BLOCK
        stride = 4 * blocks  # of factors: scales of two rows, then their zero points
        at_once = 4 if a.rows == 1 else 2
        if not a.zeros:
            for more in range(at_once):
                write_zeros(a, factors + (at_once + more) * stride)
        for first in range(output, last, at_once):
            number = min(first, last - at_once)
            for more in range(at_once):
                own = factors + more * stride
                write_factors(a, number + more, own, own + at_once * stride)
            codes = a.codes + number * a.codes_stride
            added = a.added and a.added + number * size
            out = a.out + number * size
            if a.rows == 1:
                dots_1(data, codes, a.codes_stride, x, x_stride, sums, factors, stride, blocks)
                store_1(data, sums, added, a.added_stride, out, a.out_stride)
            elif a.rows == 2:
                dots_2(data, codes, a.codes_stride, x, x_stride, sums, factors, stride, blocks)
                store_2(data, sums, added, a.added_stride, out, a.out_stride)
            else:
                dots_3(data, codes, a.codes_stride, x, x_stride, sums, factors, stride, blocks)
                store_3(data, sums, added, a.added_stride, out, a.out_stride)

    return direct


direct_int4, direct_int8, direct_float8, direct_float4 = (_direct(code) for code in (INT4, INT8, FLOAT8, FLOAT4))


@subroutine(apart=True, fast=frozenset())
def decode(a: Any, row: Any, out: Any, factors: Any) -> None:
    """Write row ``row`` of the weight of ``a``, a CodedProduct, to ``out`` as float32; ``factors``: scratch.

    Behind the scratch for the row's scales are its zero points, which the caller has written if all rows have the same.
    """
    codes, blocks = a.codes + row * a.codes_stride, a.inputs // BLOCK
    zeros = factors + 4 * ((a.inputs + BLOCK - 1) // BLOCK)
    write_factors(a, row, factors, zeros)
    if blocks:
        if a.code == INT4:
            int4_blocks(codes, out, factors, zeros, blocks)
        elif a.code == INT8:
            int8_blocks(codes, out, factors, zeros, blocks)
        elif a.code == FLOAT8:
            float8_blocks(codes, out, factors, zeros, blocks)
        else:
            float4_blocks(codes, out, factors, zeros, blocks)
    for column in range(blocks * BLOCK, a.inputs):
        if a.code == INT8:
            floats(out)[column] = int8_column(codes + column, floats(zeros)[blocks], floats(factors)[blocks])
        else:
            floats(out)[column] = float8_column(codes + column, floats(zeros)[blocks], floats(factors)[blocks])


value_1 = sweep(1, 1, 0)
values_4, values_5, values_6 = (sweep(GROUP, rows, 0) for rows in range(GROUP, MOST_ROWS + 1))


@subroutine(types.NamedUniTuple(types.int64, len(Product._fields), Product))
def as_product(a: Any, size: Any, x: Any, x_stride: Any, output: Any, values: Any, count: Any) -> Any:
    """Return outputs of ``a``, a CodedProduct, as a Product of float32 weights."""
    return Product(
        x=x, x_stride=x_stride, weight=values, weight_stride=a.values_stride,
        added=a.added and a.added + output * size, added_stride=a.added_stride,
        out=a.out + output * size, out_stride=a.out_stride,
        rows=a.rows, inputs=a.inputs, outputs=count, widened=0, widened_stride=0, widened_per_thread=0,
    )  # fmt: skip


@subroutine(apart=True)
def multiply_values(data: Any, a: Any, x: Any, x_stride: Any, output: Any, values: Any, count: Any) -> None:
    """Compute ``count`` outputs, at most GROUP, of ``a``, a CodedProduct; ``values``: their weights as float32."""
    kind, part = floats(x), as_product(a, itemsize(data), x, x_stride, output, values, count)
    if count < GROUP or a.rows < GROUP:
        for row in range(a.rows):
            value_1(data, kind, part, x, x_stride, row, 0, count, 0, 0)
    else:
        passes = (a.rows + MOST_ROWS - 1) // MOST_ROWS
        for number in range(passes):
            row = a.rows * number // passes
            rows = max(a.rows * (number + 1) // passes - row, GROUP)
            row = min(row, a.rows - rows)
            if rows == 4:
                values_4(data, kind, part, x, x_stride, row, 0, count, 0, 0)
            elif rows == 5:
                values_5(data, kind, part, x, x_stride, row, 0, count, 0, 0)
            else:
                values_6(data, kind, part, x, x_stride, row, 0, count, 0, 0)
