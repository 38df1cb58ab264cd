"""Dot products of rows of x with a range of the rows of a weight: how many of each are multiplied at once.

A vector register holds a sum for each result that is computed at once. A processor with AVX-512 has 32 of them:
``multiply_wide``. Others have 16: ``multiply_narrow``. The order of summation is that of ``dots``, whatever the number
of rows.

How the latter uses them: 12 sums are of 2 rows of the weight and 6 of x, or of 3 and up to 4; each value that is loaded
is multiplied two to six times. A row of x alone is multiplied with 4 rows of the weight, as one sum would wait for each
of its multiplications. Rows of x have to be in the first level of cache: those that are too long for it are multiplied
in parts, for some rows of the weight in turn.
"""

from typing import Any

import numpy as np
from numba.core import types

from runtime.model.kernels.arguments import Product
from runtime.model.kernels.elements import (
    LANES,
    LINE_BYTES,
    F,
    elements,
    floats,
    in_pairs,
    itemsize,
    reserved,
    stack_floats,
    wide,
)
from runtime.model.kernels.inner_loops import dots, finish, part_dots, step_of
from runtime.model.kernels.multiply_tiles import multiply_tiles
from runtime.model.kernels.subroutines import by_tiles, subroutine

AHEAD_BYTES = 4096
"""Least distance at which weights are prefetched for few rows of x."""
PANEL_BYTES = 1 << 17
"""Weights that many rows of x are multiplied with in turn: they stay in the second level of cache."""
BLOCK_BYTES = 1 << 19
"""Rows of x that every panel is multiplied with before the next rows are: they stay in the second level of cache."""
MOST_ROWS = 6
"""Most rows of x multiplied at once; few rows, which wait for the memory, each with two rows of weights."""
NARROW_AHEAD_BYTES = 16384
"""Distance at which weights are prefetched where there are 16 registers."""
GROUP = 4
"""Rows of weights with which 4 to 6 of many rows of x are multiplied at once: their sums fill the registers."""
FIRST_LEVEL_BYTES = 28 << 10
"""Bytes of the first level of cache for the parts of the rows of x: the least that processors have is 32 KiB."""
FLOAT_BYTES = 4
PART_OUTPUTS = 16
"""Most rows of the weight whose sums are kept between two parts of a row."""


kept_sums = reserved(PART_OUTPUTS * MOST_ROWS * LANES)


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
                add_rest(kind, a, right, x_stride, left, sums, outputs, rows)
            more = added + number * size if a.added else np.int64(0)
            store(data, sums, more, a.added_stride, out + number * size, a.out_stride)
            ahead = min(ahead + fetched, ahead_end)
        return ahead

    return swept


one = sweep(1, 1, 1)
few_2, few_3, few_4, few_5, few_6 = (sweep(2, rows, 2) for rows in range(2, MOST_ROWS + 1))


def sweep_parts(at_once: Any, products: Any, store: Any, *, near: bool) -> Any:
    """Return a function that multiplies as that of ``sweep`` does: ``count`` rows, and long rows part by part.

    ``at_once``, ``products`` and ``store``: subroutines that take ``count``. Parts of the rows take turns with a block
    of the rows of the weight. ``near``: what follows within the block is prefetched; else one row of the weight with
    each step from the address ``ahead`` on; both at most to ``ahead_end``, as behind a weight there may be no memory,
    which takes long to find out. The function returns the next address.
    """

    @subroutine(types.int64, apart=True)
    def swept(
        data: Any, kind: Any, a: Any, x: Any, x_stride: Any, row: Any, count: Any, output: Any, last: Any, ahead: Any,
        ahead_end: Any,
    ) -> Any:  # fmt: skip
        totals, sums, size, width = stack_floats(), kept_sums(), itemsize(data), itemsize(kind)
        outputs, x_width = at_once(count), width if in_pairs(kind) else FLOAT_BYTES
        right, added, out = x + row * x_stride, a.added + row * a.added_stride, a.out + row * a.out_stride
        whole, line = a.inputs - a.inputs % step_of(kind), np.int64(LINE_BYTES) // width
        most = FIRST_LEVEL_BYTES // (FLOAT_BYTES * count)
        parts = max(1, (whole + most - 1) // most)
        part = max(line, ((whole + parts - 1) // parts + line - 1) // line * line)
        block, distance = last - output, np.int64(NARROW_AHEAD_BYTES)
        if parts > 1:
            block = max(1, min(PART_OUTPUTS, PANEL_BYTES // a.weight_stride) // outputs) * outputs
            distance = block * a.weight_stride
        for start in range(output, last, block):
            end = min(start + block, last)
            if near:
                ahead = a.weight + start * a.weight_stride + distance
            for begin in range(0, max(whole, 1), part):
                length = min(part, whole - begin)
                final = begin + length == whole
                for first in range(start, end, outputs):
                    number = min(first, last - outputs)
                    left = a.weight + number * a.weight_stride
                    if whole:
                        kept = sums + FLOAT_BYTES * LANES * count * (first - start)
                        later = min(ahead, ahead_end - outputs * length * width) if near else ahead
                        products(
                            kind, count, left + begin * width, a.weight_stride, right + begin * x_width, x_stride, kept,
                            length, begin == 0, totals if final else 0, later,
                        )  # fmt: skip
                        ahead = ahead + outputs * length * width if near else min(ahead + length * width, ahead_end)
                    if final:
                        if whole < a.inputs:
                            add_rest(kind, a, right, x_stride, left, totals, outputs, count)
                        more = added + number * size if a.added else np.int64(0)
                        store(data, count, totals, more, a.added_stride, out + number * size, a.out_stride)
        return ahead

    return swept


def _many_rows(rows: int) -> Any:
    """Return a function that multiplies ``rows`` rows of x by GROUP rows of the weight at a time."""
    part_products, store = part_dots(GROUP, rows, 1), finish(GROUP, rows)

    @subroutine(types.int64)
    def at_once(count: Any) -> Any:
        return np.int64(GROUP)

    @subroutine()
    def multiplied(
        kind: Any, count: Any, left: Any, left_stride: Any, right: Any, right_stride: Any, sums: Any, length: Any,
        begins: Any, out: Any, ahead: Any,
    ) -> None:  # fmt: skip
        part_products(kind, left, left_stride, right, right_stride, sums, length, begins, out, ahead)

    @subroutine()
    def stored(data: Any, count: Any, sums: Any, added: Any, added_stride: Any, out: Any, out_stride: Any) -> None:
        store(data, sums, added, added_stride, out, out_stride)

    return sweep_parts(at_once, multiplied, stored, near=False)


many_4, many_5, many_6 = (_many_rows(rows) for rows in range(GROUP, MOST_ROWS + 1))


@subroutine(apart=True)
def multiply_wide(data: Any, a: Any, x: Any, x_stride: Any, output: Any, last: Any) -> None:
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
        ahead, ahead_end = a.weight + end * a.weight_stride, a.weight + min(end + panel, last) * a.weight_stride
        for number in range(passes):
            row = a.rows * number // passes
            count = max(a.rows * (number + 1) // passes - row, GROUP)
            row = min(row, a.rows - count)
            if count == 4:
                ahead = many_4(data, data, a, x, x_stride, row, np.int64(4), first, end, ahead, ahead_end)
            elif count == 5:
                ahead = many_5(data, data, a, x, x_stride, row, np.int64(5), first, end, ahead, ahead_end)
            else:
                ahead = many_6(data, data, a, x, x_stride, row, np.int64(6), first, end, ahead, ahead_end)


MOST_AT_ONCE = 4
TOGETHER = ((MOST_AT_ONCE, 1), (3, 2), (3, 3), (3, 4), (2, 5), (2, MOST_ROWS))
"""Rows of the weight and of x that are multiplied at once; ``_at_once`` has it too."""
dots_1, dots_2, dots_3, dots_4, dots_5, dots_6 = (part_dots(outputs, rows, outputs) for outputs, rows in TOGETHER)
store_1, store_2, store_3, store_4, store_5, store_6 = (finish(outputs, rows) for outputs, rows in TOGETHER)


@subroutine(apart=True)
def multiply_narrow(data: Any, a: Any, x: Any, x_stride: Any, output: Any, last: Any) -> None:
    """Compute outputs ``output`` … ``last`` - 1 of ``a``, a Product; ``x``: its rows, float32.

    More rows than are multiplied at once take turns with a panel of the weight.
    """
    if last - output < MOST_AT_ONCE:
        for row in range(a.rows):
            one(data, data, a, x, x_stride, row, output, last, output, last)
        return
    passes, panel, behind = (a.rows + MOST_ROWS - 1) // MOST_ROWS, last - output, a.weight + last * a.weight_stride
    if passes > 1:
        panel = max(PART_OUTPUTS, PANEL_BYTES // a.weight_stride // PART_OUTPUTS * PART_OUTPUTS)
    for start in range(output, last, panel):
        end = min(start + panel, last)
        for number in range(passes):
            row = a.rows * number // passes
            count = a.rows * (number + 1) // passes - row
            first = min(start, end - _at_once(count))
            narrow_sweep(data, data, a, x, x_stride, row, count, first, end, 0, behind)


@subroutine(types.int64)
def _at_once(count: Any) -> Any:
    """Return how many rows of the weight are multiplied with ``count`` rows of x at once."""
    if count == 1:
        return MOST_AT_ONCE
    return 3 if count < 5 else 2


@subroutine(apart=True)
def _dots(
    kind: Any, count: Any, left: Any, left_stride: Any, right: Any, right_stride: Any, sums: Any, length: Any,
    begins: Any, out: Any, ahead: Any,
) -> None:  # fmt: skip
    """Run ``part_dots`` for ``count`` rows."""
    if count == 1:
        dots_1(kind, left, left_stride, right, right_stride, sums, length, begins, out, ahead)
    elif count == 2:
        dots_2(kind, left, left_stride, right, right_stride, sums, length, begins, out, ahead)
    elif count == 3:
        dots_3(kind, left, left_stride, right, right_stride, sums, length, begins, out, ahead)
    elif count == 4:
        dots_4(kind, left, left_stride, right, right_stride, sums, length, begins, out, ahead)
    elif count == 5:
        dots_5(kind, left, left_stride, right, right_stride, sums, length, begins, out, ahead)
    else:
        dots_6(kind, left, left_stride, right, right_stride, sums, length, begins, out, ahead)


@subroutine(apart=True)
def _store(data: Any, count: Any, sums: Any, added: Any, added_stride: Any, out: Any, out_stride: Any) -> None:
    """Run ``finish`` for ``count`` rows."""
    if count == 1:
        store_1(data, sums, added, added_stride, out, out_stride)
    elif count == 2:
        store_2(data, sums, added, added_stride, out, out_stride)
    elif count == 3:
        store_3(data, sums, added, added_stride, out, out_stride)
    elif count == 4:
        store_4(data, sums, added, added_stride, out, out_stride)
    elif count == 5:
        store_5(data, sums, added, added_stride, out, out_stride)
    else:
        store_6(data, sums, added, added_stride, out, out_stride)


narrow_sweep = sweep_parts(_at_once, _dots, _store, near=True)


@subroutine(apart=True)
def add_rest(data: Any, a: Any, x: Any, x_stride: Any, left: Any, sums: Any, outputs: Any, rows: Any) -> None:
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


@subroutine(apart=True)
def multiply_in_blocks(data: Any, a: Any, x: Any, x_stride: Any, output: Any, last: Any) -> None:
    """Compute outputs of all rows, block by block of the rows of x."""
    block = max(2 * MOST_ROWS, BLOCK_BYTES // x_stride)
    blocks = (a.rows + block - 1) // block
    for number in range(blocks):
        row = a.rows * number // blocks
        added: Any = a.added + row * a.added_stride if a.added else np.int64(0)
        part = Product(
            x=x + row * x_stride, x_stride=x_stride, weight=a.weight, weight_stride=a.weight_stride,
            added=added, added_stride=a.added_stride, out=a.out + row * a.out_stride, out_stride=a.out_stride,
            rows=a.rows * (number + 1) // blocks - row, inputs=a.inputs, outputs=a.outputs, widened=0,
            widened_stride=0, widened_per_thread=0,
        )  # fmt: skip
        multiply_block(data, part, part.x, x_stride, output, last)


multiply_block = multiply_wide if LANES == 16 else multiply_narrow
multiply = by_tiles(multiply_tiles, multiply_in_blocks)
"""Compute a range of the outputs of a Product, as the processor does it: of its rows of x as ``widen`` leaves them."""
