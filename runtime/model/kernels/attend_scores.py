"""Scores of attention: query · key for every column that an item sees, by vectors or, of bfloat16, by tiles of AMX.

By vectors KEYS keys are multiplied with QUERIES queries at once, in the order of summation of ``inner_loops.dots``;
what is left of a head behind whole steps is one more step, with zeros behind it, whose sum is added.

A tile has 16 keys as they lie, [keys, 32 dims], the other one the queries of all items, packed: [16 pairs of dims,
items, 2]. Scores come as [keys, items], and are transposed; the last 16 or 32 columns begin earlier where there are no
more, and are computed twice. What is left of a head behind 32 dims has tiles with as many. The order of summation is
that of ``tiles.dot``.
"""

from typing import Any

from runtime.model.kernels.arguments import ITEMS
from runtime.model.kernels.attend_scratch import (
    head_bytes,
    multiply_scales,
    scale_offset,
    score_bytes,
)
from runtime.model.kernels.elements import (
    LANES,
    F,
    elements,
    floats,
    in_codes,
    in_pairs,
    itemsize,
    numbers,
    octets,
    put,
    reserved,
    wide,
)
from runtime.model.kernels.inner_loops import dots, step_of
from runtime.model.kernels.multiply_tiles import pack_block
from runtime.model.kernels.subroutines import by_tiles, subroutine
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
    turn_rows,
    two_stack_tiles,
    zero_tiles,
)

KEYS, QUERIES = 4, (4 if LANES == 16 else 3)
"""Keys and queries that are multiplied at once: their sums fill the registers."""
STEP_BYTES = 4 * LANES
"""Most bytes of elements of a step."""

key_1_1, key_4_1 = (dots(keys, 1, apart=True) for keys in (1, KEYS))
key_1_4, key_4_4 = (dots(keys, QUERIES, apart=True) for keys in (1, KEYS))
padded_keys, added_scores = reserved(KEYS * LANES), reserved(QUERIES * KEYS)

load_keys, load_more_keys, load_queries = (load_tile(tile) for tile in (2, 3, 4))
load_rest, load_more_rest, load_queries_rest = (load_tile(tile) for tile in (5, 6, 7))
dot_keys, dot_more_keys, dot_rest, dot_more_rest = dot(0, 2, 4), dot(1, 3, 4), dot(0, 5, 7), dot(1, 6, 7)
store_scores, store_more_scores, zero_two = store_tile(0), store_tile(1), zero_tiles(2)
row_addresses = reserved(2 * TILE_ROWS)


# ---- by vectors ----


@subroutine()
def _copy_queries(data: Any, kept: Any, a: Any, table: Any, count: Any, out: Any) -> None:
    """Copy ``count`` queries, as float32 unless elements are multiplied in pairs, with zeros up to a whole step."""
    end = (a.head_dim + step_of(kept) - 1) // step_of(kept) * step_of(kept)
    for item in range(count):
        query, place = elements(data, numbers(table)[item]), out + item * head_bytes(a.head_dim)
        if in_pairs(kept):
            copy = elements(data, place)
            for i in range(a.head_dim):
                copy[i] = query[i]
            for i in range(a.head_dim, end):
                put(copy, i, F(0))
        else:
            widened = floats(place)
            for i in range(a.head_dim):
                widened[i] = wide(query[i])
            for i in range(a.head_dim, end):
                widened[i] = F(0)


@subroutine()
def _score_keys(kept: Any, a: Any, keys: Any, queries: Any, count: Any, scores: Any, columns: Any) -> None:
    """Compute the scores of ``count`` items."""
    column, own, query = 0, score_bytes(a.columns), head_bytes(a.head_dim)
    while column < columns:
        few, first = (KEYS if column + KEYS <= columns else 1), keys + column * a.row_stride
        item = 0
        while item < count:
            some = QUERIES if item + QUERIES <= count else 1
            out = scores + item * own + 4 * column
            _score(kept, a, first, few, queries + item * query, some, out, own)
            if in_codes(kept):
                multiply_scales(kept, out, own, some, first + scale_offset(a.head_dim), a.row_stride, few)
            item += some
        column += few


@subroutine()
def _score(kept: Any, a: Any, keys: Any, few: Any, queries: Any, some: Any, out: Any, own: Any) -> None:
    """Compute the scores of one item or of QUERIES, and of one column or of KEYS."""
    rest, query = a.head_dim % step_of(kept), head_bytes(a.head_dim)
    length = a.head_dim - rest
    if length:
        _dots(kept, keys, a.row_stride, few, queries, query, some, out, own, length)
    else:
        for item in range(some):
            for number in range(few):
                floats(out + item * own)[number] = F(0)
    if rest:
        place, more, used = padded_keys(), added_scores(), length * itemsize(kept)
        for number in range(few):
            key, copy = octets(keys + number * a.row_stride + used), octets(place + number * STEP_BYTES)
            for i in range(rest * itemsize(kept)):
                copy[i] = key[i]
            for i in range(rest * itemsize(kept), STEP_BYTES):
                copy[i] = 0
        passed = length * (itemsize(kept) if in_pairs(kept) else 4)
        _dots(kept, place, STEP_BYTES, few, queries + passed, query, some, more, 4 * KEYS, step_of(kept))
        for item in range(some):
            for number in range(few):
                floats(out + item * own)[number] += floats(more + item * 4 * KEYS)[number]


@subroutine()
def _dots(
    kept: Any, keys: Any, stride: Any, few: Any, queries: Any, query: Any, some: Any, out: Any, own: Any, length: Any
) -> None:  # fmt: skip
    """Multiply one key or KEYS with one query or QUERIES."""
    if few == KEYS and some == QUERIES:
        key_4_4(kept, keys, stride, queries, query, out, own, length, 0)
    elif few == KEYS:
        key_4_1(kept, keys, stride, queries, query, out, own, length, 0)
    elif some == QUERIES:
        key_1_4(kept, keys, stride, queries, query, out, own, length, 0)
    else:
        key_1_1(kept, keys, stride, queries, query, out, own, length, 0)


@subroutine(apart=True)
def _score_by_vectors(
    kept: Any, data: Any, a: Any, table: Any, count: Any, keys: Any, columns: Any, queries: Any, scores: Any
) -> None:  # fmt: skip
    _copy_queries(data, kept, a, table, count, queries)
    _score_keys(kept, a, keys, queries, count, scores, columns)


# ---- by tiles ----


@subroutine(apart=True)
def _configure(keys: Any, items: Any, rest: Any) -> None:
    """Configure tiles of scores [keys, items], keys and queries of a whole step, and of ``rest`` elements."""
    place = stack_tile()
    word = octets(place)
    for i in range(TILE_BYTES):
        word[i] = 0
    word[0] = PALETTE
    for tile in range(8 if rest else 5):
        is_queries = tile in (4, 7)
        word[COLUMNS_AT + 2 * tile] = 4 * items if tile < 2 or is_queries else (TILE_BYTES if tile < 4 else 2 * rest)
        word[ROWS_AT + tile] = keys if not is_queries else (TILE_ROWS if tile == 4 else rest // 2)
    load_configuration(place)


@subroutine()
def _turn(rows: Any, place: Any, offset: Any, count: Any, out: Any, stride: Any) -> None:
    """Store a tile of scores [keys, items], ``offset`` behind ``place`` and ``rows``, as scores of ``count`` items."""
    if count == TILE_ROWS:
        turn_rows(rows, offset, out, stride)
    else:
        turn_rows(rows, offset, place + offset, TILE_BYTES)
        for item in range(count):
            copied, turned = floats(out + item * stride), floats(place + offset + item * TILE_BYTES)
            for key in range(TILE_ROWS):
                copied[key] = turned[key]


@subroutine(apart=True)
def _score_by_tiles(
    kept: Any, data: Any, a: Any, table: Any, count: Any, keys: Any, columns: Any, queries: Any, scores: Any
) -> None:  # fmt: skip
    if columns < 1:
        return
    stride, own, steps, rest = a.row_stride, score_bytes(a.columns), a.head_dim // STEP, a.head_dim % STEP
    pack_block(data, table, count, a.head_dim, queries)
    place, rows = two_stack_tiles(), row_addresses()
    height, pairs = min(columns, TILE_ROWS), 4 * count
    for row in range(TILE_ROWS):
        numbers(rows)[row] = place + row * TILE_BYTES
    _configure(height, count, rest)
    column = 0
    while column < columns:
        together = columns >= 2 * TILE_ROWS
        column = min(column, columns - (2 * TILE_ROWS if together else height))
        first, second = keys + column * stride, keys + (column + (TILE_ROWS if together else 0)) * stride
        zero_two()
        for step in range(steps):
            load_queries(queries + step * TILE_ROWS * pairs, pairs)
            load_keys(first + step * TILE_BYTES, stride)
            dot_keys()
            if together:
                load_more_keys(second + step * TILE_BYTES, stride)
                dot_more_keys()
        if rest:
            load_queries_rest(queries + steps * TILE_ROWS * pairs, pairs)
            load_rest(first + steps * TILE_BYTES, stride)
            dot_rest()
            if together:
                load_more_rest(second + steps * TILE_BYTES, stride)
                dot_more_rest()
        out = scores + 4 * column
        if count == 1:
            store_scores(out, 4)
            if together:
                store_more_scores(out + TILE_BYTES, 4)
        else:
            store_scores(place, TILE_BYTES)
            _turn(rows, place, 0, count, out, own)
            if together:
                store_more_scores(place + TILE, TILE_BYTES)
                _turn(rows, place, TILE, count, out + TILE_BYTES, own)
        column += 2 * TILE_ROWS if together else height
    release_tiles()


score = by_tiles(_score_by_tiles, _score_by_vectors)
"""Compute the scores of ``count`` items for ``columns`` columns.

Arguments: pointers to elements of the cache and of activations; ``a``, an Attend; address of the int64 addresses of
TILE_ROWS queries, the last repeated; their number; address of the first key; the number of columns; addresses of the
queries and the scores in scratch."""
assert ITEMS <= TILE_ROWS
