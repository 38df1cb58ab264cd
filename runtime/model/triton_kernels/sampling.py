"""Draws of tokens from logits, one program a row: ``runtime.sampling`` has the method, ``runtime.model.draw`` the same
by torch's operations.

A program goes over its row once for the maximum, for each limit once for every three bits of it, and once for the race.
The search for a limit ends as soon as one weight or none is left between its bounds: what is kept is known then. The
random numbers are the integers of ``draw.exponential``; their logarithms are taken in float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.model import splitmix64
from runtime.model.triton_kernels import launch
from runtime.model.triton_kernels.launch import power_of_two
from runtime.model.triton_kernels.limits import LAST

COLUMNS = 512
"""Columns that a program looks at together."""
GOLDEN, FIRST, SECOND = (tl.constexpr(word) for word in (splitmix64.GOLDEN, splitmix64.FIRST, splitmix64.SECOND))


@triton.jit
def mixed(word):
    """Return splitmix64 of int64 words."""
    word = word + GOLDEN
    word = (word ^ ((word >> 30) & 0x3FFFFFFFF)) * FIRST
    word = (word ^ ((word >> 27) & 0x1FFFFFFFFF)) * SECOND
    return word ^ ((word >> 31) & 0x1FFFFFFFF)


@triton.jit
def exponential_of(key, tokens):
    """Return exponentials of mean 1, float32, of a position's key and int64 tokens.

    Of u = (2 h + 1) / 2^54, h the upper 53 bits of a hash, it is -log(1 - u): below 1/2 by the series of
    2 artanh(u / (2 - u)), else by the logarithm of 1 - u, which is exact until it is rounded to float32.
    """
    hashed = (mixed(tokens * GOLDEN + key) >> 11) & 0x1FFFFFFFFFFFFF
    u = (2 * hashed + 1).to(tl.float32) * 5.551115123125783e-17
    rest = (18014398509481983 - 2 * hashed).to(tl.float32) * 5.551115123125783e-17
    s = u / (2.0 - u)
    t = s * s
    series = 0.09090909090909091 + t * (0.07692307692307693 + t * 0.06666666666666667)
    series = 1.0 + t * (
        0.3333333333333333 + t * (0.2 + t * (0.14285714285714285 + t * (0.1111111111111111 + t * series)))
    )
    return tl.where(hashed < (1 << 52), 2.0 * s * series, -tl.log(rest))


@triton.jit
def weights_of(row, column, width, high, temperature, least):
    """Return the weights of some columns, 0 below ``least``."""
    value = tl.load(row + column, mask=column < width, other=float("-inf")).to(tl.float32)
    weight = tl.exp((value - high) / temperature)
    return tl.where((column < width) & (weight >= least), weight, 0.0)


@triton.jit
def _limit(row, width, high, temperature, least, wanted, COUNTS: tl.constexpr, BLOCK: tl.constexpr):
    """Return the highest weight w for which those >= w are ``wanted``, by number or by sum; or any above the next one.

    Bits are found three at a time, the highest first: digit d of the eight has the columns d of [BLOCK, 8].
    """
    digit = tl.arange(0, 8)
    bits, shift, more = 0, 27, 2
    while (shift >= 0) & (more > 1):
        lower = tl.cast(bits + (digit << shift), tl.float32, bitcast=True)
        numbers, totals = tl.zeros([8], tl.int32), tl.zeros([8], tl.float64)
        for begin in range(0, width, BLOCK):
            weight = weights_of(row, begin + tl.arange(0, BLOCK), width, high, temperature, least)[:, None]
            reaches = (weight >= lower[None, :]) & (weight > 0.0)
            numbers += tl.sum(reaches.to(tl.int32), 0)
            if not COUNTS:
                totals += tl.sum(tl.where(reaches, weight, 0.0), 0).to(tl.float64)
        if COUNTS:
            totals = numbers.to(tl.float64)
        chosen = tl.sum(((totals >= wanted) & (digit > 0)).to(tl.int32), 0)
        reached = tl.sum(tl.where(digit == chosen, numbers, 0), 0)
        beyond = tl.sum(tl.where(digit == chosen + 1, numbers, 0), 0)
        more = tl.where(chosen == 7, 2, reached - beyond)
        bits += chosen << shift
        shift -= 3
    return tl.cast(bits, tl.float32, bitcast=True)


@triton.jit
def draw_kernel(
    logits, depths, temperatures, top_ks, top_ps, keys, positions, greedy, tokens, stride, width, rows_per_sequence,
    LIMITS_K: tl.constexpr, LIMITS_P: tl.constexpr, MIXED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Draw a token after one row; or take its highest one, of equal ones the first."""
    row = tl.program_id(0).to(tl.int64)
    sequence = row // rows_per_sequence
    logits += row * stride
    is_greedy = sequence < 0
    if MIXED:
        is_greedy = tl.load(greedy + sequence) != 0
    temperature = tl.load(temperatures + sequence)
    high = float("-inf")
    for begin in range(0, width, BLOCK):
        column = begin + tl.arange(0, BLOCK)
        value = tl.load(logits + column, mask=column < width, other=float("-inf")).to(tl.float32)
        high = tl.maximum(high, tl.max(value, 0))
    least = 0.0 * temperature
    if not is_greedy:
        if LIMITS_K:
            top_k = tl.load(top_ks + sequence)
            if top_k < width:
                least = _limit(logits, width, high, temperature, least, top_k, True, BLOCK)
        if LIMITS_P:
            top_p = tl.load(top_ps + sequence)
            if top_p < 1.0:
                mass = 0.0 * top_p
                for begin in range(0, width, BLOCK):
                    weight = weights_of(logits, begin + tl.arange(0, BLOCK), width, high, temperature, least)
                    mass += tl.sum(weight, 0).to(tl.float64)
                limit = _limit(logits, width, high, temperature, least, mass * top_p, False, BLOCK)
                least = tl.maximum(least, limit)
    key = mixed(tl.load(keys + sequence) + tl.load(positions + sequence) + tl.load(depths + row))
    best, token = float("-inf"), 0
    for begin in range(0, width, BLOCK):
        column = begin + tl.arange(0, BLOCK)
        if is_greedy:
            arrival = tl.load(logits + column, mask=column < width, other=float("-inf")).to(tl.float32)
        else:
            weight = weights_of(logits, column, width, high, temperature, least)
            arrival = tl.where(column < width, weight / exponential_of(key, column.to(tl.int64)), float("-inf"))
        most = tl.max(arrival, 0)
        first = tl.min(tl.where(arrival == most, column, LAST), 0)
        token = tl.where(most > best, first, token)
        best = tl.maximum(best, most)
    tl.store(tokens + row, tl.minimum(token, width - 1).to(tl.int64))


def draw(
    logits: Tensor, depths: Tensor, *, temperatures: Tensor, top_ks: Tensor | None, top_ps: Tensor | None,
    keys: Tensor, positions: Tensor, greedy: Tensor | None,
) -> Tensor:  # fmt: skip
    """Return a token drawn after each row [W], of ``logits`` [W, V] of n rows of each of B sequences.

    ``depths`` [W] int64. [B] of sequences: ``temperatures`` float32, ``top_ks`` and ``top_ps`` float64, from V and from
    1 on no limit, ``keys`` and ``positions`` int64, ``greedy`` bool: the highest token, of equal ones the first. None:
    there are no limits, and no sequence is greedy.
    """
    (rows, width), batch = logits.shape, keys.shape[0]
    assert rows % batch == 0
    assert depths.shape == (rows,)
    columns = (temperatures, top_ks, top_ps, positions, greedy)
    assert all(column is None or column.numel() == batch for column in columns)
    assert logits.stride(1) == 1
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    launch.start(
        draw_kernel, (rows,), logits, depths, temperatures, top_ks, top_ps, keys, positions,
        None if greedy is None else greedy.view(torch.uint8), tokens, logits.stride(0), width, rows // batch,
        LIMITS_K=top_ks is not None, LIMITS_P=top_ps is not None, MIXED=greedy is not None,
        BLOCK=min(COLUMNS, power_of_two(width)), warps=8,
    )  # fmt: skip
    return tokens
