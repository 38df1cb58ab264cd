"""Compute rotary frequencies, once, when images are compiled.

The arithmetic is transformers' own (``modeling_rope_utils``), operation by operation in float32, except that the power
is correctly rounded: on a CPU torch's vectorised power differs in the last place for about one value in seventy, and
between machines, while an image must have the same bytes everywhere.
"""

import math
import struct
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearScaling:
    """All frequencies are divided by ``factor``."""

    factor: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Llama3Scaling:
    """Low frequencies are divided by ``factor``, high ones kept, those in between interpolated (Llama 3.1)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Rope:
    """Rotary embedding of attention heads of ``dim`` channels, each paired with the one dim / 2 further."""

    theta: float
    dim: int
    scaling: LinearScaling | Llama3Scaling | None


def inv_freq(rope: Rope) -> tuple[float, ...]:
    """Return the dim / 2 inverse frequencies, theta ** (-2i / dim) before scaling; each is a float32 value."""
    base = [_f32(1.0 / _f32(_f32(rope.theta) ** _f32(i / rope.dim))) for i in range(0, rope.dim, 2)]
    if rope.scaling is None:
        return tuple(base)
    if isinstance(rope.scaling, LinearScaling):
        factor = _f32(rope.scaling.factor)
        return tuple(_f32(value / factor) for value in base)
    return tuple(_llama3(value, rope.scaling) for value in base)


def inv_freq_bytes(rope: Rope) -> bytes:
    """Return the inverse frequencies as little-endian float32, the content of an image's slot."""
    values = inv_freq(rope)
    return struct.pack(f"<{len(values)}f", *values)


def _llama3(value: float, scaling: Llama3Scaling) -> float:
    original = scaling.original_max_position_embeddings
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    factor = _f32(scaling.factor)
    wavelen = _f32(_f32(2 * math.pi) / value)
    if wavelen < _f32(original / high):
        return value
    if wavelen > _f32(original / low):
        return _f32(value / factor)
    smooth = _f32(_f32(_f32(original / wavelen) - _f32(low)) / _f32(high - low))
    kept = _f32(smooth * value)
    return _f32(_f32(_f32(_f32(1.0 - smooth) * value) / factor) + kept)


def _f32(value: float) -> float:
    """Round to float32; one operation in double that is then rounded equals the operation in float32."""
    (rounded,) = struct.unpack("<f", struct.pack("<f", value))
    return float(rounded)
