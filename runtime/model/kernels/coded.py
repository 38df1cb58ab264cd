"""Products with quantized weights: codes are made float32 in registers, or in memory for many rows of x.

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
    FLOAT32,
    INT4,
    INT8,
    float8_column,
    int8_column,
    spread,
    write_factors,
    write_offsets,
    write_zeros,
)
from runtime.model.kernels.elements import arguments_of, floats, itemsize, stack_floats
from runtime.model.kernels.inner_loops import coded_dots, finish
from runtime.model.kernels.products import GROUP, MOST_ROWS, sweep, widen
from runtime.model.kernels.subroutines import subroutine
from runtime.model.kernels.team import barrier, thread, threads

PASS_ROWS = 4
"""Most rows of x that codes are decoded for at once: their sums fill the registers."""
DIRECT_ROWS = 12
"""Most rows of x for which codes are decoded in registers, for each pass anew."""
PANEL = 16
"""Rows of codes whose scales and zero points are made float32 together."""

coded_arguments = arguments_of(CodedProduct)
int4_blocks, int8_blocks, float8_blocks, float4_blocks = (spread(code) for code in (INT4, INT8, FLOAT8, FLOAT4))


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
    of_part = a.outputs // a.parts
    for part in range(a.parts):
        first = part * of_part
        _multiply(data, a, x, x_stride, first + of_part * me // team, first + of_part * (me + 1) // team, me)


@subroutine(apart=True)
def _multiply(data: Any, a: Any, x: Any, x_stride: Any, output: Any, last: Any, me: Any) -> None:
    """Compute outputs ``output`` … ``last`` - 1 of ``a``, a CodedProduct; ``x``: its rows, float32."""
    values = a.values + me * CODED_ROWS * a.values_stride
    exact = not a.zeros or a.scale != FLOAT32  # -zero * scale is no rounded product
    if a.rows <= DIRECT_ROWS and a.inputs % BLOCK == 0 and last - output >= GROUP and exact:
        if a.code == INT4:
            direct_int4(data, a, x, x_stride, output, last, values)
        elif a.code == INT8:
            direct_int8(data, a, x, x_stride, output, last, values)
        elif a.code == FLOAT8:
            direct_float8(data, a, x, x_stride, output, last, values)
        else:
            direct_float4(data, a, x, x_stride, output, last, values)
    else:
        groups = (a.inputs + a.group - 1) // a.group
        scales = values + GROUP * a.values_stride
        zeros = scales + 4 * GROUP * groups
        if not a.zeros:
            write_zeros(a, GROUP * groups, zeros)
        while output < last:
            count = min(GROUP, last - output)
            write_factors(a, output, count, groups, scales, zeros)
            for number in range(count):
                beyond = 4 * number * groups
                decode(a, output + number, values + number * a.values_stride, scales + beyond, zeros + beyond)
            multiply_values(data, a, x, x_stride, output, values, count)
            output += count


def _one_pass(code: int, rows: int) -> Any:
    """Return a function that computes a range of at least two outputs for ``rows`` rows of x, two at a time.

    Its arguments: the kernel's pointer; ``a``, a CodedProduct; address and stride of x; its first row; first output and
    the one behind the last; scales and offsets of these, float32 [outputs, groups].
    """
    dots, store = coded_dots(code, 2, rows), finish(2, rows)

    @subroutine(apart=True)
    def computed(
        data: Any, a: Any, x: Any, x_stride: Any, row: Any, output: Any, last: Any, scales: Any, offsets: Any
    ) -> None:
        sums, size, blocks, codes_stride = stack_floats(), itemsize(data), a.inputs // BLOCK, a.codes_stride
        stride, per_group = 4 * ((a.inputs + a.group - 1) // a.group), a.group // BLOCK
        right, added, out = x + row * x_stride, a.added + row * a.added_stride, a.out + row * a.out_stride
        for first in range(output, last, 2):
            number = min(first, last - 2)
            left, beyond = a.codes + number * codes_stride, (number - output) * stride
            scale, offset = scales + beyond, offsets + beyond
            dots(data, left, codes_stride, right, x_stride, sums, scale, stride, offset, blocks, per_group)
            more = added + number * size if a.added else np.int64(0)
            store(data, sums, more, a.added_stride, out + number * size, a.out_stride)

    return computed


def _direct(code: int) -> Any:
    """Return a function that computes a range of at least two outputs for some rows of x, pass by pass."""
    pass_1, pass_2, pass_3, pass_4 = (_one_pass(code, rows) for rows in range(1, PASS_ROWS + 1))

    @subroutine(apart=True)
    def direct(data: Any, a: Any, x: Any, x_stride: Any, output: Any, last: Any, scales: Any) -> None:
        groups, passes = (a.inputs + a.group - 1) // a.group, (a.rows + PASS_ROWS - 1) // PASS_ROWS
        offsets = scales + 4 * PANEL * groups
        for start in range(output, last, PANEL):
            end = min(start + PANEL, last)
            first = min(start, end - 2)
            write_factors(a, first, end - first, groups, scales, offsets)
            write_offsets(a, (end - first) * groups, scales, offsets)
            for number in range(passes):
                row = a.rows * number // passes
                rows = a.rows * (number + 1) // passes - row
                if rows == 1:
                    pass_1(data, a, x, x_stride, row, first, end, scales, offsets)
                elif rows == 2:
                    pass_2(data, a, x, x_stride, row, first, end, scales, offsets)
                elif rows == 3:
                    pass_3(data, a, x, x_stride, row, first, end, scales, offsets)
                else:
                    pass_4(data, a, x, x_stride, row, first, end, scales, offsets)

    return direct


direct_int4, direct_int8, direct_float8, direct_float4 = (_direct(code) for code in (INT4, INT8, FLOAT8, FLOAT4))


@subroutine(apart=True, fast=frozenset())
def decode(a: Any, row: Any, out: Any, scales: Any, zeros: Any) -> None:
    """Write row ``row`` of the weight of ``a``, a CodedProduct, to ``out`` as float32; scales and zero points of it."""
    codes, blocks, per_group = a.codes + row * a.codes_stride, a.inputs // BLOCK, max(a.group // BLOCK, 1)
    if blocks:
        if a.code == INT4:
            int4_blocks(codes, out, scales, zeros, blocks, per_group)
        elif a.code == INT8:
            int8_blocks(codes, out, scales, zeros, blocks, per_group)
        elif a.code == FLOAT8:
            float8_blocks(codes, out, scales, zeros, blocks, per_group)
        else:
            float4_blocks(codes, out, scales, zeros, blocks, per_group)
    group = (a.inputs - 1) // a.group  # of columns that are no whole block
    for column in range(blocks * BLOCK, a.inputs):
        if a.code == INT8:
            floats(out)[column] = int8_column(codes + column, floats(zeros)[group], floats(scales)[group])
        else:
            floats(out)[column] = float8_column(codes + column, floats(zeros)[group], floats(scales)[group])


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
