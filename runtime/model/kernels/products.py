"""Products with weight matrices: one matrix, or one per group of rows (the experts of a mixture).

A thread computes a contiguous range of outputs for all rows, so that each weight is read once, by one thread.
"""

from typing import Any

import numpy as np
from numba import njit

from runtime.model.kernels.arguments import GroupedProduct, Product
from runtime.model.kernels.elements import FLOATING, F, arguments_of, elements, floats, numbers, put, stack_floats, wide
from runtime.model.kernels.inner_loops import dots
from runtime.model.kernels.team import barrier, thread, threads

LANES = 16
"""Partial sums of one dot product."""
PREFETCH_BYTES = 1024
"""Distance in a row of weights at which they are prefetched."""
MOST_ROWS = 6
"""Rows of x multiplied in one pass over a row of weights: their sums fill the registers."""
PAIR_ROWS = 8
"""With more rows than this the product is bound by arithmetic: two rows of weights share each load of x."""

dots_1, dots_2, dots_3, dots_4, dots_5, dots_6 = (dots(1, rows, LANES, PREFETCH_BYTES) for rows in range(1, 7))
dots_2_3 = dots(2, 3, LANES, PREFETCH_BYTES)
product_arguments, grouped_arguments = arguments_of(Product), arguments_of(GroupedProduct)


def product(data: Any) -> None:
    """Multiply x by the transpose of one weight matrix; arguments: ``Product``."""
    a = product_arguments(data)
    me, team = np.int64(thread()), np.int64(threads())
    x, x_stride = a.x, a.x_stride
    if a.widened and not a.widened_per_thread:
        x, x_stride = a.widened, a.widened_stride
        _widen(data, a.x, a.x_stride, x, x_stride, a.inputs, me, a.rows, team)
        barrier()
    elif a.widened:
        x, x_stride = a.widened + me * a.rows * a.widened_stride, a.widened_stride
        _widen(data, a.x, a.x_stride, x, x_stride, a.inputs, 0, a.rows, 1)
    _multiply(data, a, x, x_stride, a.outputs * me // team, a.outputs * (me + 1) // team)


def grouped(data: Any) -> None:
    """Multiply each group's rows by the transpose of its weight matrix; arguments: ``GroupedProduct``."""
    a = grouped_arguments(data)
    me, team = np.int64(thread()), np.int64(threads())
    x, x_stride = a.x, a.x_stride
    if a.widened:
        x, x_stride = a.widened, a.widened_stride
        for row in range(me, a.rows, team):
            source = numbers(a.row_index)[row] if a.row_index else row
            _widen(data, a.x + source * a.x_stride, 0, x + row * x_stride, 0, a.inputs, 0, 1, 1)
        barrier()
    output, last = a.outputs * me // team, a.outputs * (me + 1) // team
    for group in range(a.groups):
        first = numbers(a.ends)[group - 1] if group else 0
        rows = numbers(a.ends)[group] - first
        if rows:
            part = Product(
                x=x + first * x_stride, x_stride=x_stride,
                weight=a.weights + group * a.group_stride, weight_stride=a.weight_stride, added=0, added_stride=0,
                out=a.out + first * a.out_stride, out_stride=a.out_stride,
                rows=rows, inputs=a.inputs, outputs=a.outputs, widened=0, widened_stride=0, widened_per_thread=0,
            )  # fmt: skip
            _multiply(data, part, part.x, part.x_stride, output, last)


@njit(fastmath=FLOATING, error_model="numpy")  # type: ignore[untyped-decorator]
def _multiply(data: Any, a: Any, x: Any, x_stride: Any, output: Any, last: Any) -> None:
    """Compute outputs ``output`` … ``last`` - 1 of ``a``, a Product; ``x``: its rows as float32."""
    vectorised, sums = a.inputs - a.inputs % LANES, stack_floats()
    passes = (a.rows + MOST_ROWS - 1) // MOST_ROWS
    at_once = 3 if a.rows > PAIR_ROWS else (a.rows + passes - 1) // passes
    while output < last:
        pair = 2 if a.rows > PAIR_ROWS and output + 1 < last else 1
        start = a.weight + output * a.weight_stride
        for begin in range(0, a.rows, at_once):
            few = at_once if a.rows > PAIR_ROWS else min(at_once, a.rows - begin)
            row = min(begin, a.rows - few)  # the last of many rows are computed again, as the pass has a fixed width
            _dots(data, start, a.weight_stride, x + row * x_stride, x_stride, sums, vectorised, pair, few)
            number = 0
            for j in range(row, row + few):
                out = elements(data, a.out + j * a.out_stride)
                for i in range(output, output + pair):
                    total = floats(sums)[number]
                    number += 1
                    if vectorised < a.inputs:
                        weights, inputs = elements(data, a.weight + i * a.weight_stride), floats(x + j * x_stride)
                        for k in range(vectorised, a.inputs):
                            total += wide(weights[k]) * inputs[k]
                    if a.added:
                        total += wide(elements(data, a.added + j * a.added_stride)[i])
                    put(out, i, total)
        output += pair


@njit(fastmath=FLOATING)  # type: ignore[untyped-decorator]
def _widen(
    data: Any, x: Any, x_stride: Any, out: Any, out_stride: Any, inputs: Any, first: Any, rows: Any, step: Any
) -> None:
    """Copy rows ``first``, ``first`` + ``step``, … of x to ``out`` as float32."""
    for row in range(first, rows, step):
        source, target = elements(data, x + row * x_stride), floats(out + row * out_stride)
        for i in range(inputs):
            target[i] = wide(source[i])


@njit(fastmath=FLOATING)  # type: ignore[untyped-decorator]
def _dots(
    data: Any, start: Any, stride: Any, x: Any, x_stride: Any, sums: Any, length: Any, pair: Any, few: Any
) -> None:
    """Write the dot products [few, pair] over ``length`` to ``sums``."""
    if length == 0:
        for number in range(few * pair):
            floats(sums)[number] = F(0)
    elif pair == 2:
        dots_2_3(data, start, stride, x, x_stride, sums, 8, length)
    elif few == 1:
        dots_1(data, start, stride, x, x_stride, sums, 4, length)
    elif few == 2:
        dots_2(data, start, stride, x, x_stride, sums, 4, length)
    elif few == 3:
        dots_3(data, start, stride, x, x_stride, sums, 4, length)
    elif few == 4:
        dots_4(data, start, stride, x, x_stride, sums, 4, length)
    elif few == 5:
        dots_5(data, start, stride, x, x_stride, sums, 4, length)
    else:
        dots_6(data, start, stride, x, x_stride, sums, 4, length)
