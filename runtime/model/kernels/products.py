"""Products with weight matrices: one matrix, or one per group of rows (the experts of a mixture).

A thread computes a contiguous range of outputs for all rows, so that each weight is read once, by one thread.
"""

from typing import Any

import numpy as np

from runtime.model.kernels.arguments import GroupedProduct, Product
from runtime.model.kernels.elements import (
    arguments_of,
    elements,
    floats,
    in_pairs,
    numbers,
    wide,
)
from runtime.model.kernels.multiply import multiply
from runtime.model.kernels.multiply_panels import multiply_panels, pack_strips, panels_apply
from runtime.model.kernels.multiply_tiles import pack, pack_groups
from runtime.model.kernels.subroutines import by_tiles, subroutine
from runtime.model.kernels.team import barrier, thread, threads

product_arguments, grouped_arguments = arguments_of(Product), arguments_of(GroupedProduct)


def product(data: Any) -> None:
    """Multiply x by the transpose of one weight matrix; arguments: ``Product``."""
    a = product_arguments(data)
    me, team = np.int64(thread()), np.int64(threads())
    x, x_stride = a.x, a.x_stride
    if a.widened and panels_apply(data, a.rows, a.inputs, a.outputs // team):
        pack_strips(data, a.x, a.x_stride, a.widened, a.widened_stride, a.inputs, me, a.rows, team)
        barrier()
        multiply_panels(data, a, a.widened, a.widened_stride, a.outputs * me // team, a.outputs * (me + 1) // team)
        return
    if a.widened and not a.widened_per_thread:
        x, x_stride = a.widened, a.widened_stride
        arrange(data, data, a.x, a.x_stride, x, x_stride, a.inputs, me, a.rows, team)
        barrier()
    elif a.widened:
        x, x_stride = a.widened + me * a.rows * a.widened_stride, a.widened_stride
        arrange(data, data, a.x, a.x_stride, x, x_stride, a.inputs, 0, a.rows, 1)
    multiply(data, a, x, x_stride, a.outputs * me // team, a.outputs * (me + 1) // team)


def grouped(data: Any) -> None:
    """Multiply each group's rows by the transpose of its weight matrix; arguments: ``GroupedProduct``."""
    a = grouped_arguments(data)
    me, team = np.int64(thread()), np.int64(threads())
    x, x_stride = a.x, a.x_stride
    if a.widened:
        x, x_stride = a.widened, a.widened_stride
        arrange_groups(data, a, x, me, team)
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


@subroutine()
def _widen_groups(data: Any, a: Any, out: Any, me: Any, team: Any) -> None:
    """Widen this thread's rows of x of ``a``, a GroupedProduct, in the order of ``row_index``."""
    for row in range(me, a.rows, team):
        source = numbers(a.row_index)[row] if a.row_index else row
        widen(data, data, a.x + source * a.x_stride, 0, out + row * a.widened_stride, 0, a.inputs, 0, 1, 1)


arrange, arrange_groups = by_tiles(pack, widen), by_tiles(pack_groups, _widen_groups)
"""Bring the rows of x into the form that ``multiply`` reads: packed for tiles, or as ``widen`` has them."""
