"""Compute rotary frequencies, once, when images are compiled.

The arithmetic is transformers' own (``modeling_rope_utils``), operation by operation in float32, except that the power
is correctly rounded: on a CPU torch's vectorised power differs in the last place for about one value in seventy, and
between machines, while an image must have the same bytes everywhere.

Where transformers chooses frequencies anew by the present length (longrope, dynamic), they are those of the planned
context here, from the first token on: a sequence has the same keys however long it becomes.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from plans.schema import Rotary


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
class YarnScaling:
    """YaRN: pairs that turn often within the original length are kept, slow ones divided by ``factor``, and those from
    ``beta_fast`` to ``beta_slow`` turns interpolated.
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float
    truncate: bool
    """The range of interpolated pairs is widened to whole pairs."""
    attention_factor: float
    """Factor of cosines and sines."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LongScaling:
    """LongRoPE: each frequency is divided by a factor of its own, of two sets: for contexts up to the original length
    and for longer ones.
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_position_embeddings: int
    attention_factor: float
    """Factor of cosines and sines, in both sets."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DynamicScaling:
    """Dynamic NTK: theta grows with the context beyond ``max_position_embeddings``."""

    factor: float
    max_position_embeddings: int


Scaling = LinearScaling | Llama3Scaling | YarnScaling | LongScaling | DynamicScaling


@dataclass(frozen=True, kw_only=True, slots=True)
class Rope:
    """Rotary embedding of attention heads, of which the first ``dim`` channels are rotated in pairs."""

    theta: float
    dim: int
    """0: a layer without rotary embedding."""
    scaling: Scaling | None
    passed: int = 0
    """Channels behind them that are not rotated."""
    interleaved: bool = False
    """Channels 2i and 2i + 1 are a pair; false: i and dim / 2 + i."""

    @property
    def attention_factor(self) -> float:
        """Factor of cosines and sines: a float32 value."""
        return _f32(self.scaling.attention_factor) if isinstance(self.scaling, YarnScaling | LongScaling) else 1.0

    @property
    def by_context(self) -> bool:
        """True where frequencies depend on the planned context."""
        return isinstance(self.scaling, LongScaling | DynamicScaling)


def rotaries(ropes: Sequence[Rope]) -> tuple[Rotary, ...] | None:
    """Return the rotary tables of layers with these embeddings, as a plan has them: one for each that differs."""
    tables = {rope: tuple(i for i, other in enumerate(ropes) if other == rope) for rope in ropes}
    (first, *others) = tables
    if not others and not (first.passed or first.interleaved or first.by_context or first.attention_factor != 1.0):
        return None
    return tuple(
        Rotary(
            layers=layers,
            channels=rope.dim,
            interleaved=rope.interleaved,
            scaled=rope.attention_factor != 1.0,
            by_context=rope.by_context,
        )
        for rope, layers in tables.items()
    )


def inv_freq(rope: Rope, context: int) -> tuple[float, ...]:
    """Return the dim / 2 inverse frequencies for a planned context, theta ** (-2i / dim) before scaling, and a zero for
    each pair of channels that are not rotated; each is a float32 value.
    """
    return (*_rotated(rope, context), *(0.0 for _ in range(rope.passed // 2)))


def rope_bytes(rope: Rope, context: int) -> bytes:
    """Return the content of an image's slot, little-endian float32: the inverse frequencies, and where cosines and
    sines are scaled the factor of each pair.
    """
    values = inv_freq(rope, context)
    if rope.attention_factor != 1.0:
        rotated = rope.dim // 2
        values = (*values, *(rope.attention_factor if i < rotated else 1.0 for i in range(len(values))))
    return struct.pack(f"<{len(values)}f", *values)


def _rotated(rope: Rope, context: int) -> tuple[float, ...]:
    """Return the frequencies of the pairs that are rotated."""
    theta, scaling = rope.theta, rope.scaling
    if isinstance(scaling, DynamicScaling) and context > scaling.max_position_embeddings:
        grown = scaling.factor * context / scaling.max_position_embeddings - (scaling.factor - 1)
        theta = theta * grown ** (rope.dim / (rope.dim - 2))
    powers = [_f32(_f32(theta) ** _f32(i / rope.dim)) for i in range(0, rope.dim, 2)]
    base = tuple(_f32(1.0 / power) for power in powers)
    if scaling is None or isinstance(scaling, DynamicScaling):
        return base
    if isinstance(scaling, LinearScaling):
        factor = _f32(scaling.factor)
        return tuple(_f32(value / factor) for value in base)
    if isinstance(scaling, LongScaling):
        long = context > scaling.original_max_position_embeddings
        factors = scaling.long_factor if long else scaling.short_factor
        return tuple(_f32(1.0 / _f32(_f32(f) * power)) for f, power in zip(factors, powers, strict=True))
    if isinstance(scaling, YarnScaling):
        return _yarn(rope, scaling, powers)
    return tuple(_llama3(value, scaling) for value in base)


def _yarn(rope: Rope, scaling: YarnScaling, powers: Sequence[float]) -> tuple[float, ...]:
    """Return the frequencies by YaRN; ``powers``: theta ** (2i / dim)."""
    fast, slow = (_turning(rope, scaling, beta) for beta in (scaling.beta_fast, scaling.beta_slow))
    low, high = (math.floor(fast), math.ceil(slow)) if scaling.truncate else (fast, slow)
    low, high = max(low, 0), min(high, rope.dim - 1)
    width = _f32(0.001 if low == high else high - low)
    factor, values = _f32(scaling.factor), []
    for i, power in enumerate(powers):
        ramp = min(max(_f32(_f32(i - _f32(low)) / width), 0.0), 1.0)
        kept = _f32(1.0 - ramp)
        interpolated = _f32(_f32(1.0 / _f32(factor * power)) * _f32(1.0 - kept))
        values.append(_f32(interpolated + _f32(_f32(1.0 / power) * kept)))
    return tuple(values)


def _turning(rope: Rope, scaling: YarnScaling, turns: float) -> float:
    """Return the pair, as a real number, that turns so often within the original length."""
    length = scaling.original_max_position_embeddings
    return (rope.dim * math.log(length / (turns * 2 * math.pi))) / (2 * math.log(rope.theta))


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
