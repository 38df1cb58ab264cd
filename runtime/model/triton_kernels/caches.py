"""Rows of the KV cache of a step: where new positions go, the copy of accepted rows, and the lengths behind it.

Position p of a cache is in row p // parts, of a ring of R rows p // parts % R, behind the rows of its tree, as
``runtime.model.kvcache`` draws it. Letters as there.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.model.triton_kernels import launch
from runtime.model.triton_kernels.launch import ceil_div, power_of_two

VALUES = 4096
"""Most values of a program that copies a row."""


@triton.jit
def _row_of(position, tree_rows, cache_rows, part, parts, WRAPS: tl.constexpr):
    """Return the row of a position among those of its sequence, and whether this cache has it."""
    row = position // parts
    if WRAPS:
        row = row % (cache_rows - tree_rows)
    row += tree_rows
    return row, (row < cache_rows) & (position % parts == part)


@triton.jit(do_not_specialize=["first"])
def append_kernel(
    lengths, last, positions, rows, width, last_stride, first, tree_rows, cache_rows, part, parts,
    WRAPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the next positions of one sequence, and their rows among those of all sequences; 0 is that of padding."""
    sequence = tl.program_id(0).to(tl.int64)
    number = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = number < width
    position = tl.load(lengths + sequence) + number
    row, held = _row_of(position, tree_rows, cache_rows, part, parts, WRAPS)
    held = held & (number <= tl.load(last + sequence * last_stride))
    tl.store(positions + sequence * width + number, position, mask=inside)
    target = (first + sequence) * cache_rows + tl.where(held, row, 0)
    tl.store(rows + sequence * width + number, target, mask=inside)


def append(
    lengths: Tensor, last: Tensor, width: int, *, first: int, tree_rows: int, cache_rows: int, part: int, parts: int,
    wraps: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the next ``width`` positions [b, width] behind ``lengths`` [b, 1], and their cache rows [b * width].

    Rows are among those of all sequences, of which these are the ``first`` and those behind it; rows behind ``last``
    [b, 1] are padding.
    """
    count = lengths.shape[0]
    assert lengths.shape == last.shape == (count, 1)
    positions = torch.empty(count, width, dtype=torch.int64, device=lengths.device)
    rows = torch.empty(count * width, dtype=torch.int64, device=lengths.device)
    block = min(256, power_of_two(width))
    launch.start(
        append_kernel, (count, ceil_div(width, block)), lengths, last, positions, rows, width, last.stride(0), first,
        tree_rows, cache_rows, part, parts, WRAPS=wraps, BLOCK=block, warps=1,
    )  # fmt: skip
    return positions, rows


@triton.jit(do_not_specialize=["first", "nodes"])
def keep_kernel(
    cache, lengths, path, accepted, path_stride, accepted_stride, kept, first, nodes, tree_rows, cache_rows,
    layer_stride, values, part, parts, WRAPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Copy part of one accepted row of a tree behind its sequence, in one layer."""
    layer, sequence = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64) // kept
    number = tl.program_id(1) % kept
    position = tl.load(lengths + sequence) + number
    row, held = _row_of(position, tree_rows, cache_rows, part, parts, WRAPS)
    held = held & (number <= tl.load(accepted + sequence * accepted_stride))
    node = tl.load(path + sequence * path_stride + number)
    value = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    base, inside = cache + layer * layer_stride, held & (value < values)
    source = (first + sequence) * cache_rows + tree_rows - nodes + node
    target = (first + sequence) * cache_rows + row
    tl.store(base + target * values + value, tl.load(base + source * values + value, mask=inside, other=0), mask=inside)


def keep(
    cache: Tensor, lengths: Tensor, path: Tensor, accepted: Tensor, *, first: int, nodes: int, tree_rows: int,
    cache_rows: int, part: int, parts: int, wraps: bool,
) -> None:  # fmt: skip
    """Copy rows ``path`` [b, A] of trees of ``nodes`` nodes behind their sequences, as far as ``accepted`` [b, 1].

    ``cache`` [layers, B * T, 2k, D], of whose sequences these are the ``first`` and those behind it.
    """
    (count, kept), values = path.shape, cache.shape[2] * cache.shape[3]
    assert lengths.shape == accepted.shape == (count, 1)
    assert path.stride(1) == 1
    assert cache[0].is_contiguous()
    assert (first + count) * cache_rows <= cache.shape[1]
    block = min(VALUES, power_of_two(values))
    launch.start(
        keep_kernel, (cache.shape[0], count * kept, ceil_div(values, block)), cache, lengths, path, accepted,
        path.stride(0), accepted.stride(0), kept, first, nodes, tree_rows, cache_rows, cache.stride(0), values, part,
        parts, WRAPS=wraps, BLOCK=block,
    )  # fmt: skip


@triton.jit
def advance_kernel(lengths, accepted, accepted_stride, count, BLOCK: tl.constexpr):
    """Add the accepted rows and the root to lengths."""
    sequence = tl.arange(0, BLOCK)
    inside = sequence < count
    more = tl.load(accepted + sequence * accepted_stride, mask=inside, other=0) + 1
    tl.store(lengths + sequence, tl.load(lengths + sequence, mask=inside, other=0) + more, mask=inside)


def advance(lengths: Tensor, accepted: Tensor) -> None:
    """Add ``accepted`` [b, 1] + 1 to ``lengths`` [b, 1]."""
    assert lengths.shape == accepted.shape
    assert lengths.is_contiguous()
    count = lengths.shape[0]
    launch.start(advance_kernel, (1,), lengths, accepted, accepted.stride(0), count, BLOCK=power_of_two(count), warps=1)


@triton.jit
def committed_kernel(words, ended, accepted, words_stride, unit, count, BLOCK: tl.constexpr):
    """Write the accepted nodes of a step message, -1 where a sequence has ended."""
    sequence = tl.arange(0, BLOCK)
    inside = sequence < count
    word = tl.load(words + sequence * words_stride, mask=inside, other=0)
    over = tl.load(ended + sequence, mask=inside, other=1) != 0
    tl.store(accepted + sequence, tl.where(over, -1, word % unit), mask=inside)


def committed(words: Tensor, ended: Tensor, unit: int) -> Tensor:
    """Return ``words`` [S] modulo ``unit``, -1 where a sequence has ``ended`` [S] bool."""
    count = words.shape[0]
    assert ended.shape == words.shape
    accepted = torch.empty(count, dtype=torch.int64, device=words.device)
    launch.start(
        committed_kernel, (1,), words, ended.view(torch.uint8), accepted, words.stride(0), unit, count,
        BLOCK=power_of_two(count), warps=1,
    )  # fmt: skip
    return accepted
