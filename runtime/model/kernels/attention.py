"""Attention over the KV cache: rotate queries and keys, write keys and values, then scores, softmax, weighted sum.

A thread has whole KV heads with the query heads that read them, so that no thread waits for another. What attends is an
item: one query head of one row. ITEMS of them read each key and value once. In an item's scratch lie, float32,

    [query, D] [sum of values, D] [scores, t]

and the first of the query is overwritten with the softmax's divisor once the scores are computed.
"""

from typing import Any

import numpy as np
from numba import njit

from runtime.model.kernels.arguments import Attend
from runtime.model.kernels.elements import (
    FLOATING,
    F,
    arguments_of,
    elements,
    exp,
    floats,
    itemsize,
    numbers,
    put,
    wide,
)
from runtime.model.kernels.inner_loops import dots, weigh
from runtime.model.kernels.team import thread, threads

KEY_LANES = 8
"""Partial sums of a query's product with a key."""
ITEMS = 4
"""Items that attend to a KV head together."""
UNIT = 2.0**30
"""Softmax weights, at most 1, are counted in 1 / UNIT when they are summed: whole numbers have one sum in any order."""

key_1, key_4 = (dots(keys, 1, KEY_LANES, 0) for keys in (1, 4))
key_1_4, key_2_4 = (dots(keys, ITEMS, KEY_LANES, 0) for keys in (1, 2))
weigh_8, weigh_32 = (weigh(lanes, 1) for lanes in (8, 32))
weigh_8_4, weigh_16_4, weigh_24_4 = (weigh(lanes, ITEMS) for lanes in (8, 16, 24))
attend_arguments = arguments_of(Attend)


def attend(data: Any) -> None:
    """Rotate qkv in place, write its keys and values to the cache, and attend; arguments: ``Attend``."""
    a = attend_arguments(data)
    me, team = np.int64(thread()), np.int64(threads())
    group = a.query_heads // a.kv_heads  # query heads of a KV head
    scratch, items = a.scratch + me * ITEMS * _item_bytes(a), a.rows_per_sequence * group
    for kv_head in range(me, a.kv_heads, team):
        for row in range(a.rows):
            _rotate_and_write(data, a, kv_head, row)
        for sequence in range(a.rows // a.rows_per_sequence):
            first = 0
            while first < items:
                count = ITEMS if first + 2 < items else 1
                _attend_items(data, a, sequence, kv_head, first, count, scratch)
                first += count


@njit  # type: ignore[untyped-decorator]
def _item_bytes(a: Any) -> Any:
    """Return the bytes of an item's scratch."""
    return (2 * a.head_dim + a.columns) * 4


@njit(fastmath=FLOATING, error_model="numpy")  # type: ignore[untyped-decorator]
def _rotate_and_write(data: Any, a: Any, kv_head: Any, row: Any) -> None:
    """Rotate a row's query heads of a KV head and its key; write key and value to the cache."""
    head_bytes, group = a.head_dim * itemsize(data), a.query_heads // a.kv_heads
    source = a.qkv + row * (a.query_heads + 2 * a.kv_heads) * head_bytes
    cosines = a.cosines + row * head_bytes
    for query_head in range(kv_head * group, (kv_head + 1) * group):
        _rotate(data, source + query_head * head_bytes, cosines, cosines + a.sines_offset, a.head_dim)
    _rotate(data, source + (a.query_heads + kv_head) * head_bytes, cosines, cosines + a.sines_offset, a.head_dim)
    if a.written_index:
        target = a.all_rows + numbers(a.written_index)[row] * a.row_stride
    else:
        n = a.rows_per_sequence
        target = a.written + row // n * a.sequence_stride + row % n * a.row_stride
    for key_or_value in range(kv_head, 2 * a.kv_heads, a.kv_heads):
        kept = elements(data, target + key_or_value * head_bytes)
        computed = elements(data, source + (a.query_heads + key_or_value) * head_bytes)
        for i in range(a.head_dim):
            kept[i] = computed[i]


@njit(fastmath=FLOATING, error_model="numpy")  # type: ignore[untyped-decorator]
def _rotate(data: Any, head: Any, cosine: Any, sine: Any, head_dim: Any) -> None:
    """Rotate one head in place: x * cos + swap(x) * (-sin, sin)."""
    x, cosines, sines, half = elements(data, head), elements(data, cosine), elements(data, sine), head_dim // 2
    for i in range(half):
        low, high = wide(x[i]), wide(x[i + half])
        put(x, i, low * wide(cosines[i]) + high * wide(sines[i]))
        put(x, i + half, high * wide(cosines[i + half]) + low * wide(sines[i + half]))


@njit(fastmath=FLOATING, error_model="numpy")  # type: ignore[untyped-decorator]
def _attend_items(data: Any, a: Any, sequence: Any, kv_head: Any, first: Any, count: Any, scratch: Any) -> None:
    """Attend with ``count`` items from ``first`` on: one, or ITEMS, the last one repeated where fewer are left.

    Item i of a sequence is query head i % group of the KV head in its row i // group.
    """
    head_bytes, group, own = a.head_dim * itemsize(data), a.query_heads // a.kv_heads, _item_bytes(a)
    last, first_row = a.rows_per_sequence * group - 1, sequence * a.rows_per_sequence
    all_heads = a.query_heads + 2 * a.kv_heads
    queries = a.qkv + (first_row * all_heads + kv_head * group) * head_bytes
    keys = a.seen + sequence * a.sequence_stride + kv_head * head_bytes
    bias = a.bias + sequence * a.bias_sequence_stride
    out = a.out + (first_row * a.query_heads + kv_head * group) * head_bytes
    sums, scores = scratch + 4 * a.head_dim, scratch + 8 * a.head_dim
    scale = F(1) / np.sqrt(F(a.head_dim))
    for number in range(count):
        item, query = min(first + number, last), floats(scratch + number * own)
        source = elements(data, queries + item // group * all_heads * head_bytes + item % group * head_bytes)
        for i in range(a.head_dim):
            query[i] = wide(source[i]) * scale
    _multiply_keys(data, a, scratch, keys, scores, count)
    for number in range(count):
        item = min(first + number, last)
        divisor = _soften(data, scores + number * own, bias + item // group * a.bias_row_stride, a.columns)
        floats(scratch + number * own)[0] = divisor  # the query has been used
    _sum_values(data, a, scores, keys + a.kv_heads * head_bytes, sums, count)
    for number in range(count):
        item, divisor, total = min(first + number, last), floats(scratch + number * own)[0], floats(sums + number * own)
        target = elements(data, out + item // group * a.query_heads * head_bytes + item % group * head_bytes)
        for i in range(a.head_dim):
            put(target, i, total[i] / divisor)


@njit(fastmath=FLOATING, error_model="numpy")  # type: ignore[untyped-decorator]
def _soften(data: Any, scores: Any, bias: Any, columns: Any) -> Any:
    """Replace scores by exp(score + bias - their maximum); return the sum, which is the same in any order."""
    score, added, high = floats(scores), elements(data, bias), F(-np.inf)
    for column in range(columns):
        value = score[column] + wide(added[column])
        score[column] = value
        high = max(high, value)
    base, total = (high if high > F(-3e38) else F(0)), np.int64(0)
    for column in range(columns):
        weight = exp(score[column] - base)
        score[column] = weight
        total += np.int64(np.int32(weight * F(UNIT) + F(0.5)))
    return F(total) / F(UNIT)


@njit(fastmath=FLOATING)  # type: ignore[untyped-decorator]
def _multiply_keys(data: Any, a: Any, queries: Any, keys: Any, scores: Any, count: Any) -> None:
    """Compute the scores of one item, or of ITEMS: query · key for every column."""
    own, stride = _item_bytes(a), a.row_stride
    vectorised, column, most = a.head_dim - a.head_dim % KEY_LANES, 0, (4 if count == 1 else 2)
    while column < a.columns:
        few, first, out = (most if column + most <= a.columns else 1), keys + column * stride, scores + 4 * column
        if vectorised == 0:
            for item in range(count):
                for number in range(few):
                    floats(out + item * own)[number] = F(0)
        elif count == 1 and few == 4:
            key_4(data, first, stride, queries, 0, out, 0, vectorised)
        elif count == 1:
            key_1(data, first, stride, queries, 0, out, 0, vectorised)
        elif few == 2:
            key_2_4(data, first, stride, queries, own, out, own, vectorised)
        else:
            key_1_4(data, first, stride, queries, own, out, own, vectorised)
        if vectorised < a.head_dim:
            for item in range(count):
                for number in range(few):
                    key = elements(data, first + number * stride)
                    for i in range(vectorised, a.head_dim):
                        floats(out + item * own)[number] += floats(queries + item * own)[i] * wide(key[i])
        column += few


@njit(fastmath=FLOATING)  # type: ignore[untyped-decorator]
def _sum_values(data: Any, a: Any, weights: Any, values: Any, sums: Any, count: Any) -> None:
    """Sum the values of all columns by their weights, for one item or for ITEMS.

    The columns of the sequence come first, then those of the tree, whose rows lie before them in the cache: the order
    that they will have once they are committed, so that the sum of a tree node has the bits of plain decoding.
    """
    own, tree = _item_bytes(a), a.tree_columns
    for item in range(count):
        for i in range(a.head_dim):
            floats(sums + item * own)[i] = F(0)
    if tree < a.columns:
        _add_values(data, a, weights + 4 * tree, values + tree * a.row_stride, sums, count, a.columns - tree)
    if tree > 0:
        _add_values(data, a, weights, values, sums, count, tree)


@njit(fastmath=FLOATING)  # type: ignore[untyped-decorator]
def _add_values(data: Any, a: Any, weights: Any, values: Any, sums: Any, count: Any, rows: Any) -> None:
    """Add ``rows`` rows of values by their weights to the sums of one item, or of ITEMS."""
    start, own, stride = 0, _item_bytes(a), a.row_stride
    while start < a.head_dim:
        address, total, left = values + start * itemsize(data), sums + 4 * start, a.head_dim - start
        if count == 1 and left >= 32:
            weigh_32(data, address, stride, weights, own, total, own, rows)
            start += 32
        elif count == 1 and left >= 8:
            weigh_8(data, address, stride, weights, own, total, own, rows)
            start += 8
        elif left >= 24:
            weigh_24_4(data, address, stride, weights, own, total, own, rows)
            start += 24
        elif left >= 16:
            weigh_16_4(data, address, stride, weights, own, total, own, rows)
            start += 16
        elif left >= 8:
            weigh_8_4(data, address, stride, weights, own, total, own, rows)
            start += 8
        else:
            for item in range(count):
                _add_one(data, weights + item * own, address, stride, total + item * own, rows)
            start += 1


@njit(fastmath={"contract"})  # type: ignore[untyped-decorator]
def _add_one(data: Any, weights: Any, values: Any, stride: Any, total: Any, rows: Any) -> None:
    """Add one element of each row by its weight, in the order of the rows."""
    value, weight = floats(total)[0], floats(weights)
    for row in range(rows):
        value += weight[row] * wide(elements(data, values + row * stride)[0])
    floats(total)[0] = value
