"""Codes of quantized weights as float32, and what multiplies them: value = (code - zero) * scale.

A weight's codes are read in blocks of BLOCK columns. A block becomes VECTORS vectors of numbers, and number n is
(code of its column) * 2 ** e(n), an exact float32. Columns and exponents e are in the order of ``places``; a row of x
is brought into that order once for a product, each value times 2 ** -e (``arranged``). So integers are unpacked by a
mask alone: a field of a word stays where it is. Codes of float8 and float4 are numbers of float16 but for a power of
two, which the scale has instead. No product with a power of two is rounded. Codes of int4 never become float32:
``int4`` multiplies them as integers.

    sum of a block      number * x, from its first vector to its last; of integers without zero points of their own it
                        begins with -zero * sum of x, which is computed once for a row of x
    dot product         sum of a block * scale of its group, from the first block to the last; then scale * zero point
                        of each block * -sum of x
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from runtime.model.kernels.arguments import CODES, SCALES
from runtime.model.kernels.elements import (
    F32,
    I8,
    I16,
    I32,
    I64,
    LANES,
    LINE_BYTES,
    F,
    chosen,
    floats,
    pointer,
    prefetch,
    scalar_of,
    widened,
)
from runtime.model.kernels.subroutines import subroutine

AHEAD_BYTES = 4096
"""Distance at which codes are prefetched."""
BLOCK = 32
"""Columns of a block; those of 4 bits are packed so (``plans.quantized``)."""
VECTORS = BLOCK // LANES
"""Vectors of a block."""
WORDS, REPEATED = 8, LANES // 8
"""Words of 32 bits of a block of int8, and how often a vector has them."""
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


def places(code: int) -> list[tuple[int, int]]:
    """Return column and exponent e of each number of a block, in their order.

    All lanes of a vector of int8 have the words of a block, of 32 bits, one behind the other; where it has more lanes,
    again, and the words of the repetition are shifted by one field.
    """
    if code != INT8:
        return [(column, 0) for column in range(BLOCK)]
    order = []
    for place in range(BLOCK):
        word, field = place % LANES % WORDS, place // LANES * REPEATED + place % LANES // WORDS
        order.append((4 * word + field, 0 if _at_top(place // LANES) else 8 * REPEATED * (place // LANES)))
    return order


def _at_top(vector: int) -> bool:
    """Return whether the fields of a vector of int8 reach the sign of a word; they are shifted to its lower end."""
    return 8 * (REPEATED * vector + 1) == 32


def numbers(builder: ir.IRBuilder, code: int, source: Any) -> Iterator[Any]:
    """Yield the numbers of a block as vectors of LANES float32, of the address of its codes."""
    if code == INT8:
        yield from _integers(builder, source)
        return
    octets = [
        builder.load(pointer(builder, builder.add(source, I64(first))), typ=ir.VectorType(I8, LANES), align=1)
        for first in range(0, block_bytes(code), LANES)
    ]
    for half in ("lower", "upper") if code == FLOAT4 else (None,):
        for some in octets:
            yield _floats(builder, some, code, half)


def _integers(builder: ir.IRBuilder, source: Any) -> Iterator[Any]:
    loaded = builder.load(pointer(builder, source), typ=ir.VectorType(I32, WORDS), align=1)
    words = loaded if REPEATED == 1 else chosen(builder, loaded, [lane % WORDS for lane in range(LANES)])
    if REPEATED > 1:
        words = builder.lshr(words, ir.Constant(words.type, [8 * (lane // WORDS) for lane in range(LANES)]))
    for vector in range(VECTORS):
        first = 8 * REPEATED * vector
        if _at_top(vector):
            kept = builder.lshr(words, ir.Constant(words.type, [first] * LANES))
        else:
            kept = builder.and_(words, ir.Constant(words.type, [255 << first] * LANES))
        yield builder.sitofp(kept, ir.VectorType(F32, LANES))


def splat(builder: ir.IRBuilder, address: Any) -> Any:
    """Return a vector of the float32 at an address."""
    value = builder.load(pointer(builder, address), typ=ir.VectorType(F32, 1), align=4)
    return chosen(builder, value, [0] * LANES)


def prefetch_rows(builder: ir.IRBuilder, left: Any, block: Any, nbytes: int, blocks: int) -> None:
    """Prefetch as many bytes as ``blocks`` blocks of all outputs have, so that rows one behind the other all are.

    ``nbytes``: of one block of each output; ``block``: the first one's number.
    """
    first = builder.add(builder.add(left, I64(AHEAD_BYTES)), builder.mul(block, I64(nbytes)))
    for line in range(0, blocks * nbytes, LINE_BYTES):
        prefetch(builder, builder.add(first, I64(line)))


def _bits(builder: ir.IRBuilder, values: Any, mask: int, left: int) -> Any:
    """Return (values & mask) << left, of a vector; right where ``left`` is negative."""
    moved = ir.Constant(values.type, [abs(left)] * values.type.count)
    kept = builder.and_(values, ir.Constant(values.type, [mask] * values.type.count))
    return builder.shl(kept, moved) if left >= 0 else builder.lshr(kept, moved)


def _floats(builder: ir.IRBuilder, octets: Any, code: int, half: str | None) -> Any:
    """Return floats without their power of two as float32; ``half``: of each byte that has them."""
    count = octets.type.count
    wide = builder.zext(octets, ir.VectorType(I16, count))
    if half is not None:
        wide = _bits(builder, wide, 15, 0) if half == "lower" else _bits(builder, wide, 0xF0, -4)
    exponents, sign = ((0x7F, 7), (0x80, 8)) if code == FLOAT8 else ((0x7, 9), (0x8, 12))
    bits = builder.or_(_bits(builder, wide, *exponents), _bits(builder, wide, *sign))
    return builder.fpext(builder.bitcast(bits, ir.VectorType(ir.HalfType(), count)), ir.VectorType(F32, count))


def in_blocks(
    builder: ir.IRBuilder, first: Any, end: Any, step: int, sums: Sequence[Any],
    body: Callable[[Any, Sequence[Any]], list[Any]],
) -> list[Any]:  # fmt: skip
    """Emit a loop over blocks ``first``, ``first`` + ``step``, … before ``end``; return the last sums.

    ``body`` takes the number of a block and the sums so far; it returns the next ones.
    """
    before, loop = builder.block, builder.append_basic_block("block")
    after = builder.append_basic_block("after")
    builder.cbranch(builder.icmp_signed("<", first, end), loop, after)
    builder.position_at_end(loop)
    block = builder.phi(I64)
    own_sums = [builder.phi(value.type) for value in sums]
    next_sums = body(block, own_sums)
    next_block = builder.add(block, I64(step))
    builder.cbranch(builder.icmp_signed("<", next_block, end), loop, after)
    for phi, start, value in zip((block, *own_sums), (first, *sums), (next_block, *next_sums), strict=True):
        phi.add_incoming(start, before)
        phi.add_incoming(value, loop)
    builder.position_at_end(after)
    last_sums = [builder.phi(value.type) for value in sums]
    for phi, start, value in zip(last_sums, sums, next_sums, strict=True):
        phi.add_incoming(start, before)
        phi.add_incoming(value, loop)
    return last_sums


# ---- intrinsics ----


def spread(code: int) -> Any:
    """Return an intrinsic that writes the numbers of blocks; its arguments: addresses of codes and results, blocks."""

    @intrinsic  # type: ignore[untyped-decorator]
    def spread_blocks(typing: Any, codes: Any, out: Any, blocks: Any) -> Any:
        def body(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            source, target, count = args
            with cgutils.for_range(builder, count, intp=I64) as loop:
                start = builder.add(source, builder.mul(loop.index, I64(block_bytes(code))))
                end = builder.add(target, builder.mul(loop.index, I64(4 * BLOCK)))
                for number, values in enumerate(numbers(builder, code, start)):
                    builder.store(values, pointer(builder, builder.add(end, I64(4 * LANES * number))), align=4)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), body

    return spread_blocks


def arranged(code: int) -> Any:
    """Return an intrinsic that brings blocks of a row of x into the order of ``numbers``.

    Its arguments: the kernel's pointer; addresses of x, of elements, and of the results, float32; number of blocks;
    address of what the blocks begin with, float32 [blocks], and the factor of each sum of x in it.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def arrange(typing: Any, data: Any, x: Any, out: Any, blocks: Any, starts: Any, factor: Any) -> Any:
        element = data.dtype

        def body(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            _, source, target, count, begins, factor_of_sum = args
            nbytes, vector = element.bitwidth // 8, ir.VectorType(F32, LANES)
            order = places(code)
            with cgutils.for_range(builder, count, intp=I64) as loop:
                first = pointer(builder, builder.add(source, builder.mul(loop.index, I64(BLOCK * nbytes))))
                loaded = builder.load(first, typ=ir.VectorType(scalar_of(element), BLOCK), align=nbytes)
                values, total = widened(builder, loaded, element), None
                end = builder.add(target, builder.mul(loop.index, I64(4 * BLOCK)))
                for number in range(VECTORS):
                    part = order[number * LANES : (number + 1) * LANES]
                    columns = ir.Constant(ir.VectorType(I32, LANES), [column for column, _ in part])
                    some = builder.shuffle_vector(values, values, columns)
                    total = some if total is None else builder.fadd(total, some)
                    scaled = builder.fmul(some, ir.Constant(vector, [2.0**-exponent for _, exponent in part]))
                    builder.store(scaled, pointer(builder, builder.add(end, I64(4 * LANES * number))), align=4)
                half = LANES // 2
                while half:
                    moved = ir.Constant(ir.VectorType(I32, LANES), [(lane + half) % LANES for lane in range(LANES)])
                    total, half = builder.fadd(total, builder.shuffle_vector(total, total, moved)), half // 2
                begin = builder.fmul(builder.extract_element(total, I32(0)), factor_of_sum)
                begin = begin if code == INT8 else F32(0)
                place = builder.add(begins, builder.mul(loop.index, I64(4)))
                builder.store(begin, pointer(builder, place), align=4)
            return context.get_dummy_value()

        return types.void(data, *[types.int64] * 4, types.float32), body

    return arrange


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
def write_factors(a: Any, row: Any, rows: Any, scales: Any, zeros: Any, scratch: Any) -> None:
    """Write the scales of rows of ``a``, a CodedProduct, and their own zero points times scales.

    Both are float32 [rows, factors(a)]; behind the zero points are LANES zeros. ``scratch``: of as many.
    """
    groups, width = (a.inputs + a.group - 1) // a.group, factors(a)
    target = scales if groups == width else scratch
    size = 4 if a.scale == FLOAT32 else 1 if a.scale == EXPONENT else 2
    start, stride = a.scales + row * a.scales_stride, a.scales_stride
    if stride == size * groups:  # one behind the other
        _write_scales(a, start, target, rows * groups)
    else:
        for number in range(rows):
            _write_scales(a, start + number * stride, target + 4 * number * groups, groups)
    if groups < width:
        repeated(target, scales, rows, groups, (a.group + BLOCK - 1) // BLOCK, width)
    if a.zeros:
        target = zeros if groups == width else scratch
        for number in range(rows):
            source = a.zeros + (row + number) * a.zeros_stride
            convert_octets(source, target + 4 * number * groups, groups, F(1))
        if groups < width:
            repeated(target, zeros, rows, groups, (a.group + BLOCK - 1) // BLOCK, width)
        for number in range(rows * width):
            floats(zeros)[number] *= floats(scales)[number]
        for number in range(rows * width, rows * width + LANES):
            floats(zeros)[number] = F(0)


@subroutine(fast=frozenset())
def _write_scales(a: Any, source: Any, target: Any, count: Any) -> None:
    """Write ``count`` scales of ``a``, a CodedProduct, as float32."""
    unit = FLOAT8_UNIT if a.code == FLOAT8 else F(1)
    if a.scale == BFLOAT16:
        convert_bfloat16(source, target, count, unit)
    elif a.scale == FLOAT16:
        convert_float16(source, target, count, unit)
    elif a.scale == FLOAT32:
        convert_float32(source, target, count, unit)
    else:
        convert_exponents(source, target, count, unit)


@intrinsic  # type: ignore[untyped-decorator]
def repeated(typing: Any, source: Any, target: Any, rows: Any, groups: Any, per_group: Any, blocks: Any) -> Any:
    """Write the float32 of each group [rows, groups] for each of its blocks [rows, blocks], and LANES behind them."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        start, out, count, of_row, size, width = args
        with cgutils.for_range(builder, count, intp=I64) as row, cgutils.for_range(builder, of_row, intp=I64) as group:
            number = builder.add(builder.mul(row.index, of_row), group.index)
            value = splat(builder, builder.add(start, builder.mul(number, I64(4))))
            first = builder.add(builder.mul(row.index, width), builder.mul(group.index, size))
            end = builder.sub(width, builder.mul(group.index, size))
            end = builder.select(builder.icmp_signed("<", size, end), size, end)
            vectors = builder.udiv(builder.add(end, I64(LANES - 1)), I64(LANES))
            with cgutils.for_range(builder, vectors, intp=I64) as vector:
                place = builder.add(first, builder.mul(vector.index, I64(LANES)))
                builder.store(value, pointer(builder, builder.add(out, builder.mul(place, I64(4)))), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), code


@subroutine(types.int64)
def factors(a: Any) -> Any:
    """Return how many scales ``write_factors`` writes of a row of ``a``, a CodedProduct.

    Where there are zero points it is one for each block, as of these.
    """
    return (a.inputs + BLOCK - 1) // BLOCK if a.zeros else scales_alone(a)


@subroutine(types.int64)
def scales_alone(a: Any) -> Any:
    """Return how many scales a row of ``a``, a CodedProduct, has in float32: one of all blocks, or one of each.

    Blocks of int4, of which a vector has two, have each its own; zero points are not looked at.
    """
    return 1 if a.group >= a.inputs and a.code != INT4 else (a.inputs + BLOCK - 1) // BLOCK


@subroutine(types.float32)
def start_factor(a: Any) -> Any:
    """Return the factor of the sum of x in a block of ``a``, a CodedProduct, in what ``arranged`` leaves of the block.

    Of zero points of their own it is -1; else each lane of a sum begins with its part of -zero * sum of x.
    """
    if a.zeros:
        return F(-1)
    return F(-128) / F(LANES) if a.code == INT8 else F(0)
