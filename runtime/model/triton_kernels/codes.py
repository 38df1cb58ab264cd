"""Values of weights in registers: quantized ones as ``plans.quantized`` describes them, or plain ones.

A tile has ``BN`` rows of the weight and ``BK`` of its columns, which share a scale in each row. Codes, less their zero
points, are values of the dtype of activations exactly; scales are multiplied by the sums of products, in float32. Of
formats of 4 bits a tile has bytes, so that its products are two: of the lower halves, and of the upper ones.
"""

import triton
import triton.language as tl

from runtime.model.triton_kernels.float8 import widened

CODES = ("int4", "int8", "float8_e4m3fn", "float4_e2m1", "plain")
"""Kinds of codes; kernels take their index."""


@triton.jit
def _float4(code):
    """Return values of codes of float4_e2m1 as float32: exponent and mantissa of a float16 are 2^-14 of them."""
    half = ((code & 8) << 12) | ((code & 7) << 9)
    return half.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32) * 16384.0


@triton.jit
def _factors(table, offsets, inside, EXPONENTS: tl.constexpr):
    """Return scales as float32; ``EXPONENTS``: they are bytes of float8_e8m0, powers of two."""
    if EXPONENTS:
        byte = tl.load(table + offsets, mask=inside, other=127).to(tl.int32)
        bits = tl.where(byte == 0, 0x00400000, byte << 23)  # 2^-127 is subnormal
        return bits.to(tl.float32, bitcast=True)
    return tl.load(table + offsets, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _integers(codes, points, middle, ZEROS: tl.constexpr):
    """Return codes without a sign less their zero points, or less the middle of their range."""
    if ZEROS:
        return codes.to(tl.int32) - points.to(tl.int32)[None, :]
    return codes.to(tl.int32) - middle


@triton.jit
def _loaded(x, offsets, column, inputs, live, order, ORDERED: tl.constexpr):
    """Return columns of rows of x [BM, columns]; 0 behind the last one, and where ``order`` of a column is -1."""
    inside = column < inputs
    if ORDERED:
        column = tl.load(order + column, mask=inside, other=-1)
        inside = column >= 0
    return tl.load(x + offsets[:, None] + column[None, :], mask=live[:, None] & inside[None, :], other=0.0)


@triton.jit
def tile_product(
    x, x_offsets, live, codes, scales, zeros, order, codes_at, scales_at, zeros_at, has_output, begin, inputs, acc,
    CODE: tl.constexpr, GROUP: tl.constexpr, BK: tl.constexpr, ZEROS: tl.constexpr, EXPONENTS: tl.constexpr,
    ORDERED: tl.constexpr,
):  # fmt: skip
    """Return ``acc`` [BM, BN] and the product of columns ``begin`` … of rows of x with a tile of the weight.

    ``x_offsets`` [BM], ``codes_at``, ``scales_at``, ``zeros_at`` [BN]: offsets of the rows; ``GROUP`` 0: a row has one
    scale. ``order``: columns of x in the order of the weight's, with ``ORDERED``.
    """
    group = 0
    if GROUP > 0:
        group = begin // GROUP
    if CODE == 4:
        column = begin + tl.arange(0, BK)
        weight = tl.load(
            codes + codes_at[None, :] + column[:, None],
            mask=has_output[None, :] & (column < inputs)[:, None],
            other=0.0,
        )
        acc += tl.dot(_loaded(x, x_offsets, column, inputs, live, order, ORDERED), weight, input_precision="ieee")
    else:
        factor = _factors(scales, scales_at + group, has_output, EXPONENTS)
        point = factor.to(tl.int32)
        if ZEROS:
            point = tl.load(zeros + zeros_at + group, mask=has_output, other=0).to(tl.int32)
        if CODE == 0 or CODE == 3:
            byte = tl.arange(0, BK // 2)
            at = begin // 2 + byte
            packed = tl.load(
                codes + codes_at[None, :] + at[:, None], mask=has_output[None, :] & (at * 2 < inputs)[:, None], other=0
            ).to(tl.int32)
            low, high = packed & 15, packed >> 4
            if CODE == 0:
                low, high = _integers(low, point, 8, ZEROS), _integers(high, point, 8, ZEROS)
            else:
                low, high = _float4(low), _float4(high)
            column = begin + byte // 16 * 32 + byte % 16
            first, second = (
                _loaded(x, x_offsets, column, inputs, live, order, ORDERED),
                _loaded(x, x_offsets, column + 16, inputs, live, order, ORDERED),
            )
            product = tl.dot(first, low.to(first.dtype), input_precision="ieee")
            product = tl.dot(second, high.to(first.dtype), product, input_precision="ieee")
        else:
            column = begin + tl.arange(0, BK)
            packed = tl.load(
                codes + codes_at[None, :] + column[:, None],
                mask=has_output[None, :] & (column < inputs)[:, None], other=0,
            )  # fmt: skip
            rows = _loaded(x, x_offsets, column, inputs, live, order, ORDERED)
            if CODE == 1:
                weight = _integers(packed, point, 128, ZEROS).to(rows.dtype)
            else:
                weight = widened(packed).to(rows.dtype)
            product = tl.dot(rows, weight, input_precision="ieee")
        acc += product * factor[None, :]
    return acc
