"""Attention over the KV cache: of one row, a tree, a chain or a chunk, over one cache in fixed splits.

    program (sequence and KV head, block of items, split)     item i of a sequence: query head i % G of row i // G

Of each split of the cache's rows a program has the softmax's running maximum M and sum S, in powers of two, and the sum
of weighted values; the tree's rows are in the first split. With one split it writes the result, otherwise sum / S and
M + log S in float32. Of few items the last split to write its part averages them all, in their order: which one that is
changes no bit. Of more, ``merge_kernel`` does, with more programs than these. Letters as in ``layers``; G query heads
of a KV head.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plans.step import MERGED_ITEMS, merges_itself
from runtime.model.kv_codes import MOST_CODE, stored_dims
from runtime.model.mask import WORD, Mask
from runtime.model.triton_kernels import launch
from runtime.model.triton_kernels.float8 import widened
from runtime.model.triton_kernels.launch import ceil_div, power_of_two

LEAST_BLOCK, MOST_BLOCK = MERGED_ITEMS, 64
"""Items of a program: those of tensor cores, and what registers hold."""
MERGED = 8
"""Items of a program that merges."""


@triton.jit
def _keys_of(cache, offsets, inside, like, FLOAT8: tl.constexpr):
    """Return values of the cache in the dtype of activations; codes are numbers that every dtype has."""
    if FLOAT8:
        return widened(tl.load(cache + offsets, mask=inside, other=0)).to(like.dtype)
    return tl.load(cache + offsets, mask=inside, other=0).to(like.dtype)


@triton.jit
def _attended(
    q, cache, scales, row, seen, visible, head, value_head, row_heads, scale, softcap, high, total, acc,
    D: tl.constexpr, BLOCK_D: tl.constexpr, WIDTH: tl.constexpr, CAPPED: tl.constexpr, FLOAT8: tl.constexpr,
    CODES: tl.constexpr,
):  # fmt: skip
    """Attend with a block of items to a block of cache rows; return the running maximum, sum and weighted values."""
    row_stride, head_offset, value_offset = row_heads * WIDTH, head * WIDTH, value_head * WIDTH
    dim = tl.arange(0, BLOCK_D)
    at = row.to(tl.int64) * row_stride
    keys = _keys_of(cache, at[None, :] + head_offset + dim[:, None], seen[None, :] & (dim < D)[:, None], q, FLOAT8)
    scores = tl.dot(q, keys, input_precision="ieee") * scale  # [BM, BT]
    if CODES:
        of_heads = row.to(tl.int64) * row_heads
        scores *= tl.load(scales + (of_heads + head + 1) * (WIDTH // 4) - 1, mask=seen, other=0.0)[None, :]
    if CAPPED:
        scores = softcap * (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0)
    scores = tl.where(visible, scores * 1.4426950408889634, float("-inf"))
    higher = tl.maximum(high, tl.max(scores, 1))
    base = tl.where(higher == float("-inf"), 0.0, higher)
    weights, kept = tl.exp2(scores - base[:, None]), tl.exp2(high - base)
    values = _keys_of(cache, at[:, None] + value_offset + dim[None, :], seen[:, None] & (dim < D)[None, :], q, FLOAT8)
    if CODES:
        factors = tl.load(scales + (of_heads + value_head + 1) * (WIDTH // 4) - 1, mask=seen, other=0.0)
        values = (values.to(tl.float32) * factors[:, None]).to(q.dtype)
    total = total * kept + tl.sum(weights, 1)
    acc = acc * kept[:, None] + tl.dot(weights.to(q.dtype), values, input_precision="ieee")
    return higher, total, acc


@triton.jit
def _beside_sinks(acc, log_sum, sinks, head, live):
    """Return results of items of heads whose softmax has a score without a value."""
    sink = tl.load(sinks + head, mask=live, other=0.0).to(tl.float32)
    return acc * tl.sigmoid(log_sum - sink)[:, None]


@triton.jit
def _averaged(
    partial, sums, item, dim, live, inside, count, split_stride, sums_stride,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, ITEM: tl.constexpr, SUMS_ITEM: tl.constexpr,
):  # fmt: skip
    """Return the average of partial results by exp of the logarithms of their sums, and that of all of them."""
    high = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    acc = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for split in range(count):
        log_sum = tl.load(
            sums + split * sums_stride + item * SUMS_ITEM, mask=live, other=float("-inf"), cache_modifier=".cg"
        )
        at = partial + split * split_stride + item[:, None] * ITEM + dim[None, :]
        values = tl.load(at, mask=inside, other=0.0, cache_modifier=".cg")
        higher = tl.maximum(high, log_sum)
        base = tl.where(higher == float("-inf"), 0.0, higher)
        kept, weight = tl.exp(high - base), tl.exp(log_sum - base)
        total = total * kept + weight
        acc = acc * kept[:, None] + values * weight[:, None]
        high = higher
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    return acc, high + tl.log(tl.where(total == 0.0, 1.0, total))


@triton.jit
def _merge_into(
    merged, partial, sums, sinks, item, head, dim, live, count, split_stride, sums_stride,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, ITEM: tl.constexpr, SUMS_ITEM: tl.constexpr,
    MERGED_ITEM: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """Write the average of all splits of some items, with the logarithm of their weight where MERGED_ITEM > D."""
    inside = live[:, None] & (dim < D)[None, :]
    acc, log_sum = _averaged(
        partial, sums, item, dim, live, inside, count, split_stride, sums_stride, BLOCK, BLOCK_D, ITEM, SUMS_ITEM
    )
    if SINKS:
        acc = _beside_sinks(acc, log_sum, sinks, head, live)
    tl.store(merged + item[:, None] * MERGED_ITEM + dim[None, :], acc.to(merged.dtype.element_ty), mask=inside)
    if MERGED_ITEM > D:
        tl.store(merged + item * MERGED_ITEM + D, log_sum, mask=live)


@triton.jit(do_not_specialize=["first", "appended", "tree", "n", "window"])
def attend_kernel(
    qkv, cache, scales, ancestors, positions, lengths, sinks, out, sums, merged, counters, scale, softcap,
    n, kv_heads, first, sequence_rows, start, tree, appended, window, part, parts, split_rows, split_stride,
    sums_stride,
    G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BM: tl.constexpr, BT: tl.constexpr, WORDS: tl.constexpr,
    WIDTH: tl.constexpr, ITEM: tl.constexpr, SUMS_ITEM: tl.constexpr,
    RING: tl.constexpr, DIRECT: tl.constexpr, CAPPED: tl.constexpr, SINKS: tl.constexpr, FLOAT8: tl.constexpr,
    CODES: tl.constexpr, MERGES: tl.constexpr, MERGED_ITEM: tl.constexpr,
):  # fmt: skip
    """Attend with a block of items of one KV head of one sequence to a split of its cache; ``MERGES``: the block is the
    only one, and the last split averages all of them. Items of MERGED_ITEM > D have the logarithm of their weight, too.
    """
    sequence, kv_head = tl.program_id(0) // kv_heads, tl.program_id(0) % kv_heads
    split = tl.program_id(2)
    item = tl.program_id(1) * BM + tl.arange(0, BM)
    live = item < n * G
    row = sequence * n + item // G
    head = kv_head * G + item % G
    dim = tl.arange(0, BLOCK_D)
    query = row.to(tl.int64) * ((G + 2) * kv_heads * D) + head * D
    q = tl.load(qkv + query[:, None] + dim[None, :], mask=live[:, None] & (dim < D)[None, :], other=0.0)
    position = tl.load(positions + row, mask=live, other=0).to(tl.int32)
    end = tl.load(lengths + sequence).to(tl.int32) + appended
    cache += (first + sequence).to(tl.int64) * sequence_rows * (2 * kv_heads * WIDTH)
    if CODES:
        scales += (first + sequence).to(tl.int64) * sequence_rows * (2 * kv_heads * (WIDTH // 4))
    high = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, BLOCK_D], tl.float32)

    if WORDS > 0:
        for begin in range(0, tl.where(split == 0, tree, 0), BT):
            column = begin + tl.arange(0, BT)
            word = tl.load(
                ancestors + row[:, None] * WORDS + (column // 32)[None, :],
                mask=live[:, None] & (column < tree)[None, :], other=0,
            )  # fmt: skip
            visible = ((word >> (column % 32)[None, :]) & 1) != 0
            high, total, acc = _attended(
                q, cache, scales, start - tree + column, column < tree, visible, kv_head, kv_heads + kv_head,
                2 * kv_heads, scale, softcap, high, total, acc, D, BLOCK_D, WIDTH, CAPPED, FLOAT8, CODES,
            )  # fmt: skip

    ring = sequence_rows - start
    last = (end - 1 - part) // parts  # of this cache's own positions, from 0
    stop = tl.minimum(end, ring) if RING else tl.minimum((end - part + parts - 1) // parts, ring)
    if not RING:  # what no row of the block sees is not read
        most = tl.max(tl.where(live, position, 0), 0)
        stop = tl.minimum(stop, (most + 1 - part + parts - 1) // parts)
    stop = tl.minimum(stop, (split + 1) * split_rows)
    for begin in range(split * split_rows, stop, BT):
        column = begin + tl.arange(0, BT)
        held = column * parts + part
        if RING:
            held = (last - (last - column + ring) % ring) * parts + part
        seen = (column < stop) & (held >= 0) & (held < end)
        visible = seen[None, :] & (held[None, :] <= position[:, None])
        if RING:
            visible = visible & (held[None, :] > position[:, None] - window)
        high, total, acc = _attended(
            q, cache, scales, start + column, seen, visible, kv_head, kv_heads + kv_head, 2 * kv_heads, scale, softcap,
            high, total, acc, D, BLOCK_D, WIDTH, CAPPED, FLOAT8, CODES,
        )  # fmt: skip

    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    log_sum = (high + tl.log2(tl.where(total == 0.0, 1.0, total))) * 0.6931471805599453
    if SINKS and not MERGES:
        acc = _beside_sinks(acc, log_sum, sinks, head, live)
    number = row.to(tl.int64) * (G * kv_heads) + head
    target = out + split * split_stride + number[:, None] * ITEM + dim[None, :]
    tl.store(target, acc.to(out.dtype.element_ty), mask=live[:, None] & (dim < D)[None, :])
    if not DIRECT:
        tl.store(sums + split * sums_stride + number * SUMS_ITEM, log_sum, mask=live)
    if MERGES:
        tl.debug_barrier()  # all threads have written before one of them releases what they wrote, and acquires
        count = tl.num_programs(2)
        if tl.atomic_add(counters + tl.program_id(0), 1, sem="acq_rel", scope="gpu") == count - 1:
            _merge_into(
                merged, out, sums, sinks, number, head, dim, live, count, split_stride, sums_stride,
                D, BLOCK_D, BM, ITEM, SUMS_ITEM, MERGED_ITEM, SINKS,
            )  # fmt: skip
            tl.store(counters + tl.program_id(0), 0)  # for the next launch


@triton.jit
def merge_kernel(
    partial, sums, sinks, out, out_sums, items, count, split_stride, sums_stride, heads, first, stop, row_stride,
    head_stride,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, ITEM: tl.constexpr, SUMS_ITEM: tl.constexpr,
    KEPT_ITEM: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """Average the partial results of some items, query heads of rows, by exp of the logarithms of their sums."""
    item = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live, row, head, dim = item < items, item // heads, item % heads, tl.arange(0, BLOCK_D)
    inside = live[:, None] & (dim < D)[None, :]
    acc, log_sum = _averaged(
        partial, sums, item, dim, live, inside, count, split_stride, sums_stride, BLOCK, BLOCK_D, ITEM, SUMS_ITEM
    )
    if SINKS:
        acc = _beside_sinks(acc, log_sum, sinks, head, live)
    column = head[:, None] * D + dim[None, :]
    target = out + row[:, None] * row_stride + head[:, None] * head_stride + dim[None, :] - first
    tl.store(target, acc.to(out.dtype.element_ty), mask=inside & (column >= first) & (column < stop))
    if KEPT_ITEM > 0:
        tl.store(out_sums + item * KEPT_ITEM, log_sum, mask=live)


def attend(
    qkv: Tensor, query_heads: int, cache: Tensor, first: int, mask: Mask, *, scale: float, softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Attend with the queries of ``qkv`` [W, h + 2k, D] to ``cache`` [B, T, 2k, D]: [W, h * D].

    The cache may be in codes, as ``kv_codes`` has it. Of its sequences those from ``first`` on take part.
    ``sinks`` [h]: scores without a value, of each head.
    """
    rows, _, dims = qkv.shape
    out = qkv.new_empty(rows, query_heads, dims)
    if mask.splits == 1:
        _attend(qkv, cache, first, mask, scale, softcap, sinks, out.unsqueeze(0), None)
    else:
        partial = torch.empty(mask.splits, rows, query_heads, dims, dtype=torch.float32, device=qkv.device)
        sums = partial.new_empty(partial.shape[:3])
        if _merges_itself(rows, query_heads, cache, mask):
            _attend(qkv, cache, first, mask, scale, softcap, sinks, partial, sums, out)
        else:
            _attend(qkv, cache, first, mask, scale, softcap, None, partial, sums)
            merge(partial, sums, out, sinks=sinks)
    return out.flatten(1)


def attend_to_part(
    qkv: Tensor, cache: Tensor, first: int, mask: Mask, out: Tensor, *, scale: float, softcap: float | None = None
) -> None:
    """Fill ``out`` [W, h, D + 1] float32: attention to the positions of a part, and the logarithm of their weight."""
    rows, heads, dims = out.shape[0], out.shape[1], out.shape[2] - 1
    assert dims == qkv.shape[2]
    partial = out.unsqueeze(0)
    if mask.splits > 1:
        partial = torch.empty(mask.splits, rows, heads, dims + 1, dtype=torch.float32, device=qkv.device)
    whole = out if mask.splits > 1 and _merges_itself(rows, heads, cache, mask) else None
    _attend(qkv, cache, first, mask, scale, softcap, None, partial[..., :dims], partial[..., dims], whole)
    if mask.splits > 1 and whole is None:
        merge(partial[..., :dims], partial[..., dims], out[..., :dims], kept=out[..., dims])


def _merges_itself(rows: int, query_heads: int, cache: Tensor, mask: Mask) -> bool:
    return merges_itself(rows // mask.lengths.shape[0], 2 * query_heads // cache.shape[2])


def _attend(
    qkv: Tensor, cache: Tensor, first: int, mask: Mask, scale: float, softcap: float | None, sinks: Tensor | None,
    out: Tensor, sums: Tensor | None, merged: Tensor | None = None,
) -> None:  # fmt: skip
    """Attend into ``out`` [splits, W, h, D]; ``sums`` [splits, W, h]: None where the result is the only split's.

    ``merged`` [W, h, D], or D + 1 with the logarithm of the weights: filled with the average of the splits, of few
    items; None: another kernel does that.
    """
    (rows, all_heads, dims), (_, sequence_rows, both, cached) = qkv.shape, cache.shape
    kv_heads, query_heads, sequences = both // 2, out.shape[2], mask.lengths.shape[0]
    n, group = rows // sequences, query_heads // kv_heads
    codes = cache.dtype in MOST_CODE
    assert (all_heads, query_heads % kv_heads) == (query_heads + both, 0)
    assert cached == stored_dims(cache.dtype, dims)
    assert (mask.positions.shape, sequences * n) == ((rows,), rows)
    assert mask.ancestors is None or (mask.tree > 0 and mask.ancestors.shape == (rows, ceil_div(mask.tree, WORD)))
    assert qkv.is_contiguous()
    assert cache[0].is_contiguous()
    assert out.shape == (mask.splits, rows, query_heads, dims)
    assert out.stride(1) == query_heads * out.stride(2)
    float8, wide = cache.dtype == torch.float8_e4m3fn, dims * qkv.itemsize > 256
    block = min(MOST_BLOCK // (2 if wide else 1), max(LEAST_BLOCK, power_of_two(n * group)))
    narrow = codes and block < MOST_BLOCK  # of 64 rows of codes four warps have too few registers
    assert merged is None or merged.is_contiguous()
    assert merged is None or (mask.counters is not None and len(mask.counters) >= sequences * kv_heads)
    split_rows = ceil_div(sequence_rows - mask.start, mask.splits * MOST_BLOCK) * MOST_BLOCK
    launch.start(
        attend_kernel, (sequences * kv_heads, ceil_div(n * group, block), mask.splits), qkv,
        cache.view(torch.uint8) if float8 else cache, cache.view(torch.float32) if codes else None, mask.ancestors,
        mask.positions, mask.lengths, sinks, out, sums, merged, mask.counters, scale, softcap or 0.0, n, kv_heads,
        first, sequence_rows, mask.start, mask.tree, mask.appended, mask.window or 0, mask.part, mask.parts, split_rows,
        out.stride(0), 0 if sums is None else sums.stride(0),
        G=group, D=dims, BLOCK_D=max(16, power_of_two(dims)), BM=block, BT=32 if wide or narrow else 64,
        WORDS=0 if mask.ancestors is None else mask.ancestors.shape[1], WIDTH=cached, ITEM=out.stride(2),
        SUMS_ITEM=0 if sums is None else sums.stride(2), RING=mask.window is not None, DIRECT=sums is None,
        CAPPED=softcap is not None, SINKS=sinks is not None, FLOAT8=float8, CODES=codes,
        MERGES=merged is not None, MERGED_ITEM=0 if merged is None else merged.stride(1), warps=8 if block > 32 else 4,
    )  # fmt: skip


def merge(
    partial: Tensor, sums: Tensor, out: Tensor, *, columns: tuple[int, int] | None = None,
    sinks: Tensor | None = None, kept: Tensor | None = None,
) -> None:  # fmt: skip
    """Fill ``out`` [W, h, D], or of its columns h * D those between two, [W, columns], with averages of ``partial``.

    ``partial`` [S, W, h, D] float32, ``sums`` [S, W, h] the logarithms of their weights; ``kept`` [W, h] is filled with
    that of all.
    """
    count, rows, heads, dims = partial.shape
    first, stop = columns or (0, heads * dims)
    assert partial.stride(1) == heads * partial.stride(2)
    assert sums.shape == partial.shape[:3]
    assert out.shape == ((rows, heads, dims) if columns is None else (rows, stop - first))
    launch.start(
        merge_kernel, (ceil_div(rows * heads, MERGED),), partial, sums, sinks, out, kept, rows * heads, count,
        partial.stride(0), sums.stride(0), heads, first, stop, out.stride(0),
        dims if columns is not None else out.stride(1), D=dims, BLOCK_D=power_of_two(dims), BLOCK=MERGED,
        ITEM=partial.stride(2), SUMS_ITEM=sums.stride(2), KEPT_ITEM=0 if kept is None else kept.stride(1),
        SINKS=sinks is not None,
    )  # fmt: skip
