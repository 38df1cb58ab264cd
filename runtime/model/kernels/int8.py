"""Dot products of int8 weights that have one scale for each output and no zero points: exact sums of integers.

A row of x is taken as integers X of 31 bits times a power of two, its quantum, at most 2 ** -29 of the largest
magnitude in it. A value is off by at most half of that, and a result by

    2 ** -30 * largest |x| of the row * sum of |w| of the output

before it is rounded; values of bfloat16 are exact down to 2 ** -22 of the largest. The bound is absolute, not relative
to the result. Where the largest is below 2 ** -96, the quantum stops at 2 ** -126; where a value is not finite, it is
NaN. Each integer is written as four signed digits of 8 bits, which one instruction multiplies with four codes as they
lie in their bytes, and adds up in int32:

    result = (sum of code * X - 128 * sum of X) * quantum * scale, in float64

Integers have no order of summation, so a result has the same bits whatever is multiplied with it. This takes AVX-512
VNNI; other processors multiply numbers in float32 (``decoding``). Row of x, of n blocks of 32 columns, as ``arrange``
leaves it; columns behind the last are 0:

    128 n bytes    digits: of each two blocks, and of the last alone, the lowest of all columns, the next, …
    float64        sum of X
    float64        quantum
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from runtime.model.kernels.decoding import BLOCK, in_blocks, prefetch_rows
from runtime.model.kernels.elements import (
    F32,
    F64,
    I8,
    I32,
    I64,
    POINTER,
    chosen,
    function,
    held,
    pointer,
    scalar_of,
    splat,
    widened,
)
from runtime.model.kernels.processor import has

AVAILABLE = has("avx512f", "avx512bw", "avx512vl", "avx512vnni")
"""Whether the processor multiplies bytes in vectors of 64."""
MOST_INPUTS = 1 << 16
"""Most columns whose products of a code and a digit, less than 2 ** 15 each, add up to an int32."""
DIGITS, ZERO = 4, 128
"""Digits of an integer of x; code of 0."""
BITS, LEAST_EXPONENT, INFINITE = 30, 31, 255
"""Bits of the largest integer; least exponent field that a quantum is taken from; that of what is not finite."""
STEP = 2 * BLOCK
"""Columns that one instruction multiplies."""
SUMS, BYTES = ir.VectorType(I32, 16), ir.VectorType(I8, STEP)
EXPONENT_BIAS = 1023
"""Of float64."""


# ---- rows of x ----


@intrinsic  # type: ignore[untyped-decorator]
def arrange(typing: Any, data: Any, x: Any, out: Any, inputs: Any) -> Any:
    """Write a row of x as digits; arguments: the kernel's pointer, addresses of x and the result, columns of x."""
    element = data.dtype

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        _, source, target, columns = args
        blocks = builder.udiv(builder.add(columns, I64(BLOCK - 1)), I64(BLOCK))
        words, wide = ir.VectorType(I32, BLOCK), ir.VectorType(I64, BLOCK)

        def magnitudes(block: Any, largest: Sequence[Any]) -> list[Any]:
            bits = builder.bitcast(_values(builder, element, source, block, columns), words)
            bits = builder.and_(bits, _all(words, 0x7FFFFFFF))
            return [builder.select(builder.icmp_unsigned(">", bits, largest[0]), bits, largest[0])]

        (each,) = in_blocks(builder, I64(0), blocks, 1, [_all(words, 0)], magnitudes)
        largest = builder.call(function(builder, I32, [words], f"llvm.vector.reduce.umax.v{BLOCK}i32"), [each])
        exponent = builder.lshr(largest, I32(23))
        finite = builder.icmp_unsigned("<", exponent, I32(INFINITE))
        least = builder.icmp_unsigned(">", exponent, I32(LEAST_EXPONENT))
        exponent = builder.select(least, exponent, I32(LEAST_EXPONENT))
        # 2 ** (126 - exponent + BITS), whose exponent field has 127 more
        inverse = builder.bitcast(builder.shl(builder.sub(I32(253 + BITS), exponent), I32(23)), F32)
        field = builder.zext(builder.add(exponent, I32(EXPONENT_BIAS - 126 - BITS)), I64)
        quantum = builder.bitcast(builder.shl(field, I64(52)), F64)
        quantum = builder.select(finite, quantum, ir.Constant(F64, float("nan")))
        of_all = splat(builder, inverse, BLOCK)
        whole = builder.sub(blocks, builder.urem(blocks, I64(2)))

        def digits(block: Any, sums: Sequence[Any]) -> list[Any]:
            values = _values(builder, element, source, block, columns)
            values = builder.select(splat(builder, finite, BLOCK), values, _all(values.type, 0.0))
            scaled = builder.fmul(values, of_all)
            rounded = builder.call(function(builder, scaled.type, [scaled.type], f"llvm.rint.v{BLOCK}f32"), [scaled])
            integers = builder.fptosi(rounded, words)
            second = builder.and_(block, I64(1))
            place = builder.add(target, builder.mul(builder.sub(block, second), I64(BLOCK * DIGITS)))
            place = builder.add(place, builder.mul(second, I64(BLOCK)))
            apart = builder.select(builder.icmp_unsigned("<", block, whole), I64(STEP), I64(BLOCK))
            rest = integers
            for _ in range(DIGITS):
                octets = builder.trunc(rest, ir.VectorType(I8, BLOCK))
                builder.store(octets, pointer(builder, place), align=1)
                place = builder.add(place, apart)
                rest = builder.ashr(builder.add(rest, _all(words, 128)), _all(words, 8))
            return [builder.add(sums[0], builder.sext(integers, wide))]

        (sums,) = in_blocks(builder, I64(0), blocks, 1, [_all(wide, 0)], digits)
        total = builder.call(function(builder, I64, [wide], f"llvm.vector.reduce.add.v{BLOCK}i64"), [sums])
        end = builder.add(target, builder.mul(blocks, I64(DIGITS * BLOCK)))
        builder.store(builder.sitofp(total, F64), pointer(builder, end), align=4)
        builder.store(quantum, pointer(builder, builder.add(end, I64(8))), align=4)
        return context.get_dummy_value()

    return types.void(data, types.int64, types.int64, types.int64), code


def _values(builder: ir.IRBuilder, element: types.Type, x: Any, block: Any, columns: Any) -> Any:
    """Return a block of a row of x as float32, 0 behind the last column."""
    nbytes = element.bitwidth // 8
    place = builder.add(x, builder.mul(block, I64(BLOCK * nbytes)))
    left = builder.sub(columns, builder.mul(block, I64(BLOCK)))
    return widened(builder, _first(builder, place, ir.VectorType(scalar_of(element), BLOCK), left), element)


def _first(builder: ir.IRBuilder, address: Any, kind: Any, count: Any) -> Any:
    """Return a vector in memory, of which only the first ``count`` lanes are read, and others are 0."""
    words = ir.VectorType(I32, kind.count)
    most = builder.select(builder.icmp_signed("<", count, I64(kind.count)), count, I64(kind.count))
    lanes = splat(builder, builder.trunc(most, I32), kind.count)
    mask = builder.icmp_unsigned("<", ir.Constant(words, list(range(kind.count))), lanes)
    name = {"i8": "i8", "i16": "i16", "float": "f32"}[str(kind.element)]
    load = function(builder, kind, [POINTER, mask.type, kind], f"llvm.masked.load.v{kind.count}{name}.p0")
    return builder.call(load, [pointer(builder, address), mask, _all(kind, 0.0 if name == "f32" else 0)])


def _all(kind: Any, number: float) -> Any:
    """Return a constant vector of one number."""
    return ir.Constant(kind, [number] * kind.count)


# ---- products ----


def sums(builder: ir.IRBuilder, codes: Sequence[Any], x: Sequence[Any], inputs: Any) -> list[Any]:
    """Emit the sums of code * digit of each row of x with each row of codes, int32 vectors [rows, outputs, DIGITS].

    ``codes``: addresses of each output's; ``x``: of each row's digits.
    """
    codes, x = [held(builder, row) for row in codes], [held(builder, row) for row in x]
    multiply = function(builder, SUMS, [SUMS, BYTES, BYTES], "llvm.x86.avx512.vpdpbusd.512")

    def add(step: Any, totals: Sequence[Any], rest: Any | None) -> list[Any]:
        place = builder.mul(step, I64(STEP))
        if rest is None:
            prefetch_rows(builder, codes[0], step, len(codes) * STEP, 1)
            starts = [pointer(builder, builder.add(row, place)) for row in codes]
            own_codes = [builder.load(start, typ=BYTES, align=1) for start in starts]
            apart = I64(STEP)
        else:
            own_codes = [_first(builder, builder.add(row, place), BYTES, rest) for row in codes]
            # of one block alone; behind it are other digits, and codes that are 0
            apart = builder.select(builder.icmp_unsigned(">", rest, I64(BLOCK)), I64(STEP), I64(BLOCK))
        next_totals = list(totals)
        for row, start in enumerate(x):
            first = builder.add(start, builder.mul(place, I64(DIGITS)))
            for digit in range(DIGITS):
                source = builder.add(first, builder.mul(apart, I64(digit)))
                digits = builder.load(pointer(builder, source), typ=BYTES, align=1)
                for output, some in enumerate(own_codes):
                    index = (row * len(codes) + output) * DIGITS + digit
                    next_totals[index] = builder.call(multiply, [totals[index], some, digits])
        return next_totals

    steps, rest = builder.udiv(inputs, I64(STEP)), builder.urem(inputs, I64(STEP))
    totals = [_all(SUMS, 0)] * (len(x) * len(codes) * DIGITS)
    totals = in_blocks(builder, I64(0), steps, 1, totals, partial(add, rest=None))
    last = builder.add(steps, builder.zext(builder.icmp_unsigned(">", rest, I64(0)), I64))
    return in_blocks(builder, steps, last, 1, totals, partial(add, rest=rest))


def scaled(builder: ir.IRBuilder, totals: Any, x: Sequence[Any], scales: Any, inputs: Any) -> Any:
    """Return the results of sums of all columns, int32 [rows, outputs, DIGITS], as float32 [rows, outputs].

    ``x``: addresses of the rows' digits; ``scales``: float32 [outputs].
    """
    count = totals.type.count // DIGITS
    outputs = count // len(x)
    numbers = builder.sitofp(totals, ir.VectorType(F64, totals.type.count))
    numbers = builder.fmul(numbers, ir.Constant(numbers.type, [2.0 ** (8 * digit) for digit in range(DIGITS)] * count))
    while numbers.type.count > count:
        both = (chosen(builder, numbers, range(first, numbers.type.count, 2)) for first in (0, 1))
        numbers = builder.fadd(*both)
    blocks = builder.udiv(builder.add(inputs, I64(BLOCK - 1)), I64(BLOCK))
    behind = builder.mul(blocks, I64(DIGITS * BLOCK))
    of_sums, of_quanta = (
        _of_rows(builder, [builder.add(row, builder.add(behind, I64(place))) for row in x], outputs) for place in (0, 8)
    )
    numbers = builder.fsub(numbers, builder.fmul(of_sums, _all(of_sums.type, float(ZERO))))
    factors = builder.load(pointer(builder, scales), typ=ir.VectorType(F32, outputs), align=4)
    factors = builder.fpext(chosen(builder, factors, list(range(outputs)) * len(x)), numbers.type)
    results = builder.fmul(builder.fmul(numbers, of_quanta), factors)
    return builder.fptrunc(results, ir.VectorType(F32, count))


def _of_rows(builder: ir.IRBuilder, addresses: Sequence[Any], outputs: int) -> Any:
    """Return the float64 of each row, repeated for each output."""
    vector = ir.Constant(ir.VectorType(F64, len(addresses)), ir.Undefined)
    for number, address in enumerate(addresses):
        value = builder.load(pointer(builder, address), typ=F64, align=4)
        vector = builder.insert_element(vector, value, I32(number))
    return chosen(builder, vector, [number for number in range(len(addresses)) for _ in range(outputs)])
