"""Codes as bfloat16 in tiles, for products with weights in codes by AMX (``coded_tiles``).

A code of int4 less its zero point is exact, and so are floats of 8 and 4 bits; these are without a power of two, which
the scale has instead (``decoding``). A tile has up to 16 outputs, of a block of 32 columns each.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from runtime.model.kernels.decoding import BLOCK, FLOAT4, FLOAT8, INT4, block_bytes
from runtime.model.kernels.elements import I8, I16, I64, chosen, function, octets, pointer, prefetch, stack_floats
from runtime.model.kernels.subroutines import subroutine
from runtime.model.kernels.tiles import TILE, TILE_BYTES, TILE_ROWS

WORDS = ir.VectorType(I16, BLOCK)


@subroutine(apart=True)
def widen(a: Any, first: Any, height: Any, begin: Any, count: Any, span: Any, out: Any) -> None:
    """Write ``count`` blocks, from ``begin`` on, of some outputs as bfloat16: tiles [height, BLOCK]."""
    whole = min(count, a.inputs // BLOCK - begin)
    nbytes = BLOCK // 2 if a.code == INT4 or a.code == FLOAT4 else BLOCK
    for number in range(height):
        codes = a.codes + (first + number) * a.codes_stride + begin * nbytes
        zeros = a.zeros + (first + number) * a.zeros_stride + begin * BLOCK // a.group if a.zeros else np.int64(0)
        target = out + number * TILE_BYTES
        fetch(codes + TILE_ROWS * a.codes_stride, whole * nbytes)
        widen_blocks(a, codes, zeros, target, whole, span)
        if whole < count:  # the last columns, and zeros in the place of others, of 8 bits; x is 0 there
            place = stack_floats()
            rest, last = octets(place), octets(codes + whole * BLOCK)
            for column in range(BLOCK):
                rest[column] = last[column] if (begin + whole) * BLOCK + column < a.inputs else np.uint8(0)
            widen_blocks(a, place, zeros + whole // span if a.zeros else np.int64(0), target + whole * TILE, 1, 1)


@subroutine()
def widen_blocks(a: Any, codes: Any, zeros: Any, out: Any, blocks: Any, span: Any) -> None:
    """Widen blocks of one output; ``zeros``: address of the zero points of their spans, or 0."""
    if a.code == INT4:
        widen_int4_zeros(codes, zeros, out, blocks, span)
    elif a.code == FLOAT8:
        widen_float8(codes, zeros, out, blocks, blocks)
    else:
        widen_float4(codes, zeros, out, blocks, blocks)


def widener(code: int, *, zeros: bool = False) -> Any:
    """Return an intrinsic that writes blocks of codes as bfloat16, one a tile behind the other.

    Its arguments: addresses of the codes, of the zero points, one of each span, and of the result; number of blocks;
    blocks of a span.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def widen_span(typing: Any, codes: Any, points: Any, out: Any, blocks: Any, span: Any) -> Any:
        def body(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            codes, points, out, blocks, span = args
            if not zeros:
                with cgutils.for_range(builder, blocks, intp=I64) as loop:
                    _widen(builder, code, codes, out, loop.index, None)
                return context.get_dummy_value()
            with cgutils.for_range_slice(builder, I64(0), blocks, span, intp=I64) as (first, number):
                place = pointer(builder, builder.add(points, number))
                point = builder.zext(builder.load(place, typ=ir.VectorType(I8, 1), align=1), ir.VectorType(I16, 1))
                point = chosen(builder, point, [0] * BLOCK)
                left = builder.sub(blocks, first)
                count = builder.select(builder.icmp_signed("<", left, span), left, span)
                with cgutils.for_range(builder, count, intp=I64) as loop:
                    _widen(builder, code, codes, out, builder.add(first, loop.index), point)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), body

    return widen_span


def _widen(builder: ir.IRBuilder, code: int, codes: Any, out: Any, block: Any, zero: Any) -> None:
    """Widen one block; ``zero``: its zero point as words, or None."""
    source = pointer(builder, builder.add(codes, builder.mul(block, I64(block_bytes(code)))))
    loaded = builder.load(source, typ=ir.VectorType(I8, block_bytes(code)), align=1)
    words = {INT4: _int4, FLOAT8: _float8, FLOAT4: _float4}[code](builder, loaded, zero)
    target = builder.add(out, builder.mul(block, I64(TILE)))
    builder.store(words, pointer(builder, target), align=4)


def _all_words(number: int) -> Any:
    return ir.Constant(WORDS, [number] * BLOCK)


def _bits_of(value: float) -> int:
    """Return the bits of a number that is exact in bfloat16."""
    bits = int(np.float32(value).view(np.uint32))
    assert bits % 2**16 == 0
    return bits >> 16


def _looked_up(builder: ir.IRBuilder, table: Sequence[float], index: Any) -> Any:
    """Return values of a table of 32, at the lowest five bits of each word."""
    permute = function(builder, WORDS, [WORDS, WORDS], "llvm.x86.avx512.permvar.hi.512")
    return builder.call(permute, [ir.Constant(WORDS, [_bits_of(value) for value in table]), index])


def _nibbles(builder: ir.IRBuilder, packed: Any) -> Any:
    """Return the codes of a block of 4 bits in the order of columns, in the lowest bits of words."""
    octets = ir.VectorType(I8, 2 * BLOCK)
    quarters = chosen(builder, packed, [lane % 16 for lane in range(2 * BLOCK)])  # loaded so, by one instruction
    shuffle = function(builder, octets, [octets, octets], "llvm.x86.avx512.pshuf.b.512")
    places = [(8 * (lane // 16 % 2) + lane % 16 // 2) if lane % 2 == 0 else 128 for lane in range(2 * BLOCK)]
    words = builder.bitcast(builder.call(shuffle, [quarters, ir.Constant(octets, places)]), WORDS)
    return builder.lshr(words, ir.Constant(WORDS, [4 * (lane // 16) for lane in range(BLOCK)]))


def _int4(builder: ir.IRBuilder, packed: Any, zero: Any) -> Any:
    own = builder.and_(_nibbles(builder, packed), _all_words(15))
    index = builder.sub(builder.add(own, _all_words(16)), zero)
    return _looked_up(builder, [place - 16 for place in range(32)], index)


def _float4(builder: ir.IRBuilder, packed: Any, _: Any) -> Any:
    magnitudes = (0, 0.5, 1, 1.5, 2, 3, 4, 6)
    table = [math.copysign(magnitudes[place % 8] * 2.0**-14, -(place % 16 // 8)) for place in range(32)]
    return _looked_up(builder, table, _nibbles(builder, packed))


def _float8(builder: ir.IRBuilder, octets: Any, _: Any) -> Any:
    """Return float8_e4m3fn times 2 ** -8, which has exponents from bfloat16's range, also of values below 2 ** -6."""
    words = builder.zext(octets, WORDS)
    magnitude = builder.and_(builder.shl(words, _all_words(4)), _all_words(0x7F0))
    normal = builder.add(magnitude, _all_words((127 - 7 - 8) << 7))
    small = _looked_up(builder, [place % 8 * 2.0**-17 for place in range(32)], words)
    is_small = builder.icmp_unsigned("==", builder.and_(words, _all_words(0x78)), _all_words(0))
    sign = builder.and_(builder.shl(words, _all_words(8)), _all_words(0x8000))
    return builder.or_(builder.select(is_small, small, normal), sign)


widen_float8, widen_float4 = widener(FLOAT8), widener(FLOAT4)
widen_int4_zeros = widener(INT4, zeros=True)


@intrinsic  # type: ignore[untyped-decorator]
def fetch(typing: Any, address: Any, count: Any) -> Any:
    """Prefetch some bytes."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        address, count = args
        with cgutils.for_range_slice(builder, I64(0), count, I64(TILE_BYTES), intp=I64) as (line, _):
            prefetch(builder, builder.add(address, line))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), code
