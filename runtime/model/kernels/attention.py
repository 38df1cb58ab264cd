"""Attention over the KV cache: rotate queries and keys, write keys and values, then scores, softmax, weighted sum.

What attends is an item: one query head of one row. ITEMS of them, which have the same KV head, read each key and value
once, and only those columns that one of them sees: no thread computes what lies behind the last of them. In an item's
scratch lie, float32,

    [query, D] [sum of values, D] [scores, t]

The query is one of elements where those are multiplied in pairs, and its first word is overwritten with the softmax's
divisor once the scores are computed.

``kept``, beside the kernel's pointer ``data``, stands for the elements of the cache: those of activations, or codes
(``kv_codes``), which are widened in registers. The score of a key in codes is multiplied with its scale, and so is the
weight of a value. Values in codes are summed some rows at a time, so that the processor's cache still has them for the
next dims.
"""

from typing import Any

import numpy as np
from numba.core import types

from plans.dtypes import KV_SCALE_BYTES
from runtime.model.kernels.arguments import ITEMS, Attend
from runtime.model.kernels.elements import (
    LANES,
    F,
    arguments_of,
    codes,
    elements,
    exp,
    floats,
    in_codes,
    in_pairs,
    itemsize,
    numbers,
    put,
    wide,
)
from runtime.model.kernels.inner_loops import dots, step_of, weigh
from runtime.model.kernels.subroutines import subroutine
from runtime.model.kernels.team import barrier, thread, threads

KEYS = 4
"""Columns whose keys are multiplied at once."""
VECTORS = 4 if LANES == 16 else 2
"""Vectors of a value that are summed at once for ITEMS items: their sums fill half of the registers."""
BLOCK = 64
"""Columns of a bias that are looked at together for one that is seen."""
UNITS = 4
"""Least units of ITEMS items for each thread: of fewer, each item is a unit, so that threads have equally many."""
UNIT = 2.0**30
"""Softmax weights, at most 1, are counted in 1 / UNIT when they are summed: whole numbers have one sum in any order."""
CODED_ROWS = 128
"""Rows of values in codes that are summed for all dims before the next."""
ROUNDING = 1.5 * 2.0**23
"""A float32 of which the last place is 1: a sum with a small number is rounded to the nearest whole one."""
LEAST_SCALE, LARGEST = 2.0**-126, 2.0**127
"""Least scale of codes, and the largest value that is stored: as in ``kv_codes``."""

key_1, key_4 = (dots(keys, 1, apart=True) for keys in (1, KEYS))
key_1_4, key_4_4 = (dots(keys, ITEMS, apart=True) for keys in (1, KEYS))
weigh_1, weigh_4, weigh_1_4, weigh_4_4 = weigh(1, 1), weigh(VECTORS, 1), weigh(1, ITEMS), weigh(VECTORS, ITEMS)
attend_arguments = arguments_of(Attend)


def attend(data: Any) -> None:
    """Rotate qkv in place, write its keys and values to the cache, and attend; arguments: ``Attend``."""
    a = attend_arguments(data)
    me, team = np.int64(thread()), np.int64(threads())
    rotate_and_write(data, data, a, me, team)
    barrier()
    attend_all(data, data, a, me, team)


def attend_int8(data: Any) -> None:
    """Do what ``attend`` does, with a cache of codes; arguments: ``Attend``."""
    a = attend_arguments(data)
    me, team, kept = np.int64(thread()), np.int64(threads()), codes(a.seen)
    rotate_and_write(data, kept, a, me, team)
    barrier()
    attend_all(data, kept, a, me, team)


@subroutine(apart=True)
def rotate_and_write(data: Any, kept: Any, a: Any, me: Any, team: Any) -> None:
    """Rotate the queries and keys of this thread's rows, and write keys and values to the cache."""
    for row in range(me, a.rows, team):
        _rotate_and_write(data, kept, a, row)


@subroutine(apart=True)
def attend_all(data: Any, kept: Any, a: Any, me: Any, team: Any) -> None:
    """Attend with this thread's units of items, once all keys and values are written."""
    group = a.query_heads // a.kv_heads  # query heads of a KV head
    scratch, items, sequences = (
        a.scratch + me * ITEMS * _item_bytes(a),
        a.rows_per_sequence * group,
        a.rows // a.rows_per_sequence,
    )
    most = ITEMS if sequences * a.kv_heads * ((items + ITEMS - 1) // ITEMS) >= UNITS * team else 1
    unit = 0
    for sequence in range(sequences):
        for kv_head in range(a.kv_heads):
            first = 0
            while first < items:
                count = ITEMS if most == ITEMS and first + 2 < items else 1
                if unit % team == me:
                    _attend_items(data, kept, a, sequence, kv_head, first, count, scratch)
                first += count
                unit += 1


@subroutine(types.int64)
def _item_bytes(a: Any) -> Any:
    """Return the bytes of an item's scratch."""
    return (2 * a.head_dim + a.columns) * 4


@subroutine(types.int64)
def _scale_offset(head_dim: Any) -> Any:
    """Return the bytes from the first code of a head to its scale."""
    return (head_dim + KV_SCALE_BYTES - 1) // KV_SCALE_BYTES * KV_SCALE_BYTES


@subroutine(types.int64)
def _cached_bytes(kept: Any, head_dim: Any) -> Any:
    """Return the bytes of a head in a row of the cache, ``plans.dtypes.cached_width`` of them in codes."""
    if in_codes(kept):
        return _scale_offset(head_dim) + KV_SCALE_BYTES
    return head_dim * itemsize(kept)


@subroutine()
def _rotate_and_write(data: Any, kept: Any, a: Any, row: Any) -> None:
    """Rotate a row's queries and keys; write its keys and values to the cache."""
    head_bytes = a.head_dim * itemsize(data)
    source = a.qkv + row * (a.query_heads + 2 * a.kv_heads) * head_bytes
    cosines = a.cosines + row * head_bytes
    for head in range(a.query_heads + a.kv_heads):
        _rotate(data, source + head * head_bytes, cosines, cosines + a.sines_offset, a.head_dim)
    if a.written_index:
        target = a.all_rows + numbers(a.written_index)[row] * a.row_stride
    else:
        n = a.rows_per_sequence
        target = a.written + row // n * a.sequence_stride + row % n * a.row_stride
    if in_codes(kept):
        for head in range(2 * a.kv_heads):
            computed = source + (a.query_heads + head) * head_bytes
            _encode(data, computed, target + head * _cached_bytes(kept, a.head_dim), a.head_dim)
    else:
        stored, values = elements(data, target), elements(data, source + a.query_heads * head_bytes)
        for i in range(2 * a.kv_heads * a.head_dim):
            stored[i] = values[i]


@subroutine(apart=True, fast=frozenset({"contract"}))
def _encode(data: Any, source: Any, target: Any, head_dim: Any) -> None:
    """Write a key or a value as codes with their scale, as ``kv_codes`` has it."""
    x, code, scale = elements(data, source), codes(target), floats(target + _scale_offset(head_dim))
    most, strange = F(0), 0
    for i in range(head_dim):
        size = abs(wide(x[i]))
        most = size if size > most else most
        strange += 0 if size == size else 1
    if strange:
        for i in range(head_dim):
            code[i] = np.int8(0)
        scale[0] = F(np.nan)
    else:
        unit = max(min(most, F(LARGEST)) / F(127), F(LEAST_SCALE))
        for i in range(head_dim):
            near = min(max(wide(x[i]) / unit, F(-127)), F(127))
            code[i] = np.int8(np.int32((near + F(ROUNDING)) - F(ROUNDING)))
        scale[0] = unit


@subroutine()
def _rotate(data: Any, head: Any, cosine: Any, sine: Any, head_dim: Any) -> None:
    """Rotate one head in place: x * cos + swap(x) * (-sin, sin)."""
    x, cosines, sines, half = elements(data, head), elements(data, cosine), elements(data, sine), head_dim // 2
    for i in range(half):
        low, high = wide(x[i]), wide(x[i + half])
        put(x, i, low * wide(cosines[i]) + high * wide(sines[i]))
        put(x, i + half, high * wide(cosines[i + half]) + low * wide(sines[i + half]))


@subroutine(apart=True)
def _attend_items(
    data: Any, kept: Any, a: Any, sequence: Any, kv_head: Any, first: Any, count: Any, scratch: Any
) -> None:
    """Attend with ``count`` items from ``first`` on: one, or ITEMS, the last one repeated where fewer are left.

    Item i of a sequence is query head i % group of the KV head in its row i // group.
    """
    head_bytes, group, own = a.head_dim * itemsize(data), a.query_heads // a.kv_heads, _item_bytes(a)
    last, first_row = a.rows_per_sequence * group - 1, sequence * a.rows_per_sequence
    all_heads = a.query_heads + 2 * a.kv_heads
    queries = a.qkv + (first_row * all_heads + kv_head * group) * head_bytes
    cached = _cached_bytes(kept, a.head_dim)
    keys = a.seen + sequence * a.sequence_stride + kv_head * cached
    bias = a.bias + sequence * a.bias_sequence_stride
    out = a.out + (first_row * a.query_heads + kv_head * group) * head_bytes
    sums, scores, seen = scratch + 4 * a.head_dim, scratch + 8 * a.head_dim, a.tree_columns
    for number in range(count):
        item = min(first + number, last)
        source = queries + item // group * all_heads * head_bytes + item % group * head_bytes
        _copy_query(data, kept, source, scratch + number * own, a.head_dim)
        if number == 0 or item % group == 0:
            seen = max(seen, _last_seen(data, bias + item // group * a.bias_row_stride, a.columns))
    _multiply_keys(kept, a, scratch, keys, scores, count, seen)
    scale, cap = F(1) / np.sqrt(F(a.head_dim)), F(0)
    if a.factors:
        scale, cap = floats(a.factors)[0], floats(a.factors)[1]
    for number in range(count):
        item, sink = min(first + number, last), F(-np.inf)
        row_bias = bias + item // group * a.bias_row_stride
        if a.sinks:
            sink = wide(elements(data, a.sinks)[kv_head * group + item % group])
        divisor = _soften(data, scores + number * own, row_bias, seen, scale, cap, sink)
        floats(scratch + number * own)[0] = divisor  # the query has been used
    _sum_values(kept, a, scores, keys + a.kv_heads * cached, sums, count, seen, sequence)
    for number in range(count):
        item, divisor, total = min(first + number, last), floats(scratch + number * own)[0], floats(sums + number * own)
        target = elements(data, out + item // group * a.query_heads * head_bytes + item % group * head_bytes)
        for i in range(a.head_dim):
            put(target, i, total[i] / divisor)


@subroutine()
def _copy_query(data: Any, kept: Any, source: Any, target: Any, head_dim: Any) -> None:
    """Copy a query, as float32 unless elements are multiplied in pairs."""
    query = elements(data, source)
    if in_pairs(kept):
        copy = elements(data, target)
        for i in range(head_dim):
            copy[i] = query[i]
    else:
        widened = floats(target)
        for i in range(head_dim):
            widened[i] = wide(query[i])


@subroutine(types.int64, fast=frozenset())
def _last_seen(data: Any, bias: Any, columns: Any) -> Any:
    """Return a number of columns, the first ones, behind which a bias shows nothing: a multiple of BLOCK, or all."""
    added, end = elements(data, bias), columns
    while end > 0:
        start = (end - 1) // BLOCK * BLOCK
        shown = 0
        for column in range(start, end):
            shown += 1 if wide(added[column]) > F(-3e38) else 0
        if shown:
            break
        end = start
    return end


@subroutine(types.float32)
def _soften(data: Any, scores: Any, bias: Any, columns: Any, scale: Any, cap: Any, sink: Any) -> Any:
    """Replace scores by exp(scale * score + bias - the maximum); return the sum, which is the same in any order.

    ``cap``: of scale * score, 0: none. ``sink``: one more score in maximum and sum, -inf: none.
    """
    score, added, high = floats(scores), elements(data, bias), sink
    if cap > F(0):
        for column in range(columns):
            score[column] = cap * _tanh(score[column] * scale / cap)
        scale = F(1)
    for column in range(columns):
        value = score[column] * scale + wide(added[column])
        score[column] = value
        high = max(high, value)
    base, total = (high if high > F(-3e38) else F(0)), np.int64(0)
    if sink > F(-3e38):
        total += np.int64(np.int32(exp(sink - base) * F(UNIT) + F(0.5)))
    for column in range(columns):
        weight = exp(score[column] - base)
        score[column] = weight
        total += np.int64(np.int32(weight * F(UNIT) + F(0.5)))
    return F(total) / F(UNIT)


@subroutine(types.float32)
def _tanh(x: Any) -> Any:
    """Return the hyperbolic tangent of a float32, within 4 units in the last place; near 0 by its series."""
    shrunk, square = exp(F(-2) * abs(x)), x * x
    large = (F(1) - shrunk) / (F(1) + shrunk)
    p = square * F(-17 / 315) + F(2 / 15) + square * square * F(62 / 2835)
    small = x - x * square * (F(1 / 3) - square * p)
    return small if abs(x) < F(0.25) else (large if x > F(0) else -large)


@subroutine()
def _multiply_keys(kept: Any, a: Any, queries: Any, keys: Any, scores: Any, count: Any, columns: Any) -> None:
    """Compute the scores of one item, or of ITEMS: query · key for every column."""
    own, stride, rest, column = _item_bytes(a), a.row_stride, a.head_dim % step_of(kept), 0
    length = a.head_dim - rest
    while column < columns:
        few, first, out = (KEYS if column + KEYS <= columns else 1), keys + column * stride, scores + 4 * column
        if length == 0:
            for item in range(count):
                for number in range(few):
                    floats(out + item * own)[number] = F(0)
        elif count == 1 and few == KEYS:
            key_4(kept, first, stride, queries, own, out, own, length, 0)
        elif count == 1:
            key_1(kept, first, stride, queries, own, out, own, length, 0)
        elif few == KEYS:
            key_4_4(kept, first, stride, queries, own, out, own, length, 0)
        else:
            key_1_4(kept, first, stride, queries, own, out, own, length, 0)
        if rest:
            for item in range(count):
                for number in range(few):
                    _add_rest(
                        kept,
                        first + number * stride,
                        queries + item * own,
                        out + item * own + 4 * number,
                        length,
                        a.head_dim,
                    )
        if in_codes(kept):
            _multiply_scales(out, own, count, first + _scale_offset(a.head_dim), stride, few)
        column += few


@subroutine()
def _multiply_scales(factors: Any, own: Any, count: Any, scales: Any, stride: Any, rows: Any) -> None:
    """Multiply scores or weights of some rows, of one item or of ITEMS, with the scales of these rows."""
    for item in range(count):
        for number in range(rows):
            floats(factors + item * own)[number] *= floats(scales + number * stride)[0]


@subroutine()
def _add_rest(kept: Any, key: Any, query: Any, score: Any, first: Any, head_dim: Any) -> None:
    """Add the products of the last elements of a head, which are no multiple of a step, to a score."""
    keys, total = elements(kept, key), floats(score)[0]
    for i in range(first, head_dim):
        if in_pairs(kept):
            total += wide(elements(kept, query)[i]) * wide(keys[i])
        else:
            total += floats(query)[i] * wide(keys[i])
    floats(score)[0] = total


@subroutine()
def _sum_values(
    kept: Any, a: Any, weights: Any, values: Any, sums: Any, count: Any, columns: Any, sequence: Any
) -> None:
    """Sum the values of all columns by their weights, for one item or for ITEMS.

    The columns of the sequence come first, from that with its oldest position on, then those of the tree, whose rows
    lie before them in the cache: the order that they will have once they are committed, so that the sum of a tree node
    has the bits of plain decoding.
    """
    own, tree = _item_bytes(a), a.tree_columns
    first = min(numbers(a.oldest)[sequence], columns) if a.oldest else tree
    for item in range(count):
        for i in range(a.head_dim):
            floats(sums + item * own)[i] = F(0)
    if first < columns:
        _add_values(kept, a, weights + 4 * first, values + first * a.row_stride, sums, count, columns - first)
    if tree < first:
        _add_values(kept, a, weights + 4 * tree, values + tree * a.row_stride, sums, count, first - tree)
    if tree > 0:
        _add_values(kept, a, weights, values, sums, count, tree)


@subroutine()
def _add_values(kept: Any, a: Any, weights: Any, values: Any, sums: Any, count: Any, rows: Any) -> None:
    """Add ``rows`` rows of values by their weights to the sums of one item, or of ITEMS."""
    if in_codes(kept):
        own, row = _item_bytes(a), 0
        while row < rows:
            some, place = min(CODED_ROWS, rows - row), values + row * a.row_stride
            _multiply_scales(weights + 4 * row, own, count, place + _scale_offset(a.head_dim), a.row_stride, some)
            _add_some(kept, a, weights + 4 * row, place, sums, count, some)
            row += some
    else:
        _add_some(kept, a, weights, values, sums, count, rows)


@subroutine()
def _add_some(kept: Any, a: Any, weights: Any, values: Any, sums: Any, count: Any, rows: Any) -> None:
    """Do what ``_add_values`` does, by weights that have the scales of values in codes."""
    start, own, stride = 0, _item_bytes(a), a.row_stride
    while start < a.head_dim:
        address, total, left = values + start * itemsize(kept), sums + 4 * start, a.head_dim - start
        if left >= VECTORS * LANES:
            if count == 1:
                weigh_4(kept, address, stride, weights, own, total, own, rows)
            else:
                weigh_4_4(kept, address, stride, weights, own, total, own, rows)
            start += VECTORS * LANES
        elif left >= LANES:
            if count == 1:
                weigh_1(kept, address, stride, weights, own, total, own, rows)
            else:
                weigh_1_4(kept, address, stride, weights, own, total, own, rows)
            start += LANES
        else:
            for item in range(count):
                _add_one(kept, weights + item * own, address, stride, total + item * own, rows)
            start += 1


@subroutine(fast=frozenset({"contract"}))
def _add_one(kept: Any, weights: Any, values: Any, stride: Any, total: Any, rows: Any) -> None:
    """Add one element of each row by its weight, in the order of the rows."""
    value, weight = floats(total)[0], floats(weights)
    for row in range(rows):
        value += weight[row] * wide(elements(kept, values + row * stride)[0])
    floats(total)[0] = value
