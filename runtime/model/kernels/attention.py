"""Attention over the KV cache: rotate queries and keys, write keys and values, then scores, softmax, weighted sum.

What attends is an item: one query head of one row. Up to ITEMS of them, which have the same KV head, are a unit: they
read each key and value once, and only those columns that one of them sees, as no thread computes what lies behind the
last of them. Scores are computed in ``attend_scores``, their softmax by ``softmax``, sums of values in
``attend_values``; each is the same for an item alone and beside others.

``kept``, beside the kernel's pointer ``data``, stands for the elements of the cache: those of activations, or codes
of int8 or float8_e4m3fn (``kv_codes``), which are widened in registers. The score of a key in codes is multiplied with
its scale, and so is the weight of a value.
"""

from typing import Any

import numpy as np
from numba.core import types

from runtime.model.kernels.arguments import FEW_ITEMS, ITEMS, Attend
from runtime.model.kernels.attend_scores import score
from runtime.model.kernels.attend_scratch import (
    cached_bytes,
    head_bytes,
    most_items,
    scale_offset,
    score_bytes,
    thread_bytes,
)
from runtime.model.kernels.attend_values import sum_values
from runtime.model.kernels.elements import (
    LANES,
    F,
    arguments_of,
    codes,
    elements,
    exp,
    floats,
    in_codes,
    in_float8,
    in_tiles,
    itemsize,
    numbers,
    octets,
    put,
    reserved,
    wide,
)
from runtime.model.kernels.softmax import BLOCK, HIDDEN, ROUNDING, UNIT, add_bias, shows, to_weights
from runtime.model.kernels.subroutines import subroutine
from runtime.model.kernels.team import barrier, thread, threads

SIZES = (ITEMS, 8, FEW_ITEMS, 1) if LANES == 16 else (12, 6, 3, 1)
"""Items of a unit by vectors, which have sums at once: the first number that makes enough units."""
UNITS = 4
"""Least units for each thread, so that threads have about equally many items."""
LEAST_SCALE, LARGEST = 2.0**-126, 2.0**127
"""Least scale of codes, and the largest value that is stored: as in ``kv_codes``."""

attend_arguments = arguments_of(Attend)
query_addresses, last_bias = reserved(2 * ITEMS), reserved(LANES)


def attend(data: Any) -> None:
    """Rotate qkv in place, write its keys and values to the cache, and attend; arguments: ``Attend``."""
    a = attend_arguments(data)
    me, team = np.int64(thread()), np.int64(threads())
    rotate_and_write(data, data, a, me, team)
    barrier()
    attend_all(data, data, a, me, team)


def attend_int8(data: Any) -> None:
    """Do what ``attend`` does, with a cache in codes of int8; arguments: ``Attend``."""
    a = attend_arguments(data)
    me, team, kept = np.int64(thread()), np.int64(threads()), codes(a.seen)
    rotate_and_write(data, kept, a, me, team)
    barrier()
    attend_all(data, kept, a, me, team)


def attend_float8(data: Any) -> None:
    """Do what ``attend`` does, with a cache in codes of float8_e4m3fn; arguments: ``Attend``."""
    a = attend_arguments(data)
    me, team, kept = np.int64(thread()), np.int64(threads()), octets(a.seen)
    rotate_and_write(data, kept, a, me, team)
    barrier()
    attend_all(data, kept, a, me, team)


@subroutine(apart=True)
def rotate_and_write(data: Any, kept: Any, a: Any, me: Any, team: Any) -> None:
    """Rotate the queries and keys of this thread's rows, and write keys and values to the cache."""
    for row in range(me, a.rows, team):
        _rotate_and_write(data, kept, a, row)


@subroutine(types.int64)
def _unit_items(kept: Any, items: Any, heads: Any, most: Any, team: Any) -> Any:
    """Return the most items of a unit, of ``items`` of each of ``heads`` KV heads, of which a unit has one.

    Tiles take about as long for few items as for many: there are as few units as leave no thread without one.
    """
    if in_tiles(kept):
        parts = (items + most - 1) // most
        while heads * parts < team and parts < items:
            parts += 1
        return (items + parts - 1) // parts
    for size in SIZES:
        if size <= most and heads * ((items + size - 1) // size) >= UNITS * team:
            return size
    return 1


@subroutine(apart=True)
def attend_all(data: Any, kept: Any, a: Any, me: Any, team: Any) -> None:
    """Attend with this thread's units of items, once all keys and values are written."""
    items = a.rows_per_sequence * (a.query_heads // a.kv_heads)  # of a KV head of a sequence
    heads, scratch = a.rows // a.rows_per_sequence * a.kv_heads, a.scratch + me * thread_bytes(a.head_dim, a.columns)
    most, unit = _unit_items(kept, items, heads, most_items(a.columns), team), 0
    for head in range(heads):
        for first in range(0, items, most):
            if unit % team == me:
                sequence, kv_head = head // a.kv_heads, head % a.kv_heads
                _attend_items(data, kept, a, sequence, kv_head, first, min(most, items - first), scratch)
            unit += 1


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
            _encode(data, kept, computed, target + head * cached_bytes(kept, a.head_dim), a.head_dim)
    else:
        stored, values = elements(data, target), elements(data, source + a.query_heads * head_bytes)
        for i in range(2 * a.kv_heads * a.head_dim):
            stored[i] = values[i]


@subroutine(apart=True, fast=frozenset({"contract"}))
def _encode(data: Any, kept: Any, source: Any, target: Any, head_dim: Any) -> None:
    """Write a key or a value as codes with their scale, as ``kv_codes`` has it."""
    x, code, rounded = elements(data, source), codes(target), octets(target)
    scale, most_code = floats(target + scale_offset(head_dim)), F(448) if in_float8(kept) else F(127)
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
        unit = max(min(most, F(LARGEST)) / most_code, F(LEAST_SCALE))
        for i in range(head_dim):
            near = min(max(wide(x[i]) / unit, -most_code), most_code)
            if in_float8(kept):
                put(rounded, i, near)
            else:
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
    """Attend with ``count`` items from ``first`` on.

    Item i of a sequence is query head i % group of the KV head in its row i // group.
    """
    head, group, own = a.head_dim * itemsize(data), a.query_heads // a.kv_heads, score_bytes(a.columns)
    first_row, all_heads = sequence * a.rows_per_sequence, a.query_heads + 2 * a.kv_heads
    queries = a.qkv + (first_row * all_heads + kv_head * group) * head
    cached = cached_bytes(kept, a.head_dim)
    keys = a.seen + sequence * a.sequence_stride + kv_head * cached
    bias = a.bias + sequence * a.bias_sequence_stride
    out = a.out + (first_row * a.query_heads + kv_head * group) * head
    sums = scratch + ITEMS * head_bytes(a.head_dim)
    scores, seen, table = sums + ITEMS * head_bytes(a.head_dim), a.tree_columns, query_addresses()
    for number in range(ITEMS):
        item = first + min(number, count - 1)
        numbers(table)[number] = queries + (item // group * all_heads + item % group) * head
    for row in range(first // group, (first + count - 1) // group + 1):
        seen = max(seen, _last_seen(data, bias + row * a.bias_row_stride, a.columns))
    score(kept, data, a, table, count, keys, seen, scratch, scores)
    scale, cap = F(1) / np.sqrt(F(a.head_dim)), F(0)
    if a.factors:
        scale, cap = floats(a.factors)[0], floats(a.factors)[1]
    for number in range(count):
        item, sink = first + number, F(-np.inf)
        if a.sinks:
            sink = wide(elements(data, a.sinks)[kv_head * group + item % group])
        row_bias = bias + item // group * a.bias_row_stride
        divisor = _soften(data, scores + number * own, row_bias, seen, scale, cap, sink)
        floats(scratch)[number] = divisor  # the queries have been used
    sum_values(kept, a, scores, keys + a.kv_heads * cached, sums, sequence, first, count, seen)
    for number in range(count):
        item, divisor, total = first + number, floats(scratch)[number], floats(sums + number * head_bytes(a.head_dim))
        target = elements(data, out + (item // group * a.query_heads + item % group) * head)
        for i in range(a.head_dim):
            put(target, i, total[i] / divisor)


@subroutine(types.int64, fast=frozenset())
def _last_seen(data: Any, bias: Any, columns: Any) -> Any:
    """Return a number of columns, the first ones, behind which a bias shows nothing: a multiple of BLOCK, or all."""
    added, end = elements(data, bias), columns
    if columns % BLOCK:
        end = columns - columns % BLOCK
        for column in range(end, columns):
            if wide(added[column]) > F(HIDDEN):
                return columns
    while end > 0 and not shows(data, bias + (end - BLOCK) * itemsize(data)):
        end -= BLOCK
    return end


@subroutine(types.float32)
def _soften(data: Any, scores: Any, bias: Any, columns: Any, scale: Any, cap: Any, sink: Any) -> Any:
    """Replace scores by exp(scale * score + bias - the maximum); return the sum, which is the same in any order.

    ``cap``: of scale * score, 0: none. ``sink``: one more score in maximum and sum, -inf: none. The last vector of a
    row of scores has room behind it; what is there becomes 0.
    """
    score, whole = floats(scores), columns // LANES
    if cap > F(0):
        for column in range(columns):
            score[column] = cap * _tanh(score[column] * scale / cap)
        scale = F(1)
    high, vectors = add_bias(data, scores, bias, whole, scale, sink), whole
    if whole * LANES < columns:
        rest, added, place = columns - whole * LANES, elements(data, bias + whole * LANES * itemsize(data)), last_bias()
        copy, vectors = elements(data, place), whole + 1
        for i in range(LANES):
            if i < rest:
                copy[i] = added[i]
            else:
                put(copy, i, F(-np.inf))
                score[whole * LANES + i] = F(0)
        high = add_bias(data, scores + 4 * LANES * whole, place, 1, scale, high)
    base, total = (high if high > F(HIDDEN) else F(0)), np.int64(0)
    if sink > F(HIDDEN):
        total += np.int64(np.int32(exp(sink - base) * F(UNIT) + F(0.5)))
    return F(total + to_weights(scores, vectors, base)) / F(UNIT)


@subroutine(types.float32)
def _tanh(x: Any) -> Any:
    """Return the hyperbolic tangent of a float32, within 4 units in the last place; near 0 by its series."""
    shrunk, square = exp(F(-2) * abs(x)), x * x
    large = (F(1) - shrunk) / (F(1) + shrunk)
    p = square * F(-17 / 315) + F(2 / 15) + square * square * F(62 / 2835)
    small = x - x * square * (F(1 / 3) - square * p)
    return small if abs(x) < F(0.25) else (large if x > F(0) else -large)
