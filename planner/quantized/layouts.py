"""The orders in which checkpoints have the codes, scales and zero points of a layer; ``converting`` reads them.

Values of images equal the checkpoint's bit for bit: a code, a scale and a zero point are moved, never rounded. Only
plain weights that are asked to be rounded are (``rounding``).
"""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedRows:
    """compressed-tensors' pack-quantized: codes in int32 words along the columns, zero points along the rows."""

    words: ClassVar[str] = "packed in words of 32 bits"

    bits: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PlainRows:
    """A byte per code, int8 with a sign or float8: other formats of compressed-tensors, FP8, ModelOpt."""

    words: ClassVar[str] = "a byte each"

    block_rows: int
    """Rows that share a scale, unless all do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gptq:
    """GPTQ, transposed: codes [in / words, out] in int32 words along the columns, zero points along the rows."""

    words: ClassVar[str] = "transposed, packed in words of 32 bits"

    bits: int
    stored_zero: int
    """Number that is subtracted from each zero point before it is stored: 1 of ``gptq``, 0 of ``gptq_v2``."""
    symmetric: bool = False
    """Every zero point is the middle of the codes' range."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Awq:
    """AWQ, transposed: codes [in, out / 8] and zero points [groups, out / 8] in words of an order of their own."""

    words: ClassVar[str] = "transposed, packed in words of 32 bits"
    bits: ClassVar[int] = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Mxfp4:
    """MXFP4 of gpt-oss: codes of all experts [E, out, groups, 16], two to a byte, and exponents [E, out, groups]."""

    words: ClassVar[str] = "two to a byte"

    expert: int
    first: int
    step: int
    """Rows of the layer: every ``step``-th of the expert's from ``first`` on; gates and ups are in turn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rounded:
    """Plain weights, which are rounded to the nearest codes when they are read: rows of the tensor are rows."""

    words: ClassVar[str] = "rounded to the nearest code"


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundedColumns:
    """The same where rows of the layer are columns of the tensor."""

    words: ClassVar[str] = "transposed, rounded to the nearest code"

    row: int
    """Row of the tensor, through all its matrices, that is the layer's first column."""
    first: int
    step: int
    """Rows of the layer: every ``step``-th column from ``first`` on."""


Layout = PackedRows | PlainRows | Gptq | Awq | Mxfp4 | Rounded | RoundedColumns
