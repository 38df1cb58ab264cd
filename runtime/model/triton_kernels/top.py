"""The best of each row of logits with their log-softmax, in two passes: blocks of columns, then the blocks' best."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.model.triton_kernels import launch
from runtime.model.triton_kernels.launch import ceil_div, power_of_two
from runtime.model.triton_kernels.limits import LAST

COLUMNS = 4096
"""Columns of a program."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocks:
    """The K best of each block of columns of rows of logits, as a second pass reads them."""

    values: Tensor
    """[W, blocks, K] float32"""
    columns: Tensor
    """[W, blocks, K] int32"""
    highs: Tensor
    """[W, blocks] float32: the highest value of each block."""
    totals: Tensor
    """[W, blocks] float32: the sum of exp(value - highest)."""
    width: int
    """Columns of logits, V."""

    @property
    def count(self) -> int:
        """Blocks of a row."""
        return self.values.shape[1]


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
    left = tl.where(column < width, column, LAST)
    for number in range(K):
        best = tl.max(value, 0)
        first = tl.min(tl.where(value == best, left, LAST), 0)  # of equal ones the first that is left
        tl.store(values + at * K + number, best)
        tl.store(columns + at * K + number, first)
        value, left = tl.where(column == first, float("-inf"), value), tl.where(column == first, LAST, left)


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
    column = tl.load(columns + row * blocks * K + candidate, mask=inside, other=LAST)
    for number in range(K):
        highest = tl.max(value, 0)
        first = tl.min(tl.where(value == highest, column, LAST), 0)
        # what is not a number is above nothing: then it is the last column
        tl.store(best + row * K + number, tl.minimum(first, width - 1).to(tl.int64))
        tl.store(scores + row * K + number, highest - log_sum)
        taken = column == first
        value, column = tl.where(taken, float("-inf"), value), tl.where(taken, LAST, column)


@triton.jit
def words_kernel(
    values, columns, highs, totals, words, blocks, first_token,
    K: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Find the K best of a row among its blocks' best; write them, their tokens, the highest, the sum of exponentials.

    That is a row of ``plans.step.CandidateLayout``.
    """
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCKS)
    high = tl.load(highs + row * blocks + block, mask=block < blocks, other=float("-inf"))
    total = tl.load(totals + row * blocks + block, mask=block < blocks, other=0.0)
    most = tl.max(high, 0)
    words += row * (2 * K + 2)
    tl.store(words + 2 * K, most.to(tl.float64))
    tl.store(words + 2 * K + 1, tl.sum(total * tl.exp(high - most), 0).to(tl.float64))
    candidate = tl.arange(0, WIDTH)
    inside = candidate < blocks * K
    value = tl.load(values + row * blocks * K + candidate, mask=inside, other=float("-inf"))
    column = tl.load(columns + row * blocks * K + candidate, mask=inside, other=LAST)
    for number in range(K):
        highest = tl.max(value, 0)
        first = tl.min(tl.where(value == highest, column, LAST), 0)
        # a device with fewer rows than K has no more
        tl.store(words + number, highest.to(tl.float64))
        tl.store(words + K + number, tl.where(first == LAST, 0, first + first_token).to(tl.float64))
        taken = column == first
        value, column = tl.where(taken, float("-inf"), value), tl.where(taken, LAST, column)


@triton.jit
def merge_words_kernel(
    words, best, scores, members, member_stride,
    K: tl.constexpr, MEMBERS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Find the K best of a row among those of all members, and their log-softmax."""
    row = tl.program_id(0).to(tl.int64)
    words += row * (2 * K + 2)
    member = tl.arange(0, MEMBERS)
    own = words + member * member_stride
    high = tl.load(own + 2 * K, mask=member < members, other=float("-inf"))
    total = tl.load(own + 2 * K + 1, mask=member < members, other=0.0)
    most = tl.max(high, 0)
    log_sum = tl.log(tl.sum(total * tl.exp(high - most), 0))
    candidate = tl.arange(0, WIDTH)
    inside = candidate < members * K
    at = words + candidate // K * member_stride + candidate % K
    value = tl.load(at, mask=inside, other=float("-inf"))
    token = tl.load(at + K, mask=inside, other=0.0).to(tl.int64)
    left = tl.where(inside, candidate, LAST)
    for number in range(K):
        highest = tl.max(value, 0)
        first = tl.min(tl.where(value == highest, left, LAST), 0)  # of equal ones that of the first member
        taken = candidate == first
        tl.store(best + row * K + number, tl.sum(tl.where(taken, token, 0), 0))
        tl.store(scores + row * K + number, (highest - most - log_sum).to(tl.float32))
        value, left = tl.where(taken, float("-inf"), value), tl.where(taken, LAST, left)


def of_blocks(logits: Tensor, count: int) -> Blocks:
    """Return the ``count`` best of each block of columns of logits [W, V]."""
    rows, width = logits.shape
    assert logits.stride(1) == 1
    blocks = ceil_div(width, COLUMNS)
    values = torch.empty(rows, blocks, count, dtype=torch.float32, device=logits.device)
    columns = torch.empty(rows, blocks, count, dtype=torch.int32, device=logits.device)
    highs, totals = values.new_empty(2, rows, blocks)
    launch.start(
        block_kernel, (rows, blocks), logits, values, columns, highs, totals, width, logits.stride(0), blocks,
        K=count, BLOCK=min(COLUMNS, power_of_two(width)), warps=8,
    )  # fmt: skip
    return Blocks(values=values, columns=columns, highs=highs, totals=totals, width=width)


def top(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the ``count`` highest of each row of logits [W, V], best first, of equal ones the first: columns, and
    log-softmax in float32.
    """
    rows, width = logits.shape
    assert 0 < count <= width
    own = of_blocks(logits, count)
    best = torch.empty(rows, count, dtype=torch.int64, device=logits.device)
    scores = own.values.new_empty(rows, count)
    launch.start(
        best_kernel, (rows,), own.values, own.columns, own.highs, own.totals, best, scores, own.count, width, K=count,
        BLOCKS=power_of_two(own.count), WIDTH=power_of_two(own.count * count),
    )  # fmt: skip
    return best, scores


def words(logits: Tensor, count: int, first: int) -> Tensor:
    """Return a member's candidates, float64 [W, words] (``plans.step.CandidateLayout``): the ``count`` highest of its
    logits [W, v] of tokens ``first`` …, of equal ones the first; where there are fewer, -inf.
    """
    rows, own = logits.shape[0], of_blocks(logits, count)
    out = torch.empty(rows, 2 * count + 2, dtype=torch.float64, device=logits.device)
    launch.start(
        words_kernel, (rows,), own.values, own.columns, own.highs, own.totals, out, own.count, first, K=count,
        BLOCKS=power_of_two(own.count), WIDTH=power_of_two(own.count * count),
    )  # fmt: skip
    return out


def of_all(gathered: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return tokens and log-softmax [W, count] of the best among all members' candidates [members, W, words]."""
    members, rows, width = gathered.shape
    assert width == 2 * count + 2
    assert gathered.is_contiguous()
    best = torch.empty(rows, count, dtype=torch.int64, device=gathered.device)
    scores = torch.empty(rows, count, dtype=torch.float32, device=gathered.device)
    launch.start(
        merge_words_kernel, (rows,), gathered, best, scores, members, rows * width, K=count,
        MEMBERS=power_of_two(members), WIDTH=power_of_two(members * count),
    )  # fmt: skip
    return best, scores
