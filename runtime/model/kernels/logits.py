"""Kernels of logits: the highest of each row, top-k with log-softmax, and that of a group's members together.

A thread computes whole rows. Sums are taken in an order that depends on the number of columns alone. A row that has
what is not a number gives some of its columns.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from runtime.model.kernels.arguments import Highest, Merged, Top
from runtime.model.kernels.elements import (
    I32,
    I64,
    LANES,
    F,
    arguments_of,
    chosen,
    doubles,
    elements,
    exp,
    floats,
    itemsize,
    numbers,
    pointer,
    scalar_of,
    splat,
    wide,
    widened,
)
from runtime.model.kernels.inner_loops import repeated
from runtime.model.kernels.softmax import VECTOR, exponential
from runtime.model.kernels.subroutines import subroutine
from runtime.model.kernels.team import thread, threads

BLOCK = 256
"""Columns whose highest logit is found at once."""
CHAINS = 4
"""Vectors of highest logits that are kept side by side."""
WORD_BYTES = 8

highest_arguments, top_arguments, merged_arguments = arguments_of(Highest), arguments_of(Top), arguments_of(Merged)


def _vector(builder: ir.IRBuilder, row: Any, number: Any, element: types.Type) -> Any:
    """Return a vector, by its number, of a row of elements as float32."""
    size = element.bitwidth // 8
    place = pointer(builder, builder.add(row, builder.mul(number, I64(size * LANES))))
    return widened(builder, builder.load(place, typ=ir.VectorType(scalar_of(element), LANES), align=size), element)


def _higher(builder: ir.IRBuilder, left: Any, right: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", left, right), left, right)


def _folded(builder: ir.IRBuilder, values: Any, combine: Any) -> Any:
    """Return one value of all lanes of a vector: half with half."""
    lanes = LANES
    while lanes > 1:
        lanes //= 2
        values = combine(chosen(builder, values, range(lanes)), chosen(builder, values, range(lanes, 2 * lanes)))
    return builder.extract_element(values, I32(0))


@intrinsic  # type: ignore[untyped-decorator]
def highest_of_block(typing: Any, data: Any, block: Any) -> Any:
    """Return the highest of BLOCK elements at an address."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        none = ir.Constant(VECTOR, [float("-inf")] * LANES)
        chains = [none] * CHAINS
        for number in range(BLOCK // LANES):
            value = _vector(builder, args[1], I64(number), data.dtype)
            chains[number % CHAINS] = _higher(builder, value, chains[number % CHAINS])
        while len(chains) > 1:
            chains = [_higher(builder, left, right) for left, right in zip(chains[::2], chains[1::2], strict=True)]
        return _folded(builder, chains[0], lambda left, right: _higher(builder, left, right))

    return types.float32(data, types.int64), code


@intrinsic  # type: ignore[untyped-decorator]
def sum_of_exponentials(typing: Any, data: Any, row: Any, vectors: Any, base: Any) -> Any:
    """Return the sum of e ** (x - base) of the elements x of so many vectors at an address, at most ``base``."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        _, row, vectors, base = args
        bases = splat(builder, base)

        def add(number: Any, sums: Sequence[Any]) -> list[Any]:
            value = builder.fsub(_vector(builder, row, number, data.dtype), bases)
            return [builder.fadd(sums[0], exponential(builder, value))]

        (sums,) = repeated(builder, I64(0), vectors, [ir.Constant(VECTOR, [0.0] * LANES)], add)
        return _folded(builder, sums, builder.fadd)

    return types.float32(data, types.int64, types.int64, types.float32), code


def highest(data: Any) -> None:
    """Find the highest logit of each row, of equal ones the first; arguments: ``Highest``."""
    a = highest_arguments(data)
    for row in range(np.int64(thread()), a.rows, np.int64(threads())):
        address = a.logits + row * a.logits_stride
        best, place = F(-np.inf), 0
        for start in range(0, a.columns, BLOCK):
            high = _highest_of(data, address, start, min(start + BLOCK, a.columns))
            if high > best:
                best, place = high, start
        logits, found = elements(data, address), place
        while found + 1 < min(place + BLOCK, a.columns) and wide(logits[found]) != best:
            found += 1
        numbers(a.tokens)[row] = found
        if a.words:
            words = doubles(a.words + row * 2 * WORD_BYTES)
            words[0], words[1] = np.float64(best), np.float64(a.first + found)


@subroutine(types.float32)
def _highest_of(data: Any, row: Any, start: Any, stop: Any) -> Any:
    """Return the highest of up to BLOCK logits of a row."""
    if stop - start == BLOCK:
        return highest_of_block(data, row + start * itemsize(data))
    logits, high = elements(data, row), F(-np.inf)
    for column in range(start, stop):
        value = wide(logits[column])
        high = value if value > high else high
    return high


def top(data: Any) -> None:
    """Find the highest logits of each row, of equal ones the first, by insertion; arguments: ``Top``.

    Blocks of columns without a higher one than the last that was found are left out.
    """
    a = top_arguments(data)
    for row in range(np.int64(thread()), a.rows, np.int64(threads())):
        address = a.logits + row * a.logits_stride
        logits = elements(data, address)
        best, score = numbers(a.best + row * a.top_k * WORD_BYTES), floats(a.scores + row * a.top_k * 4)
        for rank in range(a.top_k):
            best[rank], score[rank] = 0, F(-np.inf)
        for start in range(0, a.columns, BLOCK):
            stop = min(start + BLOCK, a.columns)
            if _highest_of(data, address, start, stop) <= score[a.top_k - 1]:
                continue
            for column in range(start, stop):
                value, rank = wide(logits[column]), a.top_k - 1
                if value > score[rank]:
                    while rank > 0 and value > score[rank - 1]:
                        best[rank], score[rank] = best[rank - 1], score[rank - 1]
                        rank -= 1
                    best[rank], score[rank] = column, value
        high, vectors = score[0], a.columns // LANES
        total = sum_of_exponentials(data, address, vectors, high)
        for column in range(vectors * LANES, a.columns):
            total += exp(wide(logits[column]) - high)
        if a.words:
            _write_candidates(a, row, best, score, total)
        else:
            for rank in range(a.top_k):
                score[rank] = (score[rank] - high) - np.log(total)


@subroutine()
def _write_candidates(a: Any, row: Any, best: Any, score: Any, total: Any) -> None:
    """Write a row's message of candidates: logits, tokens, the highest logit, the sum of exp(logit - highest)."""
    words = doubles(a.words + row * (2 * a.width + 2) * WORD_BYTES)
    for rank in range(a.width):
        known = rank < a.top_k
        words[rank] = np.float64(score[rank]) if known else -np.inf
        words[a.width + rank] = np.float64(a.first + best[rank]) if known else 0.0
    words[2 * a.width], words[2 * a.width + 1] = np.float64(score[0]), np.float64(total)


def merged(data: Any) -> None:
    """Find the best candidates of each row among those of all members; arguments: ``Merged``.

    With the highest logit M of all members, and of each its own m and sum s, log p = (logit - M) - log(sum of s *
    exp(m - M)).
    """
    a = merged_arguments(data)
    k, words = a.top_k, 2 * a.top_k + 2
    for row in range(np.int64(thread()), a.rows, np.int64(threads())):
        best, score = numbers(a.best + row * k * WORD_BYTES), floats(a.scores + row * k * 4)
        high, total = -np.inf, 0.0
        for rank in range(k):
            best[rank], score[rank] = 0, F(-np.inf)
        for member in range(a.members):
            own = doubles(a.gathered + (member * a.rows + row) * words * WORD_BYTES)
            high = max(high, own[2 * k])
            for number in range(k):
                value, rank = F(own[number]), k - 1
                if value <= score[rank]:
                    break  # those behind it are not higher
                while rank > 0 and value > score[rank - 1]:
                    best[rank], score[rank] = best[rank - 1], score[rank - 1]
                    rank -= 1
                best[rank], score[rank] = np.int64(own[k + number]), value
        for member in range(a.members):
            own = doubles(a.gathered + (member * a.rows + row) * words * WORD_BYTES)
            total += own[2 * k + 1] * np.exp(own[2 * k] - high)
        for rank in range(k):
            score[rank] = F((np.float64(score[rank]) - high) - np.log(total))
