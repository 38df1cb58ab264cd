"""Products with weight matrices: one matrix, or one per group of rows (the experts of a mixture).

A thread computes a contiguous range of outputs for all rows, so that each weight is read once, by one thread.
"""

from typing import Any

import numpy as np
from numba.core import types

from runtime.model.kernels.arguments import GroupedProduct, Product
from runtime.model.kernels.elements import (
    F,
    arguments_of,
    elements,
    floats,
    in_pairs,
    itemsize,
    numbers,
    stack_floats,
    wide,
)
from runtime.model.kernels.inner_loops import dots, finish, step_of
from runtime.model.kernels.subroutines import subroutine
from runtime.model.kernels.team import barrier, thread, threads

AHEAD_BYTES = 4096
"""Least distance at which weights are prefetched for few rows of x."""
PANEL_BYTES = 1 << 17
"""Weights that many rows of x are multiplied with in turn: they stay in the second level of cache."""
MOST_ROWS = 6
"""Rows of x multiplied at once, each with two rows of weights: few rows, which wait for the memory."""
GROUP = 4
"""Rows of weights with which 4 to 6 of many rows of x are multiplied at once: their sums fill the registers."""

product_arguments, grouped_arguments = arguments_of(Product), arguments_of(GroupedProduct)


def product(data: Any) -> None:
    """Multiply x by the transpose of one weight matrix; arguments: ``Product``."""
    a = product_arguments(data)
    me, team = np.int64(thread()), np.int64(threads())
    x, x_stride = a.x, a.x_stride
    if a.widened and not a.widened_per_thread:
        x, x_stride = a.widened, a.widened_stride
        widen(data, data, a.x, a.x_stride, x, x_stride, a.inputs, me, a.rows, team)
        barrier()
    elif a.widened:
        x, x_stride = a.widened + me * a.rows * a.widened_stride, a.widened_stride
        widen(data, data, a.x, a.x_stride, x, x_stride, a.inputs, 0, a.rows, 1)
    multiply(data, a, x, x_stride, a.outputs * me // team, a.outputs * (me + 1) // team)


def grouped(data: Any) -> None:
    """Multiply each group's rows by the transpose of its weight matrix; arguments: ``GroupedProduct``."""
    a = grouped_arguments(data)
    me, team = np.int64(thread()), np.int64(threads())
    x, x_stride = a.x, a.x_stride
    if a.widened:
        x, x_stride = a.widened, a.widened_stride
        for row in range(me, a.rows, team):
            source = numbers(a.row_index)[row] if a.row_index else row
            widen(data, data, a.x + source * a.x_stride, 0, x + row * x_stride, 0, a.inputs, 0, 1, 1)
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
            multiply(data, part, part.x, part.x_stride, output, last)


def sweep(outputs: int, rows: int, fetched: int) -> Any:
    """Return a function that multiplies ``rows`` rows of x by a range of the rows of weights, ``outputs`` at a time.

    Its arguments: the kernel's pointer, whose elements the results are; a pointer to elements of the weights; ``a``, a
    Product; address and stride of x, float32 or multiplied in pairs; the first row; first output and the one behind
    the last, at least ``outputs`` of them; the first row of weights to prefetch, ``fetched`` with each of these steps,
    and the one behind the last. It returns the next row to prefetch. Where outputs are no multiple of those that are
    computed together, the last of them are computed twice.
    """
    dot_products, store = dots(outputs, rows, fetched), finish(outputs, rows)

    @subroutine(types.int64, apart=True)
    def swept(
        data: Any, kind: Any, a: Any, x: Any, x_stride: Any, row: Any, output: Any, last: Any, ahead: Any,
        ahead_end: Any,
    ) -> Any:  # fmt: skip
        sums, size, rest = stack_floats(), itemsize(data), a.inputs % step_of(kind)
        right, added, out = x + row * x_stride, a.added + row * a.added_stride, a.out + row * a.out_stride
        for first in range(output, last, outputs):
            number = min(first, last - outputs)
            left, later = a.weight + number * a.weight_stride, a.weight + ahead * a.weight_stride
            if rest < a.inputs:
                length = a.inputs - rest
                dot_products(kind, left, a.weight_stride, right, x_stride, sums, 0, length, later)
            if rest:
                _add_rest(kind, a, right, x_stride, left, sums, outputs, rows)
            more = added + number * size if a.added else np.int64(0)
            store(data, sums, more, a.added_stride, out + number * size, a.out_stride)
            ahead = min(ahead + fetched, ahead_end)
        return ahead

    return swept


one = sweep(1, 1, 1)
few_2, few_3, few_4, few_5, few_6 = (sweep(2, rows, 2) for rows in range(2, MOST_ROWS + 1))
many_4, many_5, many_6 = (sweep(GROUP, rows, 2) for rows in range(GROUP, MOST_ROWS + 1))


@subroutine(apart=True)
def multiply(data: Any, a: Any, x: Any, x_stride: Any, output: Any, last: Any) -> None:
    """Compute outputs ``output`` … ``last`` - 1 of ``a``, a Product; ``x``: its rows, float32 unless in pairs."""
    ahead = min(output + (AHEAD_BYTES + a.weight_stride - 1) // a.weight_stride, last)
    if a.rows > MOST_ROWS and last - output >= GROUP:
        _many(data, a, x, x_stride, output, last)
    elif last - output < 2 or a.rows == 1 or a.rows > MOST_ROWS:
        for row in range(a.rows):
            one(data, data, a, x, x_stride, row, output, last, ahead, last)
    elif a.rows == 2:
        few_2(data, data, a, x, x_stride, 0, output, last, ahead, last)
    elif a.rows == 3:
        few_3(data, data, a, x, x_stride, 0, output, last, ahead, last)
    elif a.rows == 4:
        few_4(data, data, a, x, x_stride, 0, output, last, ahead, last)
    elif a.rows == 5:
        few_5(data, data, a, x, x_stride, 0, output, last, ahead, last)
    else:
        few_6(data, data, a, x, x_stride, 0, output, last, ahead, last)


@subroutine()
def _many(data: Any, a: Any, x: Any, x_stride: Any, output: Any, last: Any) -> None:
    """Compute outputs of many rows, panel by panel of the weights, and prefetch the next panel meanwhile."""
    panel = max(1, PANEL_BYTES // (GROUP * a.weight_stride)) * GROUP
    passes = (a.rows + MOST_ROWS - 1) // MOST_ROWS
    for start in range(output, last, panel):
        end = min(start + panel, last)
        first = min(start, end - GROUP)  # of a last panel that is smaller than a group
        ahead, ahead_end = end, min(end + panel, last)
        for number in range(passes):
            row = a.rows * number // passes
            count = max(a.rows * (number + 1) // passes - row, GROUP)
            row = min(row, a.rows - count)
            if count == 4:
                ahead = many_4(data, data, a, x, x_stride, row, first, end, ahead, ahead_end)
            elif count == 5:
                ahead = many_5(data, data, a, x, x_stride, row, first, end, ahead, ahead_end)
            else:
                ahead = many_6(data, data, a, x, x_stride, row, first, end, ahead, ahead_end)


@subroutine(apart=True)
def _add_rest(data: Any, a: Any, x: Any, x_stride: Any, left: Any, sums: Any, outputs: Any, rows: Any) -> None:
    """Add the products of the last elements of a row, which are no multiple of a step, to the sums."""
    first = a.inputs - a.inputs % step_of(data)
    for row in range(rows):
        for output in range(outputs):
            weights = elements(data, left + output * a.weight_stride)
            total = floats(sums)[row * outputs + output] if first else F(0)
            for k in range(first, a.inputs):
                if in_pairs(data):
                    total += wide(weights[k]) * wide(elements(data, x + row * x_stride)[k])
                else:
                    total += wide(weights[k]) * floats(x + row * x_stride)[k]
            floats(sums)[row * outputs + output] = total


@subroutine()
def widen(
    data: Any, kind: Any, x: Any, x_stride: Any, out: Any, out_stride: Any, inputs: Any, first: Any, rows: Any,
    step: Any,
) -> None:  # fmt: skip
    """Copy rows ``first``, ``first`` + ``step``, … of x to ``out``: as float32, unless they are multiplied in pairs.

    ``kind``: pointer to elements of the weights.
    """
    for row in range(first, rows, step):
        source = elements(data, x + row * x_stride)
        if in_pairs(kind):
            copy = elements(data, out + row * out_stride)
            for i in range(inputs):
                copy[i] = source[i]
        else:
            target = floats(out + row * out_stride)
            for i in range(inputs):
                target[i] = wide(source[i])
