"""Scratch of a thread that attends, and how heads lie in the KV cache.

    [ITEMS, D] queries   [ITEMS, D] sums of values   [ITEMS, t] scores, then weights   [ITEMS, t] weights, bfloat16

D is rounded up to whole lines of the processor's cache, t to an odd number of them: ``arguments.attend_floats``. A
query is one of elements where those are multiplied in pairs; queries for tiles are packed, and lie in place of all of
them.
"""

from typing import Any

from numba.core import types

from plans.dtypes import KV_SCALE_BYTES
from runtime.model.kernels.arguments import FEW_ITEMS, ITEMS, LINE_FLOATS, MANY_COLUMNS
from runtime.model.kernels.elements import CODE_UNIT, LINE_BYTES, F, floats, in_codes, in_float8, itemsize
from runtime.model.kernels.subroutines import subroutine


@subroutine(types.int64)
def head_bytes(head_dim: Any) -> Any:
    """Return the bytes of a query or of sums."""
    return (head_dim + LINE_FLOATS - 1) // LINE_FLOATS * LINE_BYTES


@subroutine(types.int64)
def score_bytes(columns: Any) -> Any:
    """Return the bytes of a row of scores."""
    return ((columns + LINE_FLOATS - 1) // LINE_FLOATS | 1) * LINE_BYTES


@subroutine(types.int64)
def weight_bytes(columns: Any) -> Any:
    """Return the bytes of a row of weights of ``attend_value_tiles``."""
    return ((columns + 96 + 2 * LINE_FLOATS - 1) // (2 * LINE_FLOATS) | 1) * LINE_BYTES


@subroutine(types.int64)
def most_items(columns: Any) -> Any:
    """Return how many items have scratch."""
    return ITEMS if columns <= MANY_COLUMNS else FEW_ITEMS


@subroutine(types.int64)
def thread_bytes(head_dim: Any, columns: Any) -> Any:
    """Return the bytes of all of a thread's scratch."""
    rows = most_items(columns) * (score_bytes(columns) + weight_bytes(columns))
    if columns > MANY_COLUMNS:
        rows = max(rows, ITEMS * (score_bytes(MANY_COLUMNS) + weight_bytes(MANY_COLUMNS)))
    return 2 * ITEMS * head_bytes(head_dim) + rows


@subroutine(types.int64)
def scale_offset(head_dim: Any) -> Any:
    """Return the bytes from the first code of a head to its scale."""
    return (head_dim + KV_SCALE_BYTES - 1) // KV_SCALE_BYTES * KV_SCALE_BYTES


@subroutine(types.int64)
def cached_bytes(kept: Any, head_dim: Any) -> Any:
    """Return the bytes of a head in a row of the cache, ``plans.dtypes.cached_width`` of them in codes."""
    if in_codes(kept):
        return scale_offset(head_dim) + KV_SCALE_BYTES
    return head_dim * itemsize(kept)


@subroutine()
def multiply_scales(
    kept: Any, factors: Any, stride: Any, count: Any, scales: Any, scales_stride: Any, rows: Any
) -> None:  # fmt: skip
    """Multiply scores or weights of some rows, of ``count`` items, with the scales of these rows."""
    unit = F(CODE_UNIT) if in_float8(kept) else F(1)
    for item in range(count):
        for number in range(rows):
            floats(factors + item * stride)[number] *= unit * floats(scales + number * scales_stride)[0]
