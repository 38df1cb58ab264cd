"""The softmax of a row of scores as LLVM IR, a vector at a time: scale and bias with the maximum, then exponentials.

Each element is computed by itself, the maximum is the same in any order, and so is the sum, which is of whole numbers:
a weight has the same bits wherever in a row its score is, and however many there are.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from runtime.model.kernels.elements import F32, I32, I64, LANES, function, pointer, scalar_of, splat, widened
from runtime.model.kernels.inner_loops import repeated

LEAST = -87.0
"""Of less the exponential is 0 here: all others are normal numbers."""
UNIT = 2.0**30
"""Softmax weights, at most 1, are counted in 1 / UNIT when they are summed: whole numbers have one sum in any order."""
ROUNDING = 1.5 * 2.0**23
"""A float32 of which the last place is 1: a sum with a small number is rounded to the nearest whole one."""
LOG2_E, LN2_HIGH, LN2_LOW = 1.44269504, 0.693359375, -2.12194440e-4
"""log2(e), and log(2) as the sum of two float32, of which the first has few bits."""
SERIES = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
"""Coefficients of r ** 7 ... r ** 2 in Cephes' expf, for |r| up to log(2) / 2."""
BLOCK = 64
"""Columns of a bias that are looked at together for one that is seen."""
HIDDEN = -3e38
"""A bias hides a column where it is not above this."""
VECTOR, WORDS, SUMS = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES), ir.VectorType(I64, LANES // 2)


def _constant(kind: ir.VectorType, value: float | int) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _fused(builder: ir.IRBuilder, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c, rounded once."""
    return builder.call(function(builder, VECTOR, [VECTOR] * 3, f"llvm.fma.v{LANES}f32"), [a, b, c])


def _at(builder: ir.IRBuilder, base: Any, vector: Any, element_bytes: int) -> Any:
    """Return where a vector, by its number, lies in a row of elements."""
    return pointer(builder, builder.add(base, builder.mul(vector, I64(element_bytes * LANES))))


def exponential(builder: ir.IRBuilder, x: Any) -> Any:
    """Return e ** x of a vector of float32 that are at most 0, within 1.1 units in the last place; 0 below LEAST.

    x = n * log(2) + r, where n is the nearest whole number to x * log2(e); n is in the last places of a sum with
    ROUNDING, from where it is added to the exponent of e ** r. NaN stays.
    """
    counted = _fused(builder, x, _constant(VECTOR, LOG2_E), _constant(VECTOR, ROUNDING))
    n = builder.fsub(counted, _constant(VECTOR, ROUNDING))
    r = _fused(builder, n, _constant(VECTOR, -LN2_HIGH), x)
    r = _fused(builder, n, _constant(VECTOR, -LN2_LOW), r)
    p = _constant(VECTOR, SERIES[0])
    for coefficient in SERIES[1:]:
        p = _fused(builder, p, r, _constant(VECTOR, coefficient))
    power = builder.fadd(_fused(builder, p, builder.fmul(r, r), r), _constant(VECTOR, 1.0))
    exponent = builder.shl(builder.bitcast(counted, WORDS), _constant(WORDS, 23))
    result = builder.bitcast(builder.add(builder.bitcast(power, WORDS), exponent), VECTOR)
    none = builder.fcmp_ordered("<", x, _constant(VECTOR, LEAST))
    return builder.select(none, _constant(VECTOR, 0.0), result)


@intrinsic  # type: ignore[untyped-decorator]
def add_bias(typing: Any, data: Any, scores: Any, bias: Any, vectors: Any, scale: Any, high: Any) -> Any:
    """Replace scores by scale * score + bias, and return the maximum of ``high`` and all of them.

    ``scores``: address of float32; ``bias``: of elements; ``vectors``: number of vectors of LANES of them.
    """
    element = data.dtype

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        _, scores, bias, vectors, scale, high = args
        factor = splat(builder, scale)

        def add(number: Any, highest: Sequence[Any]) -> list[Any]:
            place = _at(builder, scores, number, 4)
            source = _at(builder, bias, number, element.bitwidth // 8)
            added = builder.load(source, typ=ir.VectorType(scalar_of(element), LANES), align=element.bitwidth // 8)
            value = _fused(builder, builder.load(place, typ=VECTOR, align=4), factor, widened(builder, added, element))
            builder.store(value, place, align=4)
            return [builder.select(builder.fcmp_ordered(">", value, highest[0]), value, highest[0])]

        (highest,) = repeated(builder, I64(0), vectors, [splat(builder, high)], add)
        for lane in range(LANES):
            value = builder.extract_element(highest, I32(lane))
            high = builder.select(builder.fcmp_ordered(">", value, high), value, high)
        return high

    return types.float32(data, types.int64, types.int64, types.int64, types.float32, types.float32), code


@intrinsic  # type: ignore[untyped-decorator]
def shows(typing: Any, data: Any, bias: Any) -> Any:
    """Return whether a bias, the address of BLOCK elements, shows one of its columns: is above HIDDEN there."""
    element = data.dtype

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        shown, nbytes = ir.Constant(ir.VectorType(ir.IntType(1), LANES), [0] * LANES), element.bitwidth // 8
        for first in range(0, BLOCK, LANES):
            place = pointer(builder, builder.add(args[1], I64(nbytes * first)))
            added = builder.load(place, typ=ir.VectorType(scalar_of(element), LANES), align=nbytes)
            above = builder.fcmp_ordered(">", widened(builder, added, element), _constant(VECTOR, HIDDEN))
            shown = builder.or_(shown, above)
        bits = builder.bitcast(shown, ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.IntType(LANES)(0))

    return types.boolean(data, types.int64), code


@intrinsic  # type: ignore[untyped-decorator]
def to_weights(typing: Any, scores: Any, vectors: Any, base: Any) -> Any:
    """Replace scores by e ** (score - base), and return the sum, in 1 / UNIT; arguments as in ``add_bias``."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        scores, vectors, base = args
        subtracted = splat(builder, base)

        def weigh(number: Any, sums: Sequence[Any]) -> list[Any]:
            place = _at(builder, scores, number, 4)
            weight = exponential(builder, builder.fsub(builder.load(place, typ=VECTOR, align=4), subtracted))
            builder.store(weight, place, align=4)
            units = _fused(builder, weight, _constant(VECTOR, UNIT), _constant(VECTOR, 0.5))
            both = builder.bitcast(builder.fptosi(units, WORDS), SUMS)  # two in a word of 64 bits
            low, high = builder.and_(both, _constant(SUMS, 0xFFFFFFFF)), builder.lshr(both, _constant(SUMS, 32))
            return [builder.add(sums[0], low), builder.add(sums[1], high)]

        zero = _constant(SUMS, 0)
        low, high = repeated(builder, I64(0), vectors, [zero, zero], weigh)
        both = builder.add(low, high)
        total = I64(0)
        for lane in range(LANES // 2):
            total = builder.add(total, builder.extract_element(both, I32(lane)))
        return total

    return types.int64(types.int64, types.int64, types.float32), code
