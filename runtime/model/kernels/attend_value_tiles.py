"""Sums of bfloat16 values by their weights, which are rounded to bfloat16, by tiles of AMX.

A tile multiplies the weights of up to 16 items for 32 columns, [items, 32], with 16 dims of these columns, [16 pairs of
columns, 16 dims, 2], which are packed for it. ``tiles.dot`` adds the products of even and of odd columns apart, so the
sum of a row depends on which of the 32 places each column has: it is that of the row of the cache where its position is
or will be, counted from the first one of the sequence. So places of the tree's columns are those that follow what is
committed: each row has its own, and products of their own behind those that all items have in common.

    sequence   blocks of 32 rows of the cache, from that with the oldest position on, around the ring if there is one
    tree       the last block, once more with what is committed in it, then those behind it

A block in which an item sees nothing adds zeros.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from runtime.model.kernels.attend_scratch import head_bytes, most_items, score_bytes, weight_bytes
from runtime.model.kernels.elements import (
    BFLOAT,
    F32,
    I16,
    I64,
    F,
    elements,
    floats,
    numbers,
    octets,
    pointer,
    put,
    reserved,
    wide,
)
from runtime.model.kernels.inner_loops import repeated
from runtime.model.kernels.softmax import HIDDEN
from runtime.model.kernels.subroutines import subroutine
from runtime.model.kernels.tiles import (
    COLUMNS_AT,
    PALETTE,
    ROWS_AT,
    STEP,
    TILE,
    TILE_BYTES,
    TILE_ROWS,
    dot,
    load_configuration,
    load_tile,
    release_tiles,
    stack_tile,
    store_tile,
    zero_tiles,
)

ELEMENT_BYTES = 2
DIMS = 4 * TILE_ROWS
"""Dims whose sums are in tiles at once."""
load_0, load_1, load_2, load_3 = (load_tile(tile) for tile in range(4))
store_0, store_1, store_2, store_3 = (store_tile(tile) for tile in range(4))
load_weights, load_values, load_more_values, load_last_values = (load_tile(tile) for tile in (4, 5, 6, 7))
dot_0, dot_1, dot_2, dot_3 = dot(0, 4, 5), dot(1, 4, 6), dot(2, 4, 7), dot(3, 4, 5)
zero_sums = zero_tiles(4)
packed_values, padded_values = reserved(4 * TILE // 4), reserved(TILE // 4)
moved_weights, tail_weights = reserved(TILE // 4), reserved(TILE // 4)
column_addresses = reserved(2 * STEP)


@intrinsic  # type: ignore[untyped-decorator]
def _narrow(typing: Any, weights: Any, out: Any, vectors: Any) -> Any:
    """Round ``vectors`` times 16 float32 to bfloat16."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        weights, out, vectors = args

        def narrow(number: Any, _: Any) -> list[Any]:
            source = pointer(builder, builder.add(weights, builder.mul(number, I64(4 * TILE_ROWS))))
            target = pointer(builder, builder.add(out, builder.mul(number, I64(ELEMENT_BYTES * TILE_ROWS))))
            value = builder.load(source, typ=ir.VectorType(F32, TILE_ROWS), align=4)
            builder.store(builder.fptrunc(value, ir.VectorType(BFLOAT, TILE_ROWS)), target, align=ELEMENT_BYTES)
            return []

        repeated(builder, I64(0), vectors, [], narrow)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), code


def _interleaved(vectors: int) -> Any:
    """Return an intrinsic that stores pairs of the elements of two columns, ``vectors`` times 16 dims, a tile apart."""

    @intrinsic  # type: ignore[untyped-decorator]
    def interleave(typing: Any, first: Any, second: Any, target: Any) -> Any:
        def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            count = vectors * TILE_ROWS
            row = ir.VectorType(I16, count)
            left, right = (builder.load(pointer(builder, a), typ=row, align=ELEMENT_BYTES) for a in args[:2])
            for number in range(vectors):
                dims = range(number * TILE_ROWS, (number + 1) * TILE_ROWS)
                places = ir.Constant(ir.VectorType(ir.IntType(32), STEP), [i for d in dims for i in (d, d + count)])
                both = builder.shuffle_vector(left, right, places)
                builder.store(both, pointer(builder, builder.add(args[2], I64(number * TILE))), align=4)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), code

    return interleave


interleave_32, interleave_16 = _interleaved(2), _interleaved(1)


@subroutine(apart=True)
def _pack(kept: Any, table: Any, first: Any, dims: Any, out: Any) -> None:
    """Pack up to DIMS dims from ``first`` on of STEP columns; ``table``: address of their int64 addresses."""
    columns, start = numbers(table), 0
    while start < dims:
        offset, target = (first + start) * ELEMENT_BYTES, out + start // TILE_ROWS * TILE
        if start + 2 * TILE_ROWS <= dims:
            for pair in range(TILE_ROWS):
                place = target + pair * TILE_BYTES
                interleave_32(columns[2 * pair] + offset, columns[2 * pair + 1] + offset, place)
            start += 2 * TILE_ROWS
        elif start + TILE_ROWS <= dims:
            for pair in range(TILE_ROWS):
                place = target + pair * TILE_BYTES
                interleave_16(columns[2 * pair] + offset, columns[2 * pair + 1] + offset, place)
            start += TILE_ROWS
        else:
            copies = padded_values()
            for column in range(STEP):
                source = elements(kept, columns[column] + offset)
                copy = elements(kept, copies + column * ELEMENT_BYTES * TILE_ROWS)
                for i in range(TILE_ROWS):
                    if start + i < dims:
                        copy[i] = source[i]
                    else:
                        put(copy, i, F(0))
            for pair in range(TILE_ROWS):
                left = copies + 2 * pair * ELEMENT_BYTES * TILE_ROWS
                interleave_16(left, left + ELEMENT_BYTES * TILE_ROWS, target + pair * TILE_BYTES)
            start += TILE_ROWS


@subroutine(apart=True)
def _configure(items: Any) -> None:
    """Configure tiles of sums and weights of so many items, and of values."""
    place = stack_tile()
    word = octets(place)
    for i in range(TILE_BYTES):
        word[i] = 0
    word[0] = PALETTE
    for tile in range(8):
        word[COLUMNS_AT + 2 * tile] = TILE_BYTES
        word[ROWS_AT + tile] = items if tile < 5 else TILE_ROWS
    load_configuration(place)


@subroutine()
def _multiply(weights: Any, stride: Any, values: Any, tiles: Any) -> None:
    """Add to the first ``tiles`` tiles of sums the products of weights and packed values."""
    load_weights(weights, stride)
    load_values(values, TILE_BYTES)
    dot_0()
    if tiles > 1:
        load_more_values(values + TILE, TILE_BYTES)
        dot_1()
    if tiles > 2:
        load_last_values(values + 2 * TILE, TILE_BYTES)
        dot_2()
    if tiles > 3:
        load_values(values + 3 * TILE, TILE_BYTES)
        dot_3()


@subroutine()
def _store(sums: Any, stride: Any, tiles: Any) -> None:
    store_0(sums, stride)
    if tiles > 1:
        store_1(sums + TILE_BYTES, stride)
    if tiles > 2:
        store_2(sums + 2 * TILE_BYTES, stride)
    if tiles > 3:
        store_3(sums + 3 * TILE_BYTES, stride)


@subroutine()
def _load(sums: Any, stride: Any, tiles: Any) -> None:
    load_0(sums, stride)
    if tiles > 1:
        load_1(sums + TILE_BYTES, stride)
    if tiles > 2:
        load_2(sums + 2 * TILE_BYTES, stride)
    if tiles > 3:
        load_3(sums + 3 * TILE_BYTES, stride)


@subroutine()
def _clear(kept: Any, start: Any, count: Any) -> None:
    """Fill elements with zeros."""
    place = elements(kept, start)
    for i in range(count):
        put(place, i, F(0))


@subroutine(types.int64)
def _blocks(slots: Any) -> Any:
    """Return the blocks that so many columns lie in."""
    return (slots + STEP - 1) // STEP


@subroutine(apart=True)
def _narrow_rows(
    kept: Any, a: Any, scores: Any, weights: Any, count: Any, tree: Any, slots: Any, oldest: Any
) -> None:  # fmt: skip
    """Round the weights of the sequence's columns for ``count`` items, in their places, with zeros around them."""
    before = oldest % STEP
    blocks = _blocks(slots) - oldest // STEP
    for item in range(count):
        row, out = scores + item * score_bytes(a.columns) + 4 * tree, weights + item * weight_bytes(a.columns)
        turned = out + blocks * STEP * ELEMENT_BYTES
        _clear(kept, out, before)
        _narrow(row + 4 * oldest, out + before * ELEMENT_BYTES, (slots - oldest + TILE_ROWS - 1) // TILE_ROWS)
        filled = before + slots - oldest
        _clear(kept, out + filled * ELEMENT_BYTES, blocks * STEP - filled)
        if oldest:
            _narrow(row, turned, (oldest + TILE_ROWS - 1) // TILE_ROWS)
            _clear(kept, turned + oldest * ELEMENT_BYTES, _blocks(oldest) * STEP - oldest)


@subroutine(types.int64)
def _seen_nodes(kept: Any, bias: Any, tree: Any) -> Any:
    """Return how many columns of the tree a row sees."""
    count, added = 0, elements(kept, bias)
    for column in range(tree):
        if wide(added[column]) > F(HIDDEN):
            count += 1
    return count


@subroutine(types.int64)
def _first_slot(kept: Any, a: Any, bias: Any, row: Any, nodes: Any, tree: Any, slots: Any) -> Any:
    """Return the row of the cache, behind the tree's, that the first of a row's ``nodes`` will be committed to."""
    if a.oldest:
        return max(numbers(a.positions)[row] + 1 - nodes, 0) % a.ring
    added, end = elements(kept, bias), slots
    while end > 0 and not wide(added[tree + end - 1]) > F(HIDDEN):
        end -= 1
    return end


@subroutine(apart=True)
def _move(
    kept: Any, a: Any, weights: Any, moved: Any, first: Any, last: Any, start: Any, oldest: Any, turned: Any, slots: Any
) -> None:  # fmt: skip
    """Move the weights of items ``first`` … ``last`` - 1 in the block of ``start``, before it, to ``moved``."""
    for slot in range(start - start % STEP, start):
        if slot < (oldest if oldest else slots):
            for item in range(first, last):
                own = elements(kept, weights + item * weight_bytes(a.columns))
                elements(kept, moved + item * TILE_BYTES)[slot % STEP] = own[turned + slot]
                put(own, turned + slot, F(0))


@subroutine(apart=True)
def _add_sequence(
    kept: Any, a: Any, weights: Any, values: Any, sums: Any, slots: Any, oldest: Any
) -> None:  # fmt: skip
    """Compute the sums of all items over the blocks of the sequence; ``values``: of its first column."""
    table, packed = column_addresses(), packed_values()
    column, begin = numbers(table), oldest // STEP
    blocks = _blocks(slots) - begin
    for first in range(0, a.head_dim, DIMS):
        dims = min(DIMS, a.head_dim - first)
        tiles = (dims + TILE_ROWS - 1) // TILE_ROWS
        zero_sums()
        for block in range(blocks + _blocks(oldest)):
            place = (begin + block if block < blocks else block - blocks) * STEP
            low, high = (oldest, slots) if block < blocks else (np.int64(0), oldest)
            for number in range(STEP):
                column[number] = values + min(max(low, min(place + number, high - 1)), slots - 1) * a.row_stride
            _pack(kept, table, first, dims, packed)
            _multiply(weights + block * TILE_BYTES, weight_bytes(a.columns), packed, tiles)
        _store(sums + 4 * first, head_bytes(a.head_dim), tiles)


@subroutine(apart=True)
def _add_nodes(
    kept: Any, a: Any, scores: Any, moved: Any, values: Any, sums: Any, bias: Any, count: Any, first: Any, last: Any,
    nodes: Any, start: Any, tree: Any, slots: Any,
) -> None:  # fmt: skip
    """Add the values of the ``nodes`` that a row sees, whose items are ``first`` … ``last`` - 1 of ``count``.

    ``start``: place of the first of them; in its block there are also ``moved`` weights.
    """
    table, packed, weights, added = column_addresses(), packed_values(), tail_weights(), elements(kept, bias)
    columns, node, done, slot, begins = numbers(table), 0, 0, start, True
    while done < nodes:
        _clear(kept, weights, count * STEP)
        for number in range(STEP):
            columns[number] = values  # of the first column of the tree, where nothing else is
        if begins:
            for place in range(start - start % STEP, min(start, slots)):
                columns[place % STEP] = values + (tree + place) * a.row_stride
            for item in range(first, last):
                own, copied = elements(kept, moved + item * TILE_BYTES), elements(kept, weights + item * TILE_BYTES)
                for place in range(start % STEP):
                    copied[place] = own[place]
            begins = False
        ends = False
        while done < nodes and not ends:
            while not wide(added[node]) > F(HIDDEN):
                node += 1
            columns[slot % STEP] = values + node * a.row_stride
            for item in range(first, last):
                weight = floats(scores + item * score_bytes(a.columns))[node]
                put(elements(kept, weights + item * TILE_BYTES), slot % STEP, weight)
            node, done, slot = node + 1, done + 1, slot + 1
            ends = slot % STEP == 0
            if a.oldest and slot == a.ring:
                slot, ends = 0, True
        for begin in range(0, a.head_dim, DIMS):
            dims = min(DIMS, a.head_dim - begin)
            tiles = (dims + TILE_ROWS - 1) // TILE_ROWS
            _pack(kept, table, begin, dims, packed)
            _load(sums + 4 * begin, head_bytes(a.head_dim), tiles)
            _multiply(weights, TILE_BYTES, packed, tiles)
            _store(sums + 4 * begin, head_bytes(a.head_dim), tiles)


@subroutine(apart=True)
def sum_by_tiles(
    kept: Any, a: Any, scores: Any, values: Any, sums: Any, sequence: Any, first: Any, count: Any, seen: Any
) -> None:  # fmt: skip
    """Do what ``attend_values.sum_values`` does."""
    group, tree = a.query_heads // a.kv_heads, min(a.tree_columns, seen)
    slots, oldest, moved = seen - tree, np.int64(0), moved_weights()
    if a.oldest:
        oldest = min(numbers(a.oldest)[sequence] - a.tree_columns, slots)
    weights = scores + most_items(a.columns) * score_bytes(a.columns)
    turned = (_blocks(slots) - oldest // STEP) * STEP if oldest else np.int64(0)
    biases, rows = a.bias + sequence * a.bias_sequence_stride, sequence * a.rows_per_sequence
    _narrow_rows(kept, a, scores, weights, count, tree, slots, oldest)
    if tree:
        _clear(kept, moved, TILE_ROWS * STEP)
        item = 0
        while item < count:
            row = (first + item) // group
            last, bias = min(count, (row + 1) * group - first), biases + row * a.bias_row_stride
            nodes = _seen_nodes(kept, bias, tree)
            if nodes:
                start = _first_slot(kept, a, bias, rows + row, nodes, tree, slots)
                _move(kept, a, weights, moved, item, last, start, oldest, turned, slots)
            item = last
    _configure(count)
    _add_sequence(kept, a, weights, values + tree * a.row_stride, sums, slots, oldest)
    if tree:
        item = 0
        while item < count:
            row = (first + item) // group
            last, bias = min(count, (row + 1) * group - first), biases + row * a.bias_row_stride
            nodes = _seen_nodes(kept, bias, tree)
            if nodes:
                start = _first_slot(kept, a, bias, rows + row, nodes, tree, slots)
                _add_nodes(kept, a, scores, moved, values, sums, bias, count, item, last, nodes, start, tree, slots)
            item = last
    release_tiles()
