"""Codes of quantized weights as float32: (code - zero) * scale, exactly as ``plans.quantized`` has it.

Columns are decoded in blocks; each block of a row has a scale and a zero point, its factors, which are written down as
float32 before the row is read. The codes of float8 and float4 are numbers of float16 but for a power of two, which
the factor has instead: no product with a power of two is rounded.
"""

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from runtime.model.kernels.arguments import CODES, SCALES
from runtime.model.kernels.elements import F32, I16, I32, I64, F, floats, pointer, scalar_of, widened
from runtime.model.kernels.subroutines import subroutine

I8 = ir.IntType(8)
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


def decoded(builder: ir.IRBuilder, code: int, codes: Any, scales: Any, zeros: Any, block: Any, lanes: int) -> list[Any]:
    """Return a block of a row as vectors of ``lanes`` float32; addresses of the row's codes, scales and zero points."""
    source = builder.add(codes, builder.mul(block, I64(block_bytes(code))))
    place = builder.mul(block, I64(4))
    scale, zero = (
        builder.load(pointer(builder, builder.add(factors, place)), typ=F32, align=4) for factors in (scales, zeros)
    )
    count = block_bytes(code)
    loaded = builder.load(pointer(builder, source), typ=ir.VectorType(I8, count), align=1)
    parts = [loaded]
    if count < BLOCK:
        fifteen, four = (ir.Constant(loaded.type, [number] * count) for number in (15, 4))
        parts = [builder.and_(loaded, fifteen), builder.lshr(loaded, four)]
    if code == INT4:  # the difference of codes and zero point, at most 16, is a byte with a sign
        point = _splat(builder, builder.trunc(builder.fptosi(zero, I32), I8), count)
        parts = [builder.sub(part, point) for part in parts]
    point, factor = _splat(builder, zero, lanes), _splat(builder, scale, lanes)
    vectors = []
    for part in parts:
        for first in range(0, count, lanes):
            places = ir.Constant(ir.VectorType(I32, lanes), list(range(first, first + lanes)))
            values = _numbers(builder, builder.shuffle_vector(part, part, places), code)
            if code == INT8:
                values = builder.fsub(values, point)
            vectors.append(builder.fmul(values, factor))
    return vectors


def _splat(builder: ir.IRBuilder, value: Any, count: int) -> Any:
    """Return a vector of one value."""
    vector = ir.VectorType(value.type, count)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, I32(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(I32, count), [0] * count))


def _bits(builder: ir.IRBuilder, values: Any, mask: int, left: int) -> Any:
    """Return (values & mask) << left, of a vector of int16."""
    count = values.type.count
    kept = builder.and_(values, ir.Constant(values.type, [mask] * count))
    return builder.shl(kept, ir.Constant(values.type, [left] * count))


def _numbers(builder: ir.IRBuilder, octets: Any, code: int) -> Any:
    """Return codes, a vector of bytes, those of int4 with a sign, as float32; of floats without their power of two."""
    count = octets.type.count
    if code in (INT4, INT8):
        extend = builder.sext if code == INT4 else builder.zext
        return builder.sitofp(extend(octets, ir.VectorType(I32, count)), ir.VectorType(F32, count))
    wide = builder.zext(octets, ir.VectorType(I16, count))
    if code == FLOAT8:
        half = builder.or_(_bits(builder, wide, 0x7F, 7), _bits(builder, wide, 0x80, 8))
    else:
        half = builder.or_(_bits(builder, wide, 0x7, 9), _bits(builder, wide, 0x8, 12))
    return builder.fpext(builder.bitcast(half, ir.VectorType(ir.HalfType(), count)), ir.VectorType(F32, count))


# ---- intrinsics ----


def spread(code: int, lanes: int) -> Any:
    """Return an intrinsic that writes blocks of codes as float32.

    Its arguments: addresses of the codes, the results, the blocks' scales and zero points; number of blocks, not 0.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def spread_blocks(typing: Any, codes: Any, out: Any, scales: Any, zeros: Any, blocks: Any) -> Any:
        def body(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            source, target, of_scales, of_zeros, count = args
            before, loop = builder.block, builder.append_basic_block("loop")
            after = builder.append_basic_block("after")
            builder.branch(loop)
            builder.position_at_end(loop)
            block = builder.phi(I64)
            block.add_incoming(I64(0), before)
            for number, values in enumerate(decoded(builder, code, source, of_scales, of_zeros, block, lanes)):
                end = builder.add(target, builder.mul(block, I64(4 * BLOCK)))
                builder.store(values, pointer(builder, builder.add(end, I64(4 * lanes * number))), align=4)
            following = builder.add(block, I64(1))
            block.add_incoming(following, loop)
            builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
            builder.position_at_end(after)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), body

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


def _factor(element: types.Type | None) -> Any:
    """Return an intrinsic that loads a scale at an address as float32; None: an exponent, of float4."""

    @intrinsic  # type: ignore[untyped-decorator]
    def load(typing: Any, address: Any) -> Any:
        def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            if element is None:
                exponent = builder.zext(builder.load(pointer(builder, args[0]), typ=I8, align=1), I32)
                shifted = builder.add(exponent, I32(127 - FLOAT4_BIAS))
                return builder.bitcast(builder.shl(shifted, I32(23)), F32)
            size, kind = element.bitwidth // 8, scalar_of(element)
            return widened(builder, builder.load(pointer(builder, args[0]), typ=kind, align=size), element)

        return types.float32(types.int64), code

    return load


bfloat16_scale, float16_scale, float32_scale, exponent_scale = (
    _factor(element) for element in (types.uint16, types.int16, types.float32, None)
)


@intrinsic  # type: ignore[untyped-decorator]
def octet(typing: Any, address: Any) -> Any:
    """Return the byte at an address as float32."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        loaded = builder.load(pointer(builder, args[0]), typ=I8, align=1)
        return builder.sitofp(builder.zext(loaded, I32), F32)

    return types.float32(types.int64), code


def _written(load: Any, nbytes: int) -> Any:
    """Return a function that writes one scale or zero point per block as float32, each of ``per_group`` blocks."""

    @subroutine(apart=True, fast=frozenset())
    def write(source: Any, factors: Any, blocks: Any, per_group: Any) -> None:
        target = floats(factors)
        if per_group == 1:
            for block in range(blocks):
                target[block] = load(source + nbytes * block)
        else:
            for group in range((blocks + per_group - 1) // per_group):
                value = load(source + nbytes * group)
                for block in range(group * per_group, min((group + 1) * per_group, blocks)):
                    target[block] = value

    return write


write_bfloat16, write_float16 = _written(bfloat16_scale, 2), _written(float16_scale, 2)
write_float32 = _written(float32_scale, 4)
write_exponents, write_octets = _written(exponent_scale, 1), _written(octet, 1)


@subroutine(apart=True, fast=frozenset())
def write_factors(a: Any, row: Any, scales: Any, zeros: Any) -> None:
    """Write the scales of row ``row`` of ``a``, a CodedProduct, and its zero points, unless all rows have the same."""
    blocks = (a.inputs + BLOCK - 1) // BLOCK
    per_group = a.group // BLOCK if a.group < a.inputs else blocks
    source = a.scales + row * a.scales_stride
    if a.scale == BFLOAT16:
        write_bfloat16(source, scales, blocks, per_group)
    elif a.scale == FLOAT16:
        write_float16(source, scales, blocks, per_group)
    elif a.scale == FLOAT32:
        write_float32(source, scales, blocks, per_group)
    else:
        write_exponents(source, scales, blocks, per_group)
    if a.code == FLOAT8:
        for block in range(blocks):
            floats(scales)[block] *= FLOAT8_UNIT
    if a.zeros:
        write_octets(a.zeros + row * a.zeros_stride, zeros, blocks, per_group)


@subroutine(apart=True)
def write_zeros(a: Any, zeros: Any) -> None:
    """Write the zero points of the blocks of a row of ``a``, a CodedProduct, where all rows have the same."""
    zero = F(8) if a.code == INT4 else F(128) if a.code == INT8 else F(0)
    for block in range((a.inputs + BLOCK - 1) // BLOCK):
        floats(zeros)[block] = zero
