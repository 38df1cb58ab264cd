"""Codes of quantized weights as float32: (code - zero) * scale, exactly as ``plans.quantized`` has it.

Columns are decoded in blocks; each group of blocks has a scale and a zero point, its factors, which are written down as
float32 for some rows before these are read. The codes of float8 and float4 are numbers of float16 but for a power of
two, which the factor has instead: no product with a power of two is rounded.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from runtime.model.kernels.arguments import CODES, SCALES
from runtime.model.kernels.elements import F32, I8, I16, I32, I64, LANES, F, floats, pointer, scalar_of, widened
from runtime.model.kernels.subroutines import subroutine

BLOCK = 32
"""Columns of a block; those of 4 bits are packed so (``plans.quantized``)."""
INT4, INT8, FLOAT8, FLOAT4 = range(len(CODES))
BFLOAT16, FLOAT16, FLOAT32, EXPONENT = range(len(SCALES))
FLOAT8_UNIT = F(256)
"""float8_e4m3fn has exponents that are 8 less than those of float16 with the same bits."""
FLOAT4_BIAS = 113
"""Exponent of 1 in float8_e8m0, 127, less the 14 by which float4_e2m1 differs from float16."""


# ---- LLVM builders ----


def block_bytes(code: int) -> int:
    """Return the bytes of a block of codes."""
    return BLOCK // 2 if code in (INT4, FLOAT4) else BLOCK


def decoded(builder: ir.IRBuilder, code: int, source: Any, factors: Sequence[Any], fma: Any = None) -> Iterator[Any]:
    """Yield a block as vectors of LANES float32; address of its codes, its scale and its zero point as vectors.

    ``fma``: LLVM's function, with which integers are code * scale + offset; instead of the zero point there is
    the offset -zero * scale, which has to be exact.
    """
    scale, zero = factors
    octets = [
        builder.load(pointer(builder, builder.add(source, I64(first))), typ=ir.VectorType(I8, LANES), align=1)
        for first in range(0, block_bytes(code), LANES)
    ]
    for half in ("lower", "upper") if code in (INT4, FLOAT4) else (None,):
        for some in octets:
            values = _numbers(builder, some, code, half)
            if code in (INT4, INT8) and fma is not None:
                yield builder.call(fma, [values, scale, zero])
            else:
                yield builder.fmul(builder.fsub(values, zero) if code in (INT4, INT8) else values, scale)


def splat(builder: ir.IRBuilder, address: Any) -> Any:
    """Return a vector of the float32 at an address."""
    vector = ir.VectorType(F32, LANES)
    value = builder.load(pointer(builder, address), typ=F32, align=4)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, I32(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(I32, LANES), [0] * LANES))


def _bits(builder: ir.IRBuilder, values: Any, mask: int, left: int) -> Any:
    """Return (values & mask) << left, of a vector; right where ``left`` is negative."""
    moved = ir.Constant(values.type, [abs(left)] * values.type.count)
    kept = builder.and_(values, ir.Constant(values.type, [mask] * values.type.count))
    return builder.shl(kept, moved) if left >= 0 else builder.lshr(kept, moved)


def _numbers(builder: ir.IRBuilder, octets: Any, code: int, half: str | None = None) -> Any:
    """Return codes as float32, of floats without their power of two; ``half``: of each byte that has them."""
    count = octets.type.count
    wide = builder.zext(octets, ir.VectorType(I32 if code in (INT4, INT8) else I16, count))
    if half is not None:
        wide = _bits(builder, wide, 15, 0) if half == "lower" else _bits(builder, wide, 0xF0, -4)
    if code in (INT4, INT8):
        return builder.sitofp(wide, ir.VectorType(F32, count))
    exponents, sign = ((0x7F, 7), (0x80, 8)) if code == FLOAT8 else ((0x7, 9), (0x8, 12))
    bits = builder.or_(_bits(builder, wide, *exponents), _bits(builder, wide, *sign))
    return builder.fpext(builder.bitcast(bits, ir.VectorType(ir.HalfType(), count)), ir.VectorType(F32, count))


def in_groups(
    builder: ir.IRBuilder, blocks: Any, per_group: Any, sums: Sequence[Any],
    enter: Callable[[Any], Any], body: Callable[[Any, Any, Sequence[Any]], list[Any]],
) -> list[Any]:  # fmt: skip
    """Emit loops over groups and over the blocks of each, ``per_group`` or those that are left; return the last sums.

    ``enter`` takes the number of a group and returns what its blocks have in common; ``body`` takes that, the number of
    a block and the sums so far, and returns the next ones.
    """
    before, outer = builder.block, builder.append_basic_block("group")
    inner, leave = builder.append_basic_block("block"), builder.append_basic_block("leave")
    after = builder.append_basic_block("after")
    builder.branch(outer)
    builder.position_at_end(outer)
    group, first = builder.phi(I64), builder.phi(I64)
    outer_sums = [builder.phi(value.type) for value in sums]
    common = enter(group)
    end = builder.add(first, per_group)
    end = builder.select(builder.icmp_signed("<", end, blocks), end, blocks)
    entered = builder.block
    builder.branch(inner)
    builder.position_at_end(inner)
    block = builder.phi(I64)
    inner_sums = [builder.phi(value.type) for value in sums]
    next_sums = body(common, block, inner_sums)
    next_block = builder.add(block, I64(1))
    builder.cbranch(builder.icmp_signed("<", next_block, end), inner, leave)
    builder.position_at_end(leave)
    next_group = builder.add(group, I64(1))
    builder.cbranch(builder.icmp_signed("<", end, blocks), outer, after)
    for phi, start, following in ((group, I64(0), next_group), (first, I64(0), end)):
        phi.add_incoming(start, before)
        phi.add_incoming(following, leave)
    block.add_incoming(first, entered)
    block.add_incoming(next_block, inner)
    for outside, inside, start, following in zip(outer_sums, inner_sums, sums, next_sums, strict=True):
        outside.add_incoming(start, before)
        outside.add_incoming(following, leave)
        inside.add_incoming(outside, entered)
        inside.add_incoming(following, inner)
    builder.position_at_end(after)
    return next_sums


# ---- intrinsics ----


def spread(code: int) -> Any:
    """Return an intrinsic that writes blocks of codes as float32.

    Its arguments: addresses of the codes, the results, the groups' scales and zero points; number of blocks, not 0, and
    of those of a group.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def spread_blocks(typing: Any, codes: Any, out: Any, scales: Any, zeros: Any, blocks: Any, per_group: Any) -> Any:
        def body(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            source, target, of_scales, of_zeros, count, of_group = args

            def enter(group: Any) -> Any:
                place = builder.mul(group, I64(4))
                return [splat(builder, builder.add(base, place)) for base in (of_scales, of_zeros)]

            def write(factors: Any, block: Any, sums: Any) -> list[Any]:
                start = builder.add(source, builder.mul(block, I64(block_bytes(code))))
                end = builder.add(target, builder.mul(block, I64(4 * BLOCK)))
                for number, values in enumerate(decoded(builder, code, start, factors)):
                    builder.store(values, pointer(builder, builder.add(end, I64(4 * LANES * number))), align=4)
                return []

            in_groups(builder, count, of_group, [], enter, write)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), body

    return spread_blocks


def _column(code: int) -> Any:
    """Return an intrinsic for a code at an address as float32, with its zero point and scale, float32."""

    @intrinsic  # type: ignore[untyped-decorator]
    def column(typing: Any, address: Any, zero: Any, scale: Any) -> Any:
        def body(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            octets = builder.load(pointer(builder, args[0]), typ=ir.VectorType(I8, 1), align=1)
            value = builder.extract_element(_numbers(builder, octets, code), I32(0))
            return builder.fmul(builder.fsub(value, args[1]), args[2])

        return types.float32(types.int64, types.float32, types.float32), body

    return column


int8_column, float8_column = _column(INT8), _column(FLOAT8)


def _converted(element: types.Type | None) -> Any:
    """Return an intrinsic that writes scales as float32; None: exponents, of float4; uint8: zero points.

    Its arguments: addresses of the first and of the results, their number, a float32 by which each is multiplied.
    """
    nbytes = 1 if element is None else element.bitwidth // 8

    def load(builder: ir.IRBuilder, address: Any, count: int) -> Any:
        kind = I8 if nbytes == 1 else scalar_of(element)
        loaded = builder.load(pointer(builder, address), typ=ir.VectorType(kind, count), align=nbytes)
        words, numbers = ir.VectorType(I32, count), ir.VectorType(F32, count)
        if element is None:
            moved = builder.add(builder.zext(loaded, words), ir.Constant(words, [127 - FLOAT4_BIAS] * count))
            return builder.bitcast(builder.shl(moved, ir.Constant(words, [23] * count)), numbers)
        if nbytes == 1:
            return builder.sitofp(builder.zext(loaded, words), numbers)
        return widened(builder, loaded, element)

    @intrinsic  # type: ignore[untyped-decorator]
    def convert(typing: Any, source: Any, target: Any, count: Any, unit: Any) -> Any:
        def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            start, out, end, factor = args
            index = cgutils.alloca_once_value(builder, I64(0))
            for at_once in (LANES, 1):  # then those that are left
                loop, body = builder.append_basic_block("loop"), builder.append_basic_block("body")
                after = builder.append_basic_block("after")
                builder.branch(loop)
                builder.position_at_end(loop)
                first = builder.load(index)
                last = builder.add(first, I64(at_once))
                builder.cbranch(builder.icmp_signed("<=", last, end), body, after)
                builder.position_at_end(body)
                values = load(builder, builder.add(start, builder.mul(first, I64(nbytes))), at_once)
                units = ir.Constant(ir.VectorType(F32, at_once), ir.Undefined)
                for lane in range(at_once):
                    units = builder.insert_element(units, factor, I32(lane))
                place = pointer(builder, builder.add(out, builder.mul(first, I64(4))))
                builder.store(builder.fmul(values, units), place, align=4)
                builder.store(last, index)
                builder.branch(loop)
                builder.position_at_end(after)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, types.float32), code

    return convert


convert_bfloat16, convert_float16, convert_float32, convert_exponents, convert_octets = (
    _converted(element) for element in (types.uint16, types.int16, types.float32, None, types.uint8)
)


@subroutine(apart=True, fast=frozenset())
def write_factors(a: Any, row: Any, rows: Any, groups: Any, scales: Any, zeros: Any) -> None:
    """Write scales of rows of ``a``, a CodedProduct, and their zero points, float32 [rows, groups].

    Zero points that all rows have are not written (``write_zeros``).
    """
    unit = FLOAT8_UNIT if a.code == FLOAT8 else F(1)
    size = 4 if a.scale == FLOAT32 else 1 if a.scale == EXPONENT else 2
    passes, count = rows, groups
    if a.scales_stride == size * groups and (not a.zeros or a.zeros_stride == groups):  # one behind the other
        passes, count = 1, rows * groups
    for number in range(passes):
        source, target = a.scales + (row + number) * a.scales_stride, scales + 4 * number * groups
        if a.scale == BFLOAT16:
            convert_bfloat16(source, target, count, unit)
        elif a.scale == FLOAT16:
            convert_float16(source, target, count, unit)
        elif a.scale == FLOAT32:
            convert_float32(source, target, count, unit)
        else:
            convert_exponents(source, target, count, unit)
        if a.zeros:
            convert_octets(a.zeros + (row + number) * a.zeros_stride, zeros + 4 * number * groups, count, F(1))


@subroutine(apart=True, fast=frozenset())
def write_zeros(a: Any, count: Any, zeros: Any) -> None:
    """Write ``count`` zero points of ``a``, a CodedProduct, where all rows have the same."""
    for number in range(count):
        floats(zeros)[number] = half_range(a)


@subroutine(apart=True, fast=frozenset())
def write_offsets(a: Any, count: Any, scales: Any, zeros: Any) -> None:
    """Replace ``count`` zero points of ``a``, a CodedProduct, by -zero * scale, also those that all rows have."""
    scale, offset = floats(scales), floats(zeros)
    if a.zeros:
        for number in range(count):
            offset[number] = -offset[number] * scale[number]
    else:
        zero = half_range(a)
        for number in range(count):
            offset[number] = -zero * scale[number]


@subroutine(types.float32)
def half_range(a: Any) -> Any:
    """Return the zero point that all rows of ``a``, a CodedProduct, have."""
    return F(8) if a.code == INT4 else F(128) if a.code == INT8 else F(0)
