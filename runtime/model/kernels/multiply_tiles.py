"""Products of bfloat16 by AMX: 16 outputs of up to 16 rows of x in a tile, 32 elements of each at a time.

Weights are read as they lie, 16 rows of a weight a tile. Rows of x are packed once for a product, in blocks of up to
16, the last one smaller: the pairs of elements of the rows of a block, one row behind the other, [inputs / 2, rows, 2],
with zeros behind the last element up to a multiple of 32. A single row is packed as it lies.

    block of full rows     [K / 2, 16, 2]    K: inputs, rounded up to a multiple of 32
    ...
    last block of r rows   [K / 2, r, 2]

Two blocks of outputs are multiplied at once, and of more rows than a block has two blocks of rows, so that a tile that
is loaded is used twice. That pays for one block of rows, too: 16 rows fill a third of the first level of cache, through
which the weights pass. Few rows wait for the memory: while some outputs are multiplied, those behind them are
prefetched, in the order of addresses. The order of summation is that of ``tiles.dot``, in steps of 32 elements,
whatever the number of rows is.
"""

from typing import Any

import numpy as np
from numba.core import types

from runtime.model.kernels.arguments import Product
from runtime.model.kernels.elements import F, elements, floats, integers, itemsize, numbers, put, reserved, wide
from runtime.model.kernels.inner_loops import finish
from runtime.model.kernels.subroutines import subroutine
from runtime.model.kernels.tiles import (
    STEP,
    TILE,
    TILE_BYTES,
    TILE_ROWS,
    configure,
    dot,
    four_stack_tiles,
    load_tile,
    prefetched,
    release_tiles,
    stack_tile,
    store_tile,
    turn_rows,
    turn_tile,
    two_stack_tiles,
    zero_tiles,
)

ELEMENT_BYTES = 2
PART_BYTES = 1 << 19
"""Rows of x that all outputs are computed for before the next rows: they stay in the second level of cache."""
OUTPUTS = 2 * TILE_ROWS
"""Outputs that are computed at once, where there are as many."""
load_weights, load_more_weights, load_x, load_more_x = (load_tile(tile) for tile in (4, 5, 6, 7))
dot_00, dot_10, dot_01, dot_11 = dot(0, 4, 6), dot(1, 5, 6), dot(2, 4, 7), dot(3, 5, 7)
store_00, store_10, store_01, store_11 = (store_tile(tile) for tile in range(4))
zero_one, zero_two, zero_four = (zero_tiles(count) for count in (1, 2, 4))
fetch_16, fetch_32 = prefetched(TILE_ROWS), prefetched(OUTPUTS)
finish_row = finish(TILE_ROWS, 1)
more_stack_tile = reserved(TILE // 4)
addresses = reserved(2 * TILE_ROWS)


@subroutine(types.int64)
def padded(inputs: Any) -> Any:
    """Return the elements of a packed row."""
    return (inputs + STEP - 1) // STEP * STEP


@subroutine(apart=True)
def pack_block(data: Any, table: Any, rows: Any, inputs: Any, out: Any) -> None:
    """Pack a block of rows of x; ``table``: address of the int64 addresses of 16 rows, the last repeated."""
    pairs, whole = ELEMENT_BYTES * 2 * rows, inputs // STEP  # bytes of a pair of all rows
    if rows == 1:
        source, target = elements(data, numbers(table)[0]), elements(data, out)
        for i in range(inputs):
            target[i] = source[i]
        for i in range(inputs, padded(inputs)):
            put(target, i, F(0))
        return
    direct = whole if rows == TILE_ROWS else max(whole - 1, 0)  # the last of fewer rows writes 64 bytes, which are more
    for step in range(direct):
        turn_rows(table, step * TILE_BYTES, out + step * TILE_ROWS * pairs, pairs)
    place, target = stack_tile(), out + direct * TILE_ROWS * pairs
    if direct < whole:
        turn_rows(table, direct * TILE_BYTES, place, pairs)
        _copy_words(place, target, TILE_ROWS * rows)
    if whole * STEP < inputs:
        rest, target = addresses(), out + whole * TILE_ROWS * pairs
        for row in range(TILE_ROWS):
            source, values = elements(data, numbers(table)[row]), elements(data, place + row * TILE_BYTES)
            for i in range(STEP):
                if whole * STEP + i < inputs:
                    values[i] = source[whole * STEP + i]
                else:
                    put(values, i, F(0))
            numbers(rest)[row] = place + row * TILE_BYTES
        turned = more_stack_tile()
        turn_rows(rest, 0, turned, pairs)
        _copy_words(turned, target, TILE_ROWS * rows)


@subroutine()
def _copy_words(source: Any, target: Any, count: Any) -> None:
    """Copy words of 32 bits."""
    words, copied = integers(source), integers(target)
    for i in range(count):
        copied[i] = words[i]


@subroutine(apart=True)
def pack(
    data: Any, kind: Any, x: Any, x_stride: Any, out: Any, out_stride: Any, inputs: Any, first: Any, rows: Any,
    step: Any,
) -> None:  # fmt: skip
    """Pack blocks ``first``, ``first`` + ``step``, … of ``rows`` rows of x; arguments as those of ``widen``."""
    table = addresses()
    for start in range(first * TILE_ROWS, rows, step * TILE_ROWS):
        count = min(TILE_ROWS, rows - start)
        for number in range(TILE_ROWS):
            numbers(table)[number] = x + x_stride * (start + min(number, count - 1))
        pack_block(data, table, count, inputs, out + start * padded(inputs) * ELEMENT_BYTES)


@subroutine(apart=True)
def pack_groups(data: Any, a: Any, out: Any, me: Any, team: Any) -> None:
    """Pack this thread's blocks of the rows of x of ``a``, a GroupedProduct; each group begins at its row's stride."""
    table, unit = addresses(), 0
    for group in range(a.groups):
        begin, end = numbers(a.ends)[group - 1] if group else 0, numbers(a.ends)[group]
        for start in range(begin, end, TILE_ROWS):
            if unit % team == me:
                count = min(TILE_ROWS, end - start)
                for number in range(TILE_ROWS):
                    row = start + min(number, count - 1)
                    numbers(table)[number] = a.x + a.x_stride * (numbers(a.row_index)[row] if a.row_index else row)
                place = out + begin * a.widened_stride + (start - begin) * padded(a.inputs) * ELEMENT_BYTES
                pack_block(data, table, count, a.inputs, place)
            unit += 1


@subroutine(apart=True)
def multiply_tiles(data: Any, a: Any, x: Any, x_stride: Any, output: Any, last: Any) -> None:
    """Compute outputs ``output`` … ``last`` - 1 of ``a``, a Product; ``x``: its rows, packed, some after others."""
    row_bytes, pair = padded(a.inputs) * ELEMENT_BYTES, 2 * TILE_ROWS
    parts = max(1, (a.rows * row_bytes + PART_BYTES - 1) // PART_BYTES)
    rows = max(pair, (a.rows + parts * pair - 1) // (parts * pair) * pair)
    for row in range(0, a.rows, rows):
        added: Any = a.added + row * a.added_stride if a.added else np.int64(0)
        part = Product(
            x=x + row * row_bytes, x_stride=x_stride, weight=a.weight, weight_stride=a.weight_stride, added=added,
            added_stride=a.added_stride, out=a.out + row * a.out_stride, out_stride=a.out_stride,
            rows=min(rows, a.rows - row), inputs=a.inputs, outputs=a.outputs, widened=0, widened_stride=0,
            widened_per_thread=0,
        )  # fmt: skip
        _multiply_part(data, part, part.x, output, last)


@subroutine(apart=True)
def _multiply_part(data: Any, a: Any, x: Any, output: Any, last: Any) -> None:
    """Compute these outputs of rows that stay in the second level of cache."""
    if last <= output or a.rows < 1:
        return
    full, few = a.rows // TILE_ROWS, a.rows % TILE_ROWS
    height, width = min(last - output, TILE_ROWS), TILE_ROWS
    if last - output >= OUTPUTS:
        width = OUTPUTS
    block = TILE_ROWS * ELEMENT_BYTES * padded(a.inputs)
    configure(height, TILE_ROWS if full else few)
    for start in range(output, last, width):
        first = max(output, min(start, last - width))
        beyond = min(start + width, last - width) if start + 2 * width <= last else first
        ahead, number = a.weight + beyond * a.weight_stride, 0
        if full and few and start > output:
            configure(height, TILE_ROWS)
        while number < full:
            together = 2 if number + 2 <= full and width == OUTPUTS else 1
            if together == 2:
                four(data, a, x + number * block, first, number * TILE_ROWS, ahead)
            else:
                _some(data, a, x + number * block, TILE_ROWS, first, height, width, number * TILE_ROWS, ahead)
            number += together
        if few:
            if full:
                configure(height, few)
            _some(data, a, x + full * block, few, first, height, width, full * TILE_ROWS, ahead)
    release_tiles()


@subroutine()
def _some(
    data: Any, a: Any, x: Any, rows: Any, first: Any, height: Any, width: Any, row: Any, ahead: Any
) -> None:  # fmt: skip
    """Compute up to two blocks of outputs for one block of rows."""
    if width == OUTPUTS:
        two(data, a, x, rows, first, row, ahead)
    else:
        one(data, a, x, rows, first, height, row, ahead)


@subroutine(apart=True)
def four(data: Any, a: Any, x: Any, first: Any, row: Any, ahead: Any) -> None:
    """Compute two blocks of outputs from ``first`` on for two full blocks of rows from ``row`` on."""
    left, stride, steps, sums = (
        a.weight + first * a.weight_stride,
        a.weight_stride,
        a.inputs // STEP,
        four_stack_tiles(),
    )
    more_left, more_x = left + TILE_ROWS * stride, x + TILE_ROWS * ELEMENT_BYTES * padded(a.inputs)
    zero_four()
    for step in range(steps):
        fetch_32(ahead + step * 2 * TILE)
        load_x(x + step * TILE, TILE_BYTES)
        load_weights(left + step * TILE_BYTES, stride)
        dot_00()
        load_more_weights(more_left + step * TILE_BYTES, stride)
        dot_10()
        load_more_x(more_x + step * TILE, TILE_BYTES)
        dot_01()
        dot_11()
    if steps * STEP < a.inputs:
        place = two_stack_tiles()
        _copy_rest(data, left, stride, a.inputs, TILE_ROWS, place)
        _copy_rest(data, more_left, stride, a.inputs, TILE_ROWS, place + TILE)
        load_x(x + steps * TILE, TILE_BYTES)
        load_more_x(more_x + steps * TILE, TILE_BYTES)
        load_weights(place, TILE_BYTES)
        load_more_weights(place + TILE, TILE_BYTES)
        dot_00()
        dot_10()
        dot_01()
        dot_11()
    store_00(sums, TILE_BYTES)
    store_10(sums + TILE, TILE_BYTES)
    store_01(sums + 2 * TILE, TILE_BYTES)
    store_11(sums + 3 * TILE, TILE_BYTES)
    for number in range(4):
        _finish(
            data, a, sums + number * TILE, TILE_ROWS, TILE_ROWS, first + number % 2 * TILE_ROWS,
            row + number // 2 * TILE_ROWS,
        )  # fmt: skip


@subroutine(apart=True)
def two(data: Any, a: Any, x: Any, rows: Any, first: Any, row: Any, ahead: Any) -> None:
    """Compute two blocks of outputs from ``first`` on for a block of rows from ``row`` on."""
    left, stride, steps, sums = a.weight + first * a.weight_stride, a.weight_stride, a.inputs // STEP, two_stack_tiles()
    more_left, pairs = left + TILE_ROWS * stride, 2 * ELEMENT_BYTES * rows
    zero_two()
    for step in range(steps):
        fetch_32(ahead + step * 2 * TILE)
        load_x(x + step * TILE_ROWS * pairs, pairs)
        load_weights(left + step * TILE_BYTES, stride)
        dot_00()
        load_more_weights(more_left + step * TILE_BYTES, stride)
        dot_10()
    if steps * STEP < a.inputs:
        place = two_stack_tiles()
        _copy_rest(data, left, stride, a.inputs, TILE_ROWS, place)
        _copy_rest(data, more_left, stride, a.inputs, TILE_ROWS, place + TILE)
        load_x(x + steps * TILE_ROWS * pairs, pairs)
        load_weights(place, TILE_BYTES)
        load_more_weights(place + TILE, TILE_BYTES)
        dot_00()
        dot_10()
    store_00(sums, 4 if rows == 1 else TILE_BYTES)
    store_10(sums + TILE, 4 if rows == 1 else TILE_BYTES)
    _finish(data, a, sums, rows, TILE_ROWS, first, row)
    _finish(data, a, sums + TILE, rows, TILE_ROWS, first + TILE_ROWS, row)


@subroutine(apart=True)
def one(data: Any, a: Any, x: Any, rows: Any, first: Any, outputs: Any, row: Any, ahead: Any) -> None:
    """Compute up to 16 outputs from ``first`` on for a block of rows from ``row`` on."""
    left, stride, steps, sums = a.weight + first * a.weight_stride, a.weight_stride, a.inputs // STEP, stack_tile()
    pairs = 2 * ELEMENT_BYTES * rows
    zero_one()
    for step in range(steps):
        fetch_16(ahead + step * TILE)
        load_x(x + step * TILE_ROWS * pairs, pairs)
        load_weights(left + step * TILE_BYTES, stride)
        dot_00()
    if steps * STEP < a.inputs:
        place = two_stack_tiles()
        _copy_rest(data, left, stride, a.inputs, outputs, place)
        load_x(x + steps * TILE_ROWS * pairs, pairs)
        load_weights(place, TILE_BYTES)
        dot_00()
    store_00(sums, 4 if rows == 1 else TILE_BYTES)
    _finish(data, a, sums, rows, outputs, first, row)


@subroutine(apart=True)
def _copy_rest(data: Any, left: Any, stride: Any, inputs: Any, outputs: Any, place: Any) -> None:
    """Copy the last elements of some rows of the weight, which are no multiple of a step, with zeros behind them."""
    whole = inputs // STEP * STEP
    for output in range(outputs):
        source, target = elements(data, left + output * stride), elements(data, place + output * TILE_BYTES)
        for i in range(STEP):
            if whole + i < inputs:
                target[i] = source[whole + i]
            else:
                put(target, i, F(0))


@subroutine(apart=True)
def _finish(data: Any, a: Any, sums: Any, rows: Any, outputs: Any, first: Any, row: Any) -> None:
    """Write sums [16, 16], or [16] of one row, as the first results of a block of rows and outputs."""
    if rows > 1:
        turn_tile(sums)
    write_results(data, a, sums, rows, outputs, first, row)


@subroutine()
def write_results(data: Any, a: Any, results: Any, rows: Any, outputs: Any, first: Any, row: Any) -> None:
    """Add float32 [rows, outputs] with stride TILE_BYTES to what a product has added, and write the sums."""
    size = itemsize(data)
    for number in range(rows):
        own = results + number * TILE_BYTES
        out = a.out + (row + number) * a.out_stride + first * size
        added = a.added + (row + number) * a.added_stride + first * size if a.added else np.int64(0)
        if outputs == TILE_ROWS:
            finish_row(data, own, added, 0, out, 0)
        else:
            for i in range(outputs):
                more = wide(elements(data, added)[i]) if added else F(0)
                put(elements(data, out), i, floats(own)[i] + more)
