"""Round plain weights to the nearest codes, as compressed-tensors does it without calibration.

The values of a group of a row share a scale, in float32 and then in bfloat16:

    int4, int8      scale = max |w| / 7.5, max |w| / 127.5    code = clamp(round(w / scale), -8, 7), to -128 and 127
    float8_e4m3fn   scale = max |w| / 448                     code = the nearest float8 of w / scale

Ties go to the even code. Groups of zeros have the scale ``SMALLEST``. Each row is rounded by itself, so images of a
part of the rows, or of the columns, have those of the whole.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from planner.errors import ValuesError
from planner.quantized.codes import Array, Read, packed
from planner.quantized.layouts import RoundedColumns
from planner.quantized.records import Part, Stored
from plans.quantized import is_half
from plans.ranges import Range
from plans.schema import WeightFormat

Floats = npt.NDArray[np.float32]
Losses = npt.NDArray[np.float64]
"""Of each row the sum of the squared errors, and that of the squared weights [rows, 2]."""

SMALLEST = np.float32(2.0**-23)
"""Scale of a group of zeros: any would do, and compressed-tensors has this one."""
PIECE = 1 << 18
"""Weights that are rounded at a time, at least one row: intermediate arrays stay in a core's cache."""
LARGEST = {"int4": 7.5, "int8": 127.5, "float8_e4m3fn": 448.0}
"""Multiple of the scale that the largest weight of a group is."""
SUBNORMAL = np.float32(2.0**-6)
"""Below, values of float8_e4m3fn are multiples of 2 ** -9."""


def rounded_rows(stored: Stored, part: Part, span: Range, read: Read, losses: Losses | None = None) -> Array:
    """Return rows of codes or scales, as ``converting.rows_of`` does; raise ValuesError for weights not finite.

    ``losses``: filled, with rows of codes.
    """
    assert stored.form.scale == "bfloat16", "scales are written as the upper halves of float32"
    rows, width = span[1] - span[0], stored.shape(part)[1] if part == "codes" else stored.groups
    out = np.empty((rows, width), np.uint8 if part == "codes" else np.uint16)
    for (first, last), weights in _weights(stored, span, read):
        largest = _largest(weights.reshape(len(weights), -1, stored.form.group or stored.columns))
        if not np.isfinite(largest).all():
            raise _not_finite(stored, weights, span[0] + first)
        scales = _scales(stored.form, largest)
        if part == "scales":
            out[first:last] = scales.view(np.uint32) >> np.uint32(16)
            continue
        values = weights.reshape(*scales.shape, -1)
        codes, near = _codes(stored.form, values, scales[:, :, None])
        out[first:last] = packed(codes.reshape(weights.shape), is_half(stored.form))
        if losses is not None:
            near -= values
            losses[first:last, 0] = _squares(near.reshape(weights.shape))
            losses[first:last, 1] = _squares(weights)
    return out


def _weights(stored: Stored, span: Range, read: Read) -> Iterator[tuple[Range, Floats]]:
    """Yield weights in float32, a few rows at a time, with their range counted from the first of ``span``."""
    name, layout, start = stored.tensors["codes"].name, stored.layout, span[0]
    size = max(1, PIECE // stored.columns)
    whole = None
    if isinstance(layout, RoundedColumns):
        block = read(name, (layout.row, layout.row + stored.columns))
        whole = block[:, layout.first :: layout.step].T
    for first in range(start, span[1], size):
        last = min(span[1], first + size)
        yield (first - start, last - start), _floats(read(name, (first, last)) if whole is None else whole[first:last])


def _floats(values: Array) -> Floats:
    """Return values as float32, exactly; bfloat16 is its bits."""
    if values.dtype == np.uint16:
        widened = values.astype(np.uint32, order="C")
        np.left_shift(widened, np.uint32(16), out=widened)
        return widened.view(np.float32)
    return values.astype(np.float32, order="C")


def _not_finite(stored: Stored, weights: Floats, first: int) -> ValuesError:
    """Return the error of weights one of which is not finite, to be raised; ``first``: row of the first of them."""
    row, column = (int(index) for index in np.argwhere(~np.isfinite(weights))[0])
    name, place = stored.tensors["codes"].name, (first + row, column)
    return ValuesError(f"{name}: found an infinity or NaN at {place} of {stored.module}, expected a number")


def _largest(groups: Floats) -> Floats:
    """Return the largest absolute weight of each group [rows, groups]; halves are compared, whole vectors at a time."""
    sizes: Floats = np.abs(groups)
    while (half := sizes.shape[2] // 2) and sizes.shape[2] % 2 == 0:
        sizes = np.maximum(sizes[:, :, :half], sizes[:, :, half:])
    largest: Floats = sizes.max(2)
    return largest


def _scales(form: WeightFormat, largest: Floats) -> Floats:
    """Return the scale of each group [rows, groups]: float32 that is a bfloat16."""
    bits = (largest / np.float32(LARGEST[form.code])).view(np.uint32)
    bits = bits + (((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))  # to nearest, ties to even
    scales: Floats = (bits & np.uint32(0xFFFF0000)).view(np.float32)
    scales[scales == 0] = SMALLEST
    return scales


def _codes(form: WeightFormat, values: Floats, scales: Floats) -> tuple[npt.NDArray[np.uint8], Floats]:
    """Return codes without a sign and the values that they stand for; ``scales`` [rows, groups, 1]."""
    near = values / scales
    if form.code == "float8_e4m3fn":
        codes, near = _float8(near)
    else:
        half = 8 if form.code == "int4" else 128
        np.rint(near, out=near)
        np.clip(near, -half, half - 1, out=near)
        codes = (near + np.float32(half)).astype(np.uint8)
    near *= scales
    return codes, near


def _float8(values: Floats) -> tuple[npt.NDArray[np.uint8], Floats]:
    """Return the bits of the nearest values of float8_e4m3fn, and these; none is larger than 448."""
    sizes = np.minimum(np.abs(values), np.float32(448))
    bits = sizes.view(np.uint32)
    bits = (bits + (((bits >> np.uint32(20)) & np.uint32(1)) + np.uint32(0x7FFFF))) >> np.uint32(20)
    small = sizes < SUBNORMAL
    steps = np.rint(sizes * np.float32(512))
    codes = np.where(small, steps.astype(np.uint32), bits - np.uint32((127 - 7) << 3)).astype(np.uint8)
    near = np.where(small, steps / np.float32(512), (bits << np.uint32(20)).view(np.float32))
    return codes | (np.signbit(values).astype(np.uint8) << np.uint8(7)), np.copysign(near, values)


def _squares(values: Floats) -> Losses:
    """Return the sum of squares of each row."""
    wide = values.astype(np.float64)
    sums: Losses = np.einsum("rc,rc->r", wide, wide)
    return sums
