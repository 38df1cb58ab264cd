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

Two blocks lie in the halves of one vector, four in one of 512 bits where AVX-512 VNNI multiplies them; what is left
over is multiplied as two, and the last of an odd number in the lower half. Integers are exact and floats are added in
one order, so that all processors have the same bits. Where a value is not finite, the quantum of its block is NaN. Row
of x, of n blocks, as ``arrange`` leaves it:

    96 n bytes     digits: of the blocks of one vector the lowest of columns 0 … 15, of 16 … 31, the next digits, …
    int32 [n, 4]   what the lanes of a block's sum begin with: -8 * their integers of x
    float32 [n]    quanta
    float32 [n]    -sum of x, then zeros up to a whole vector
"""

from collections.abc import Iterator, Sequence
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
WIDEST = 64
"""Bytes of a vector of the codes of four blocks."""
FOURS = has("avx512f", "avx512bw", "avx512vnni")
"""Whether four blocks are multiplied at once."""
STEPS = (4, 2, 1) if FOURS else (2, 1)
"""Blocks that are multiplied at once, from the first on, and of what is left over."""
INFINITE, LEAST_EXPONENT, BITS = 255, 22, 22
"""Exponent field of values that are not finite; least one that a quantum is taken from; bits of the largest integer."""
ROUNDING, ROUNDING_BITS = 1.5 * 2**23, 0x4B400000
"""A float32 whose lowest bit is 1, and its bits."""
WORDS, FLOATS = ir.VectorType(I16, 16), ir.VectorType(F32, WIDE)


# ---- rows of x ----


@intrinsic  # type: ignore[untyped-decorator]
def arrange(typing: Any, data: Any, x: Any, out: Any, blocks: Any) -> Any:
    """Write a row of x as digits; arguments: the kernel's pointer, addresses of x and the result, number of blocks."""
    element = data.dtype

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        _, source, target, count = args
        begins, quanta, sums = _parts(builder, target, count)
        padded = builder.mul(builder.udiv(builder.add(count, I64(WIDE - 1)), I64(WIDE)), I64(WIDE))
        with cgutils.for_range_slice(builder, count, padded, I64(1), intp=I64) as (block, _):
            builder.store(F32(0), pointer(builder, builder.add(sums, builder.mul(block, I64(4)))), align=4)
        for step, first, last in _ranges(builder, count):
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


def _ranges(builder: ir.IRBuilder, blocks: Any) -> Iterator[tuple[int, Any, Any]]:
    """Yield each number of blocks that are multiplied at once, with the first block and the end of those that are."""
    first: Any = I64(0)
    for step in STEPS:
        last = builder.sub(blocks, builder.urem(blocks, I64(step)))
        yield step, first, last
        first = last


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
    """Return the digits of a vector of blocks as bytes: the lowest of columns 0 … 15, those of 16 … 31, the next, …"""
    parts, rest = [], list(integers)
    for _ in range(DIGITS):
        lower = [builder.ashr(builder.shl(value, _all_like(value, 24)), _all_like(value, 24)) for value in rest]
        for half in (range(16), range(16, 32)):
            own = [builder.trunc(chosen(builder, value, half), ir.VectorType(I8, 16)) for value in lower]
            while len(own) > 1:
                lanes = _order(range(2 * own[0].type.count))
                own = [builder.shuffle_vector(*both, lanes) for both in zip(own[::2], own[1::2], strict=True)]
            parts += own
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
                begin = None
                if not zeros:
                    place_of_begin = builder.add(begins, builder.mul(block, I64(4 * HALF)))
                    begin = _loaded(builder, place_of_begin, I32, HALF, step, 4)
                # an address that no other output has: digits are operands in memory, and no register holds them
                total = _block_sums(builder, halves[output], held(builder, digits), step, begin)
                factor = builder.fmul(factors[output], quantum)
                values, sum_so_far = builder.sitofp(total, factor.type), totals[len(next_totals)]
                for half in range(0, total.type.count, WIDE):
                    own = [chosen(builder, some, range(half, half + WIDE)) for some in (values, factor)]
                    sum_so_far = builder.call(fma, [*own, sum_so_far])
                next_totals.append(sum_so_far)
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

    totals = [ir.Constant(FLOATS, [0.0] * WIDE)] * (rows * outputs)
    for step, first, end in _ranges(builder, blocks):
        totals = in_blocks(builder, first, end, step, totals, partial(multiply, step))
    if zeros:
        totals = in_blocks(builder, I64(0), blocks, WIDE, totals, subtract)
    return [_extended(builder, total, LANES) for total in totals]


def _splat(builder: ir.IRBuilder, address: Any, step: int) -> Any:
    """Return the float32 of some blocks, each in all lanes of its part of a vector."""
    values = builder.load(pointer(builder, address), typ=ir.VectorType(F32, step), align=4)
    if step == 1:
        return chosen(builder, values, [0] * WIDE)
    if step == 4:
        return chosen(builder, values, [block for block in range(step) for _ in range(HALF)])
    pairs = chosen(builder, values, [0, 1] * (WIDE // 2))
    # held: LLVM would load the pair alone, and move it to both halves by two instructions
    return chosen(builder, held(builder, pairs), [0] * HALF + [HALF + 1] * HALF)


def _bytes(builder: ir.IRBuilder, address: Any, step: int) -> Any:
    """Return the bytes of some blocks."""
    return _loaded(builder, address, I8, BLOCK_BYTES, step, 1)


def _loaded(builder: ir.IRBuilder, address: Any, kind: ir.Type, count: int, step: int, align: int) -> Any:
    """Return ``count`` numbers in memory of each of ``step`` blocks as a vector; of one with zeros behind them."""
    values = builder.load(pointer(builder, address), typ=ir.VectorType(kind, count * step), align=align)
    return _extended(builder, values, count * max(step, 2))


def _extended(builder: ir.IRBuilder, values: Any, lanes: int) -> Any:
    """Return a vector with zeros behind it, or as it is."""
    count = values.type.count
    if count == lanes:
        return values
    return builder.shuffle_vector(values, ir.Constant(values.type, None), _order([min(i, count) for i in range(lanes)]))


def _codes(builder: ir.IRBuilder, packed: Any) -> tuple[Any, Any]:
    """Return the codes of columns 0 … 15, and of 16 … 31, of some blocks."""
    words = ir.VectorType(I16, packed.type.count // 2)
    moved = builder.bitcast(
        builder.lshr(builder.bitcast(packed, words), ir.Constant(words, [4] * words.count)), packed.type
    )
    mask = ir.Constant(packed.type, [15] * packed.type.count)
    return builder.and_(packed, mask), builder.and_(moved, mask)


def _block_sums(builder: ir.IRBuilder, halves: tuple[Any, Any], digits: Any, step: int, begin: Any | None) -> Any:
    """Return the sums of code * integer of some blocks, int32 [HALF] of each, added to ``begin``; None: to 0."""
    places = [builder.add(digits, I64(BLOCK_BYTES * step * number)) for number in range(2 * DIGITS)]
    bytes_of = [_bytes(builder, place, step) for place in places]
    of_digits = [(bytes_of[2 * digit], bytes_of[2 * digit + 1]) for digit in range(DIGITS)]
    if step == 4:
        return _quad_sums(builder, halves, of_digits, begin)
    lowest, middle, highest = (  # of four products less than 2 ** 11 each
        builder.add(*(_byte_pairs(builder, *both) for both in zip(halves, own, strict=True))) for own in of_digits
    )
    upper = builder.add(_word_pairs(builder, highest, 256), _word_pairs(builder, middle, 1))
    lower = _word_pairs(builder, lowest, 1)
    total = builder.add(builder.shl(upper, ir.Constant(upper.type, [8] * WIDE)), lower)
    return total if begin is None else builder.add(total, begin)


def _quad_sums(builder: ir.IRBuilder, halves: tuple[Any, Any], of_digits: Sequence[Any], begin: Any | None) -> Any:
    """Return the same of four blocks; the products of a digit are added to the sum of those above it, times 256."""
    sums, octets = ir.VectorType(I32, WIDEST // 4), ir.VectorType(I8, WIDEST)
    multiply = function(builder, sums, [sums, octets, octets], "llvm.x86.avx512.vpdpbusd.512")
    total = ir.Constant(sums, None)
    for number, digits in reversed(list(enumerate(of_digits))):
        if number < DIGITS - 1:
            total = builder.shl(total, ir.Constant(sums, [8] * sums.count))
        if number == 0 and begin is not None:
            total = builder.add(total, begin)
        for codes, own in zip(halves, digits, strict=True):
            total = builder.call(multiply, [total, codes, own])
    return total


def _byte_pairs(builder: ir.IRBuilder, codes: Any, digits: Any) -> Any:
    """Return the sums of two neighbouring products of a code, without a sign, and a digit, with one: int16 [16]."""
    if has("avx2"):
        multiply = function(builder, WORDS, [codes.type, digits.type], "llvm.x86.avx2.pmadd.ub.sw")
        return builder.call(multiply, [codes, digits])
    wide = ir.VectorType(I16, 32)
    products = builder.mul(builder.zext(codes, wide), builder.sext(digits, wide))
    return builder.add(*(chosen(builder, products, range(first, 32, 2)) for first in (0, 1)))


def _word_pairs(builder: ir.IRBuilder, words: Any, factor: int) -> Any:
    """Return the sums of two neighbouring words times ``factor``: int32 [8]."""
    sums = ir.VectorType(I32, WIDE)
    if has("avx2"):
        multiply = function(builder, sums, [WORDS, WORDS], "llvm.x86.avx2.pmadd.wd")
        return builder.call(multiply, [words, ir.Constant(WORDS, [factor] * 16)])
    wide = ir.VectorType(I32, 16)
    products = builder.mul(builder.sext(words, wide), ir.Constant(wide, [factor] * 16))
    return builder.add(*(chosen(builder, products, range(first, 16, 2)) for first in (0, 1)))
