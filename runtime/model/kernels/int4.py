"""Dot products of int4 weights with x: sums of a block in integers, exact in each lane; lanes are added in float32.

A block of x, BLOCK columns, is taken as integers of 23 bits times a power of two, its quantum, at most 2 ** -21 of the
largest magnitude in it. A value is off by at most half of that, and the sum of the block by

    2 ** -22 * largest |x| of the block * sum of |w| of the block

before anything is rounded in float32. The bound is absolute, not relative to the result: the largest x counts also
where its own weight is zero. Where it is below 2 ** -105, the quantum stops at 2 ** -126. Values of bfloat16 are exact
down to 2 ** -14 of the largest. Each integer is written as three signed digits of 8 bits, which one instruction
multiplies with codes as they lie in their bytes.

    sum of a block      of (code - 8) * integer, in int32; of weights with zero points of their own of code * integer
    dot product         sum of a block * (scale of its group * quantum), in float32, from the first block to the last;
                        then scale * zero point of each block * -sum of x

Two blocks lie in the halves of one vector; what is left over of an odd number is in the lower half of one. Where a
value is not finite, the quantum of its block is NaN. Row of x, of n blocks, as ``arrange`` leaves it:

    96 n bytes     digits: of each two blocks, and of the last alone, the lowest of columns 0 … 15, of 16 … 31, …
    int32 [n, 4]   what the lanes of a block's sum begin with: -8 * their integers of x
    float32 [n]    quanta
    float32 [n]    -sum of x, then zeros up to a whole vector
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from runtime.model.kernels.decoding import BLOCK, in_blocks, prefetch_rows
from runtime.model.kernels.elements import (
    F32,
    I8,
    I16,
    I32,
    I64,
    LANES,
    chosen,
    function,
    held,
    pointer,
    scalar_of,
    widened,
)
from runtime.model.kernels.processor import has

DIGITS = 3
"""Digits of an integer of x."""
BLOCK_BYTES = BLOCK // 2
"""Bytes of a block of codes."""
WIDE, HALF = 8, 4
"""Lanes of a sum, and those of one of its two blocks."""
ZERO = 8
"""Code of 0 where a weight has no zero points of its own."""
INFINITE, LEAST_EXPONENT, BITS = 255, 22, 22
"""Exponent field of values that are not finite; least one that a quantum is taken from; bits of the largest integer."""
ROUNDING, ROUNDING_BITS = 1.5 * 2**23, 0x4B400000
"""A float32 whose lowest bit is 1, and its bits."""
BYTES, WORDS, SUMS, FLOATS = (ir.VectorType(kind, count) for kind, count in ((I8, 32), (I16, 16), (I32, 8), (F32, 8)))


# ---- rows of x ----


@intrinsic  # type: ignore[untyped-decorator]
def arrange(typing: Any, data: Any, x: Any, out: Any, blocks: Any) -> Any:
    """Write a row of x as digits; arguments: the kernel's pointer, addresses of x and the result, number of blocks."""
    element = data.dtype

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        _, source, target, count = args
        whole = builder.sub(count, builder.urem(count, I64(2)))
        begins, quanta, sums = _parts(builder, target, count)
        padded = builder.mul(builder.udiv(builder.add(count, I64(WIDE - 1)), I64(WIDE)), I64(WIDE))
        with cgutils.for_range_slice(builder, count, padded, I64(1), intp=I64) as (block, _):
            builder.store(F32(0), pointer(builder, builder.add(sums, builder.mul(block, I64(4)))), align=4)
        for step, first, last in ((2, I64(0), whole), (1, whole, count)):
            with cgutils.for_range_slice(builder, first, last, I64(step), intp=I64) as (block, _):
                integers = []
                for own in (builder.add(block, I64(number)) for number in range(step)):
                    nbytes = element.bitwidth // 8
                    place = pointer(builder, builder.add(source, builder.mul(own, I64(BLOCK * nbytes))))
                    loaded = builder.load(place, typ=ir.VectorType(scalar_of(element), BLOCK), align=nbytes)
                    quantum, values = _integers(builder, widened(builder, loaded, element))
                    lanes = _lane_sums(builder, values)
                    builder.store(quantum, pointer(builder, builder.add(quanta, builder.mul(own, I64(4)))), align=4)
                    begin = builder.mul(lanes, ir.Constant(lanes.type, [-ZERO] * HALF))
                    builder.store(begin, pointer(builder, builder.add(begins, builder.mul(own, I64(16)))), align=4)
                    total = builder.sitofp(_reduced(builder, lanes, builder.add), F32)
                    negative = builder.fmul(builder.fsub(F32(-0.0), total), quantum)
                    builder.store(negative, pointer(builder, builder.add(sums, builder.mul(own, I64(4)))), align=4)
                    integers.append(values)
                place = builder.add(target, builder.mul(block, I64(DIGITS * BLOCK)))
                for number, digits in enumerate(_digits(builder, integers)):
                    start = builder.add(place, I64(digits.type.count * number))
                    builder.store(digits, pointer(builder, start), align=1)
        return context.get_dummy_value()

    return types.void(data, types.int64, types.int64, types.int64), code


def _parts(builder: ir.IRBuilder, row: Any, blocks: Any) -> tuple[Any, Any, Any]:
    """Return the addresses of a row's beginnings of sums, quanta, and sums of x."""
    begins = builder.add(row, builder.mul(blocks, I64(DIGITS * BLOCK)))
    quanta = builder.add(begins, builder.mul(blocks, I64(4 * HALF)))
    return begins, quanta, builder.add(quanta, builder.mul(blocks, I64(4)))


def _integers(builder: ir.IRBuilder, values: Any) -> tuple[Any, Any]:
    """Return the quantum of a block of float32, and its integers."""
    words = ir.VectorType(I32, BLOCK)

    def larger(a: Any, b: Any) -> Any:
        return builder.select(builder.icmp_unsigned(">", a, b), a, b)

    bits = builder.bitcast(values, words)
    largest = _reduced(builder, builder.and_(bits, ir.Constant(words, [0x7FFFFFFF] * BLOCK)), larger)
    exponent = builder.lshr(largest, I32(23))
    finite = builder.icmp_unsigned("<", exponent, I32(INFINITE))
    exponent = builder.select(builder.icmp_unsigned(">", exponent, I32(LEAST_EXPONENT)), exponent, I32(LEAST_EXPONENT))
    # quantum = 2 ** (exponent - 126 - BITS), of the float32 whose exponent field that is with 127 more
    field = builder.select(finite, builder.sub(exponent, I32(BITS - 1)), I32(INFINITE))
    quantum = builder.or_(builder.shl(field, I32(23)), builder.select(finite, I32(0), I32(1 << 22)))
    inverse = builder.bitcast(builder.shl(builder.sub(I32(253 + BITS), exponent), I32(23)), F32)
    none = ir.Constant(values.type, [0.0] * BLOCK)
    kept = builder.select(_all(builder, finite, BLOCK), values, none)
    # added to what has no bit below 1, a value is rounded there, and lies in the lowest bits
    scaled = builder.fmul(kept, _all(builder, inverse, BLOCK))
    rounded = builder.fadd(scaled, ir.Constant(values.type, [ROUNDING] * BLOCK))
    start = ir.Constant(words, [ROUNDING_BITS] * BLOCK)
    return builder.bitcast(quantum, F32), builder.sub(builder.bitcast(rounded, words), start)


def _lane_sums(builder: ir.IRBuilder, integers: Any) -> Any:
    """Return the sums [HALF] of the integers that each lane of a block's sum multiplies."""
    both = builder.add(chosen(builder, integers, range(16)), chosen(builder, integers, range(16, 32)))
    first, second = (
        builder.add(*(chosen(builder, both, range(column, 16, 4)) for column in columns))
        for columns in ((0, 1), (2, 3))
    )
    return builder.add(first, second)


def _digits(builder: ir.IRBuilder, integers: Sequence[Any]) -> list[Any]:
    """Return the digits of one or two blocks as bytes: the lowest of columns 0 … 15, those of 16 … 31, the next, …"""
    parts, rest = [], list(integers)
    for _ in range(DIGITS):
        lower = [builder.ashr(builder.shl(value, _all_like(value, 24)), _all_like(value, 24)) for value in rest]
        for half in (range(16), range(16, 32)):
            own = [builder.trunc(chosen(builder, value, half), ir.VectorType(I8, 16)) for value in lower]
            parts.append(own[0] if len(own) == 1 else builder.shuffle_vector(*own, _order(range(32))))
        rest = [builder.ashr(builder.sub(a, b), _all_like(a, 8)) for a, b in zip(rest, lower, strict=True)]
    return parts


def _reduced(builder: ir.IRBuilder, values: Any, combine: Any) -> Any:
    """Return a vector's lanes combined: half with half, until one is left."""
    while values.type.count > 1:
        half = values.type.count // 2
        values = combine(chosen(builder, values, range(half)), chosen(builder, values, range(half, 2 * half)))
    return builder.extract_element(values, I32(0))


def _all(builder: ir.IRBuilder, value: Any, lanes: int) -> Any:
    """Return a vector that has a value in each lane."""
    first = builder.insert_element(ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined), value, I32(0))
    return chosen(builder, first, [0] * lanes)


def _all_like(value: Any, number: int) -> Any:
    """Return a constant of the type of a vector of integers."""
    return ir.Constant(value.type, [number] * value.type.count)


def _order(lanes: Sequence[int]) -> Any:
    return ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes))


# ---- products ----


def sums(
    builder: ir.IRBuilder, outputs: int, rows: int, *, zeros: bool, codes: Sequence[Any], x: Sequence[Any],
    scales: Sequence[Any], points: Sequence[Any], blocks: Any,
) -> list[Any]:  # fmt: skip
    """Emit the dot products of ``outputs`` rows of codes with ``rows`` rows of x; return sums [rows, outputs].

    ``codes``, ``scales``, ``points``: addresses of each output's; ``x``: of each row's digits.
    """
    fma = function(builder, FLOATS, [FLOATS] * 3, f"llvm.fma.v{WIDE}f32")
    parts = [_parts(builder, row, blocks) for row in x]

    def multiply(step: int, block: Any, totals: Sequence[Any]) -> list[Any]:
        prefetch_rows(builder, codes[0], block, outputs * BLOCK_BYTES, step)
        place = builder.mul(block, I64(BLOCK_BYTES))
        halves = [_codes(builder, _bytes(builder, builder.add(start, place), step)) for start in codes]
        word = builder.mul(block, I64(4))
        factors = [_splat(builder, builder.add(start, word), step) for start in scales]
        next_totals: list[Any] = []
        for row, (begins, quanta, _) in zip(x, parts, strict=True):
            digits = builder.add(row, builder.mul(block, I64(DIGITS * BLOCK)))
            quantum = _splat(builder, builder.add(quanta, word), step)
            for output in range(outputs):
                # an address that no other output has: digits are operands in memory, and no register holds them
                total = _block_sums(builder, halves[output], held(builder, digits), step)
                if not zeros:
                    begin = builder.add(begins, builder.mul(block, I64(4 * HALF)))
                    total = builder.add(total, _widened_load(builder, begin, SUMS, step, 4))
                factor = builder.fmul(factors[output], quantum)
                before = totals[len(next_totals)]
                next_totals.append(builder.call(fma, [builder.sitofp(total, FLOATS), factor, before]))
        return next_totals

    def subtract(block: Any, totals: Sequence[Any]) -> list[Any]:
        beyond = builder.mul(block, I64(4))
        own, of_outputs = (
            [builder.load(pointer(builder, builder.add(base, beyond)), typ=FLOATS, align=4) for base in bases]
            for bases in ([sums_of_x for _, _, sums_of_x in parts], points)
        )
        return [
            builder.call(fma, [of_outputs[index % outputs], own[index // outputs], total])
            for index, total in enumerate(totals)
        ]

    whole = builder.sub(blocks, builder.urem(blocks, I64(2)))
    totals = [ir.Constant(FLOATS, [0.0] * WIDE)] * (rows * outputs)
    for step, first, end in ((2, I64(0), whole), (1, whole, blocks)):
        totals = in_blocks(builder, first, end, step, totals, partial(multiply, step))
    if zeros:
        totals = in_blocks(builder, I64(0), blocks, WIDE, totals, subtract)
    return [_extended(builder, total, LANES) for total in totals]


def _splat(builder: ir.IRBuilder, address: Any, step: int) -> Any:
    """Return the float32 of two blocks, each in all lanes of its half, or of one."""
    if step == 1:
        value = builder.load(pointer(builder, address), typ=ir.VectorType(F32, 1), align=4)
        return chosen(builder, value, [0] * WIDE)
    pair = builder.load(pointer(builder, address), typ=ir.VectorType(F32, 2), align=4)
    pairs = chosen(builder, pair, [0, 1] * (WIDE // 2))
    # held: LLVM would load the pair alone, and move it to both halves by two instructions
    return chosen(builder, held(builder, pairs), [0] * HALF + [HALF + 1] * HALF)


def _bytes(builder: ir.IRBuilder, address: Any, step: int) -> Any:
    """Return the bytes of two blocks, or of one with zeros behind them."""
    return _widened_load(builder, address, BYTES, step, 1)


def _widened_load(builder: ir.IRBuilder, address: Any, kind: Any, step: int, align: int) -> Any:
    """Return a vector in memory; its lower half, and zeros, where ``step`` is 1."""
    if step == 2:
        return builder.load(pointer(builder, address), typ=kind, align=align)
    half = ir.VectorType(kind.element, kind.count // 2)
    return _extended(builder, builder.load(pointer(builder, address), typ=half, align=align), kind.count)


def _extended(builder: ir.IRBuilder, values: Any, lanes: int) -> Any:
    """Return a vector with zeros behind it, or as it is."""
    count = values.type.count
    if count == lanes:
        return values
    return builder.shuffle_vector(values, ir.Constant(values.type, None), _order([min(i, count) for i in range(lanes)]))


def _codes(builder: ir.IRBuilder, packed: Any) -> tuple[Any, Any]:
    """Return the codes of columns 0 … 15, and of 16 … 31, of two blocks."""
    moved = builder.lshr(builder.bitcast(packed, WORDS), ir.Constant(WORDS, [4] * 16))
    mask = ir.Constant(BYTES, [15] * 32)
    return builder.and_(packed, mask), builder.and_(builder.bitcast(moved, BYTES), mask)


def _block_sums(builder: ir.IRBuilder, halves: tuple[Any, Any], digits: Any, step: int) -> Any:
    """Return the sums of code * integer of two blocks, int32 [WIDE]."""
    of_digits = []
    for digit in range(DIGITS):
        own = []
        for number, codes in enumerate(halves):
            place = builder.add(digits, I64(BLOCK_BYTES * step * (2 * digit + number)))
            own.append(_byte_pairs(builder, codes, _bytes(builder, place, step)))
        of_digits.append(builder.add(*own))  # of four products less than 2 ** 11 each
    lowest, middle, highest = of_digits
    upper = builder.add(_word_pairs(builder, highest, 256), _word_pairs(builder, middle, 1))
    return builder.add(builder.shl(upper, ir.Constant(SUMS, [8] * WIDE)), _word_pairs(builder, lowest, 1))


def _byte_pairs(builder: ir.IRBuilder, codes: Any, digits: Any) -> Any:
    """Return the sums of two neighbouring products of a code, without a sign, and a digit, with one: int16 [16]."""
    if has("avx2"):
        multiply = function(builder, WORDS, [BYTES, BYTES], "llvm.x86.avx2.pmadd.ub.sw")
        return builder.call(multiply, [codes, digits])
    wide = ir.VectorType(I16, 32)
    products = builder.mul(builder.zext(codes, wide), builder.sext(digits, wide))
    return builder.add(*(chosen(builder, products, range(first, 32, 2)) for first in (0, 1)))


def _word_pairs(builder: ir.IRBuilder, words: Any, factor: int) -> Any:
    """Return the sums of two neighbouring words times ``factor``: int32 [8]."""
    if has("avx2"):
        multiply = function(builder, SUMS, [WORDS, WORDS], "llvm.x86.avx2.pmadd.wd")
        return builder.call(multiply, [words, ir.Constant(WORDS, [factor] * 16)])
    wide = ir.VectorType(I32, 16)
    products = builder.mul(builder.sext(words, wide), ir.Constant(wide, [factor] * 16))
    return builder.add(*(chosen(builder, products, range(first, 16, 2)) for first in (0, 1)))
