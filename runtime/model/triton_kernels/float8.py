"""float8_e4m3fn as bytes: Triton has that type from compute capability 8.9 on alone, and these work on every GPU.

bits   s eeee mmm   value (-1)^s 2^(e - 7) (1 + m / 8), with e = 0: (-1)^s 2^-6 m / 8; e = 15 and m = 7: not a number
"""

import triton
import triton.language as tl


@triton.jit
def widened(byte):
    """Return the values of bytes as float32, exactly.

    Exponent and mantissa as those of a float16 are the value times 2^-8, also where it is subnormal.
    """
    bits = byte.to(tl.int16)
    half = ((bits & 128) << 8) | ((bits & 127) << 7)
    value = half.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    return tl.where((bits & 127) == 127, float("nan"), value)


@triton.jit
def narrowed(value):
    """Return values of at most 448, float32, as bytes, rounded to the nearest, of two the even one; as torch does."""
    bits = value.to(tl.int32, bitcast=True)
    sign, magnitude = (bits >> 24) & 128, bits & 0x7FFFFFFF
    # below 2^-6 the last place of the result is 2^-9, which is that of float32 at 2^14
    added = (magnitude.to(tl.float32, bitcast=True) + 16384.0).to(tl.int32, bitcast=True)
    small = added - 0x46800000
    # above, the exponent's bias of 127 becomes 7, and 20 bits of the mantissa are rounded off
    large = (magnitude - (120 << 23) + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20
    code = tl.where(magnitude < (121 << 23), small, large)
    code = tl.where(magnitude > 0x7F800000, 127, code)
    return (code | sign).to(tl.uint8)
