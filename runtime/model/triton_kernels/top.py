"""The best of each row of logits with their log-softmax, in two passes: blocks of columns, then the blocks' best."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.model.triton_kernels import launch
from runtime.model.triton_kernels.launch import ceil_div, power_of_two

COLUMNS = 4096
"""Columns of a program."""


@triton.jit
def block_kernel(logits, values, columns, highs, totals, width, stride, blocks, K: tl.constexpr, BLOCK: tl.constexpr):
    """Find the K best of one block of a row, its highest value, and the sum of exp(value - highest)."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = block * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(logits + row * stride + column, mask=column < width, other=float("-inf")).to(tl.float32)
    high = tl.max(value, 0)
    base = tl.where(high == float("-inf"), 0.0, high)
    at = row * blocks + block
    tl.store(highs + at, high)
    tl.store(totals + at, tl.sum(tl.exp(value - base), 0))
    left = tl.where(column < width, column, 0x7FFFFFFF)
    for number in range(K):
        best = tl.max(value, 0)
        first = tl.min(tl.where(value == best, left, 0x7FFFFFFF), 0)  # of equal ones the first that is left
        tl.store(values + at * K + number, best)
        tl.store(columns + at * K + number, first)
        value, left = tl.where(column == first, float("-inf"), value), tl.where(column == first, 0x7FFFFFFF, left)


@triton.jit
def best_kernel(
    values, columns, highs, totals, best, scores, blocks, width,
    K: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Find the K best of a row among its blocks' best, and their log-softmax."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCKS)
    high = tl.load(highs + row * blocks + block, mask=block < blocks, other=float("-inf"))
    total = tl.load(totals + row * blocks + block, mask=block < blocks, other=0.0)
    most = tl.max(high, 0)  # of logits that are not all -inf
    log_sum = most + tl.log(tl.sum(total * tl.exp(high - most), 0))
    candidate = tl.arange(0, WIDTH)
    inside = candidate < blocks * K
    value = tl.load(values + row * blocks * K + candidate, mask=inside, other=float("-inf"))
    column = tl.load(columns + row * blocks * K + candidate, mask=inside, other=0x7FFFFFFF)
    for number in range(K):
        highest = tl.max(value, 0)
        first = tl.min(tl.where(value == highest, column, 0x7FFFFFFF), 0)
        # what is not a number is above nothing: then it is the last column
        tl.store(best + row * K + number, tl.minimum(first, width - 1).to(tl.int64))
        tl.store(scores + row * K + number, highest - log_sum)
        taken = column == first
        value, column = tl.where(taken, float("-inf"), value), tl.where(taken, 0x7FFFFFFF, column)


def top(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the ``count`` highest of each row of logits [W, V], best first, of equal ones the first: columns, and
    log-softmax in float32.
    """
    rows, width = logits.shape
    assert 0 < count <= width
    assert logits.stride(1) == 1
    blocks = ceil_div(width, COLUMNS)
    values = torch.empty(rows, blocks, count, dtype=torch.float32, device=logits.device)
    columns = torch.empty(rows, blocks, count, dtype=torch.int32, device=logits.device)
    highs, totals = values.new_empty(2, rows, blocks)
    best = torch.empty(rows, count, dtype=torch.int64, device=logits.device)
    scores = values.new_empty(rows, count)
    launch.start(
        block_kernel, (rows, blocks), logits, values, columns, highs, totals, width, logits.stride(0), blocks,
        K=count, BLOCK=min(COLUMNS, power_of_two(width)), warps=8,
    )  # fmt: skip
    launch.start(
        best_kernel, (rows,), values, columns, highs, totals, best, scores, blocks, width, K=count,
        BLOCKS=power_of_two(blocks), WIDTH=power_of_two(blocks * count),
    )  # fmt: skip
    return best, scores
