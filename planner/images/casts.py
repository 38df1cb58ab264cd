"""Cast between the floating-point dtypes of checkpoints and images, rounding to nearest even."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

STORAGE = {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "I32": "<i4", "I64": "<i8", "U8": "u1"}
"""Numpy dtype in which values of a header's dtype are held; numpy has no bfloat16, so that is held as its bits."""
_PIECE = 1 << 17
"""Elements that are cast at a time: intermediate arrays stay in a core's cache and take little memory."""


def _widen(bits: Array) -> Array:
    """Convert bfloat16 bits to float32, exactly."""
    widened = bits.astype(np.uint32)
    np.left_shift(widened, np.uint32(16), out=widened)
    return widened.view(np.float32)


def _narrow(values: Array) -> Array:
    """Round float32 to bfloat16 bits, to nearest even; a NaN becomes a quiet NaN."""
    bits: npt.NDArray[np.uint32] = values.view(np.uint32)
    rounded = bits + (((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))
    np.right_shift(rounded, np.uint32(16), out=rounded)
    nan = np.isnan(values)
    if nan.any():
        rounded[nan] = (bits[nan] >> np.uint32(16)) | np.uint32(0x40)
    return rounded.astype(np.uint16)


def _half(values: Array) -> Array:
    """Round float32 to float16, to nearest even; values beyond its range become infinite, as in torch."""
    with np.errstate(over="ignore"):
        return values.astype("<f2")


_CASTS: dict[tuple[str, str], Callable[[Array], Array]] = {
    ("F32", "BF16"): _narrow,
    ("F32", "F16"): _half,
    ("BF16", "F32"): _widen,
    ("BF16", "F16"): lambda bits: _half(_widen(bits)),
    ("F16", "F32"): lambda values: values.astype("<f4"),
    ("F16", "BF16"): lambda values: _narrow(values.astype("<f4")),
}


def castable(source: str, target: str) -> bool:
    """Return True if values of a source dtype can become those of a slot's dtype."""
    return (source == target and source in STORAGE) or (source, target) in _CASTS


def cast_into(out: Array, values: Array, source: str, target: str) -> None:
    """Fill ``out`` [rows, width], in the storage of ``target``, with ``values`` of its shape in that of ``source``."""
    if source == target:
        np.copyto(out, values)
        return
    rows = max(1, _PIECE // max(1, values.shape[1]))
    for start in range(0, len(values), rows):
        piece = np.ascontiguousarray(values[start : start + rows])
        out[start : start + rows] = _CASTS[source, target](piece)
