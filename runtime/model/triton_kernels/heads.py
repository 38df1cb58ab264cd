"""Queries and keys of a forward on their way to attention: norm, factor, rotary embedding, write to the KV cache."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.model.kv_codes import LARGEST, LEAST_SCALE, MOST_CODE, stored_dims
from runtime.model.triton_kernels import launch
from runtime.model.triton_kernels.float8 import narrowed
from runtime.model.triton_kernels.launch import ceil_div, power_of_two

PAIRS = 2048
"""Rotary pairs of a program: those of some heads."""
MOST, LEAST = tl.constexpr(LARGEST), tl.constexpr(LEAST_SCALE)


@triton.jit
def _scale_of(low, high, MOST_CODE: tl.constexpr):
    """Return the scales [ITEMS, 1] of heads that are stored as codes, given as halves."""
    most = tl.minimum(tl.maximum(tl.max(tl.abs(low), 1), tl.max(tl.abs(high), 1)), MOST)
    strange = tl.max(((low != low) | (high != high)).to(tl.int32), 1)
    scale = tl.maximum(tl.div_rn(most, tl.full(most.shape, MOST_CODE, tl.float32)), LEAST)
    return tl.where(strange > 0, float("nan"), scale)[:, None]


@triton.jit
def _codes_of(values, scale, MOST_CODE: tl.constexpr, FLOAT8: tl.constexpr):
    """Return the codes of values; of a sum with 1.5 * 2^23 the last place is 1, and it is rounded to even."""
    near = tl.div_rn(values, tl.broadcast_to(scale, values.shape))
    near = tl.where(scale == scale, tl.minimum(tl.maximum(near, -MOST_CODE), MOST_CODE), 0.0)
    return narrowed(near) if FLOAT8 else ((near + 12582912.0) - 12582912.0).to(tl.int8)


@triton.jit(do_not_specialize=["first", "start"])
def heads_kernel(
    qkv, cache, scales, cosines, sines, positions, written, q_weight, k_weight, factors,
    rows, query_heads, kv_heads, n, sequence_rows, first, start, last_position, eps, most, step,
    D: tl.constexpr, HALF: tl.constexpr, WIDTH: tl.constexpr, ITEMS: tl.constexpr,
    NORMS: tl.constexpr, TOGETHER: tl.constexpr, OFFSET: tl.constexpr, SCALES: tl.constexpr, BY_INDEX: tl.constexpr,
    CLAMPS: tl.constexpr, CODES: tl.constexpr, FLOAT8: tl.constexpr, MOST_CODE: tl.constexpr,
):  # fmt: skip
    """Norm, scale and rotate ``step`` heads in place, and write keys and values to the cache."""
    number = tl.arange(0, ITEMS)[:, None]
    item = tl.program_id(0).to(tl.int64) * step + number
    half = tl.arange(0, HALF)[None, :]
    all_heads, keys_end = query_heads + 2 * kv_heads, query_heads + kv_heads
    row, head = item // all_heads, item % all_heads
    live = (row < rows) & (number < step)
    inside = live & (half < D // 2)
    source = qkv + (row * all_heads + head) * D + half
    low = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(source + D // 2, mask=inside, other=0.0).to(tl.float32)
    is_query, is_value = head < query_heads, head >= keys_end
    if NORMS:
        squares = (tl.sum(low * low, 1) + tl.sum(high * high, 1))[:, None]
        q_at, k_at, seen, counted = half, half, half < D // 2, D
        if TOGETHER:  # the program has all heads of a row
            of_queries = tl.sum(tl.where(live & is_query, squares, 0.0), 0)[:, None]
            of_keys = tl.sum(tl.where(live & (head >= query_heads) & (head < keys_end), squares, 0.0), 0)[:, None]
            squares = tl.where(is_query, of_queries, of_keys)
            counted = tl.where(is_query, query_heads, kv_heads) * D
            q_at, k_at = head * D + half, (head - query_heads) * D + half
            seen = inside & (head < keys_end)
        factor = tl.rsqrt(squares / counted + eps)
        q_seen, k_seen = seen, seen
        if TOGETHER:
            q_seen, k_seen = seen & is_query, seen & (head >= query_heads)
        q_low = tl.load(q_weight + q_at, mask=q_seen, other=0.0).to(tl.float32)
        k_low = tl.load(k_weight + k_at, mask=k_seen, other=0.0).to(tl.float32)
        q_high = tl.load(q_weight + D // 2 + q_at, mask=q_seen, other=0.0).to(tl.float32)
        k_high = tl.load(k_weight + D // 2 + k_at, mask=k_seen, other=0.0).to(tl.float32)
        weight_low, weight_high = tl.where(is_query, q_low, k_low), tl.where(is_query, q_high, k_high)
        if OFFSET:
            weight_low, weight_high = weight_low + 1.0, weight_high + 1.0
        low = tl.where(is_value, low, low * factor * weight_low)
        high = tl.where(is_value, high, high * factor * weight_high)
    position = tl.minimum(tl.load(positions + row, mask=live, other=0), last_position)
    if SCALES:
        scale = tl.load(factors + position, mask=live, other=1.0).to(tl.float32)
        low, high = tl.where(is_query, low * scale, low), tl.where(is_query, high * scale, high)
    at = position * D + half
    cos_low = tl.load(cosines + at, mask=inside, other=0.0).to(tl.float32)
    cos_high = tl.load(cosines + at + D // 2, mask=inside, other=0.0).to(tl.float32)
    sin_low = tl.load(sines + at, mask=inside, other=0.0).to(tl.float32)
    sin_high = tl.load(sines + at + D // 2, mask=inside, other=0.0).to(tl.float32)
    turned_low = tl.where(is_value, low, low * cos_low + high * sin_low)
    turned_high = tl.where(is_value, high, high * cos_high + low * sin_high)
    tl.store(source, turned_low.to(qkv.dtype.element_ty), mask=inside & is_query)
    tl.store(source + D // 2, turned_high.to(qkv.dtype.element_ty), mask=inside & is_query)
    if BY_INDEX:
        target_row = tl.load(written + row, mask=live, other=0)
    else:
        target_row = (first + row // n) * sequence_rows + start + row % n
    target_head = target_row * (2 * kv_heads) + head - query_heads
    target = cache + target_head * WIDTH + half
    # the cache has what the dtype of activations holds
    kept_low = turned_low.to(qkv.dtype.element_ty).to(tl.float32)
    kept_high = turned_high.to(qkv.dtype.element_ty).to(tl.float32)
    kept = inside & (head >= query_heads)
    if CLAMPS:  # what is not a number stays so
        kept_low = tl.where(kept_low == kept_low, tl.minimum(tl.maximum(kept_low, -most), most), kept_low)
        kept_high = tl.where(kept_high == kept_high, tl.minimum(tl.maximum(kept_high, -most), most), kept_high)
    if CODES:
        unit = _scale_of(kept_low, kept_high, MOST_CODE)
        tl.store(scales + (target_head + 1) * (WIDTH // 4) - 1, unit, mask=live & (head >= query_heads))
        tl.store(target, _codes_of(kept_low, unit, MOST_CODE, FLOAT8), mask=kept)
        tl.store(target + D // 2, _codes_of(kept_high, unit, MOST_CODE, FLOAT8), mask=kept)
    else:
        tl.store(target, kept_low.to(cache.dtype.element_ty), mask=kept)
        tl.store(target + D // 2, kept_high.to(cache.dtype.element_ty), mask=kept)


def rotate_and_store(
    qkv: Tensor, query_heads: int, cache: Tensor, rotary: Tensor, positions: Tensor, written: slice | Tensor,
    first: int, *, norms: tuple[Tensor, Tensor, float, bool] | None = None, factors: Tensor | None = None,
) -> None:  # fmt: skip
    """Rotate the queries of ``qkv`` [W, h + 2k, D] in place, and write its rotated keys and its values to the cache.

    ``cache`` [B, T, 2k, D], of which the sequences from ``first`` on take part; ``rotary`` [2, P, D]: cosines and
    signed sines of all positions; ``positions`` [W] int64, those behind the table's end take its last row. ``written``:
    n cache rows of each sequence, or W rows among all sequences' rows. ``norms``: weights [D] of queries and of keys,
    or [h * D] and [k * D] where the heads of a row are normed together, eps, and whether
    they are offsets from 1. ``factors`` [P] of queries by position. Values beyond the range of the cache's dtype are
    clamped to it; those of 8 bits have codes (``kv_codes``).
    """
    (rows, all_heads, dims), (_, sequence_rows, both, cached) = qkv.shape, cache.shape
    kv_heads = both // 2
    codes = cache.dtype in MOST_CODE
    assert (all_heads, cached) == (query_heads + both, stored_dims(cache.dtype, dims))
    assert rotary.shape[0] == 2
    assert rotary.shape[2] == dims
    assert positions.shape == (rows,)
    assert qkv.is_contiguous()
    assert cache[0].is_contiguous()
    index = written if isinstance(written, Tensor) else None
    span = slice(0, 1) if isinstance(written, Tensor) else written
    assert index is None or index.shape == (rows,)
    float8, most = cache.dtype == torch.float8_e4m3fn, 0.0 if codes else torch.finfo(cache.dtype).max
    q_weight, k_weight, eps, offset = norms or (None, None, 0.0, False)
    half = power_of_two(dims // 2)
    together = q_weight is not None and q_weight.shape != (dims,)
    items = power_of_two(all_heads) if together else max(1, min(power_of_two(rows * all_heads), PAIRS // half))
    step = all_heads if together else items
    assert q_weight is None or q_weight.shape == ((query_heads * dims,) if together else (dims,))
    assert k_weight is None or k_weight.shape == ((kv_heads * dims,) if together else (dims,))
    launch.start(
        heads_kernel, (ceil_div(rows * all_heads, step),), qkv, cache.view(torch.uint8) if float8 else cache,
        cache.view(torch.float32) if codes else None, rotary[0], rotary[1], positions, index, q_weight, k_weight,
        factors, rows, query_heads, kv_heads, span.stop - span.start, sequence_rows, first, span.start,
        rotary.shape[1] - 1, eps, most, step, D=dims, HALF=half, WIDTH=cached, ITEMS=items, NORMS=norms is not None,
        TOGETHER=together, OFFSET=offset, SCALES=factors is not None, BY_INDEX=index is not None,
        CLAMPS=not codes and most < torch.finfo(qkv.dtype).max, CODES=codes, FLOAT8=float8,
        MOST_CODE=float(MOST_CODE.get(cache.dtype, 0)),
        warps=16 if items * half > 2 * PAIRS else 8 if items * half > PAIRS else 4,
    )  # fmt: skip
