"""Sums of values by their weights, for all items of a unit.

Values are summed in their order, VALUE_ROWS rows of them for all dims and items before the next: the first level of the
processor's cache then has them for all but the first items. What is left of a head behind whole vectors is copied once,
with zeros behind it.
"""

from typing import Any

from runtime.model.kernels.attend_scratch import (
    head_bytes,
    multiply_scales,
    scale_offset,
    score_bytes,
)
from runtime.model.kernels.attend_value_tiles import sum_by_tiles
from runtime.model.kernels.elements import LANES, F, floats, in_codes, itemsize, numbers, octets, reserved
from runtime.model.kernels.inner_loops import weigh
from runtime.model.kernels.subroutines import by_tiles, subroutine

VALUE_ROWS = 64
"""Rows of values that are summed for all dims and items before the next."""
MANY, FEW = (8, 4) if LANES == 16 else (6, 3)
"""Items whose values are summed at once: their sums fill half of 32 registers, or 12 of 16."""
MANY_VECTORS, FEW_VECTORS, VECTORS = 2, (4 if LANES == 16 else 2), 4
"""Vectors of a value that are summed at once for MANY items, for FEW, and for one."""

many_whole, many_one = weigh(MANY_VECTORS, MANY), weigh(1, MANY)
few_whole, few_one = weigh(FEW_VECTORS, FEW), weigh(1, FEW)
single_whole, single_one = weigh(VECTORS, 1), weigh(1, 1)
padded_values = reserved(VALUE_ROWS * LANES)


@subroutine(apart=True)
def _sum_by_vectors(
    kept: Any, a: Any, weights: Any, values: Any, sums: Any, sequence: Any, first_item: Any, count: Any, columns: Any
) -> None:  # fmt: skip
    """Sum the values of all columns by their weights, for ``count`` items.

    The columns of the sequence come first, from that with its oldest position on, then those of the tree, whose rows
    lie before them in the cache: the order that they will have once they are committed, so that the sum of a tree node
    has the bits of plain decoding.
    """
    tree = min(a.tree_columns, columns)
    first = min(numbers(a.oldest)[sequence], columns) if a.oldest else tree
    for item in range(count):
        total = floats(sums + item * head_bytes(a.head_dim))
        for i in range(head_bytes(a.head_dim) // 4):
            total[i] = F(0)
    _add_values(kept, a, weights, values, sums, count, first, columns)
    _add_values(kept, a, weights, values, sums, count, tree, first)
    _add_values(kept, a, weights, values, sums, count, 0, tree)


@subroutine(apart=True)
def _add_values(
    kept: Any, a: Any, weights: Any, values: Any, sums: Any, count: Any, first: Any, last: Any
) -> None:  # fmt: skip
    """Add rows ``first`` … ``last`` - 1 of values by their weights to the sums of ``count`` items."""
    rest, own = a.head_dim % LANES, score_bytes(a.columns)
    whole = a.head_dim - rest
    for row in range(first, last, VALUE_ROWS):
        rows, place, factors = min(VALUE_ROWS, last - row), values + row * a.row_stride, weights + 4 * row
        if in_codes(kept):
            multiply_scales(kept, factors, own, count, place + scale_offset(a.head_dim), a.row_stride, rows)
        _add_block(kept, a, factors, place, a.row_stride, sums, count, rows, whole)
        if rest:
            copies = padded_values()
            used, copied, stride = whole * itemsize(kept), rest * itemsize(kept), LANES * itemsize(kept)
            for number in range(rows):
                value, copy = octets(place + number * a.row_stride + used), octets(copies + number * stride)
                for i in range(copied):
                    copy[i] = value[i]
                for i in range(copied, stride):
                    copy[i] = 0
            _add_block(kept, a, factors, copies, stride, sums + 4 * whole, count, rows, LANES)


@subroutine()
def _add_block(
    kept: Any, a: Any, weights: Any, values: Any, stride: Any, sums: Any, count: Any, rows: Any, dims: Any
) -> None:  # fmt: skip
    """Add a block of values of ``dims`` elements, whole vectors, to the sums of ``count`` items."""
    item, own, total = 0, score_bytes(a.columns), head_bytes(a.head_dim)
    while item < count:
        some = MANY if item + MANY <= count else (FEW if item + FEW <= count else 1)
        vectors, start = (MANY_VECTORS if some == MANY else FEW_VECTORS if some == FEW else VECTORS), 0
        factors, out = weights + item * own, sums + item * total
        while start < dims:
            source, target = values + start * itemsize(kept), out + 4 * start
            if start + vectors * LANES <= dims:
                if some == MANY:
                    many_whole(kept, source, stride, factors, own, target, total, rows)
                elif some == FEW:
                    few_whole(kept, source, stride, factors, own, target, total, rows)
                else:
                    single_whole(kept, source, stride, factors, own, target, total, rows)
                start += vectors * LANES
            else:
                if some == MANY:
                    many_one(kept, source, stride, factors, own, target, total, rows)
                elif some == FEW:
                    few_one(kept, source, stride, factors, own, target, total, rows)
                else:
                    single_one(kept, source, stride, factors, own, target, total, rows)
                start += LANES
        item += some


sum_values = by_tiles(sum_by_tiles, _sum_by_vectors)
"""Sum the values of columns by their weights.

Arguments: a pointer to elements of the cache; ``a``, an Attend; addresses of the weights in scratch, of the values of
the first column, and of the sums; the number of the sequence, of its first item, of items, and of columns."""
