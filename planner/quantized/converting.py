"""Read the parts of a quantized layer from a checkpoint, and write them as rows of an image (``plans.quantized``)."""

from math import prod

import numpy as np

from planner.errors import ValuesError
from planner.quantized.codes import Array, Read, awq_columns, packed, transposed, unpacked
from planner.quantized.column_order import Sorting
from planner.quantized.layouts import Awq, Gptq, Mxfp4, PackedRows, PlainRows, Rounded, RoundedColumns
from planner.quantized.records import Part, Stored
from planner.quantized.rounding import Losses, rounded_rows
from plans.quantized import is_half
from plans.ranges import Range

Unpacked = PackedRows | Gptq
"""Layouts whose codes are read a byte each, and packed when their columns are in order."""
MOST_EXPONENT = 240
"""Largest exponent of MXFP4 with which its largest code is a float32, and is so where products widen it."""
EXPONENTS = {"bfloat16": 0x7F80, "float16": 0x7C00, "float32": 0x7F800000}
"""Bits of the exponent of each dtype of scales, all of which are 1 in infinities and NaN."""


def require_finite(stored: Stored, name: str, scales: Array, first: int = 0) -> None:
    """Raise ValuesError for scales that are infinite or NaN; ``first``: row of the first of them in the tensor."""
    mask = EXPONENTS[stored.form.scale]
    bits = scales.view({2: np.uint16, 4: np.uint32}[scales.itemsize])
    wrong = np.argwhere((bits & mask) == mask)
    if len(wrong):
        row, *rest = (int(index) for index in (*wrong[0],))
        place = ", ".join(str(index) for index in (first + row, *rest))
        raise ValuesError(f"{name}[{place}]: found an infinity or NaN, expected a finite scale")


def shared(stored: Stored, part: Part, span: Range, read: Read, block_rows: int = 1) -> Array:
    """Return rows of scales or zero points [rows, groups], of which the tensor may have one for all.

    ``block_rows``: rows that share those of one row of the tensor.
    """
    tensor, width = stored.tensors[part], stored.groups
    one = prod(tensor.shapes[0]) == 1
    first, last = span[0] // block_rows, -(-span[1] // block_rows)
    found = read(tensor.name, None).reshape(1, 1) if one else read(tensor.name, (first, last)).reshape(-1, width)
    if part == "scales":
        require_finite(stored, tensor.name, found, 0 if one else first)
    if one:
        return np.ascontiguousarray(np.broadcast_to(found, (span[1] - span[0], width)))
    return np.ascontiguousarray(found[np.arange(*span) // block_rows - first])


def transposed_scales(stored: Stored, span: Range, read: Read) -> Array:
    """Return rows of scales of a tensor [groups, out]."""
    name = stored.tensors["scales"].name
    scales = read(name, None)
    require_finite(stored, name, scales)
    return np.ascontiguousarray(scales[:, span[0] : span[1]].T)


def signed(codes: Array) -> Array:
    """Return codes of signed bytes as codes without a sign: 128 is 0."""
    return codes.view(np.uint8) ^ np.uint8(128)


def rows_of(
    stored: Stored, part: Part, span: Range, read: Read, losses: Losses | None = None, sorting: Sorting | None = None
) -> Array:
    """Return rows of a part of a layer as an image has them; raise ValuesError for values that cannot be.

    ``losses``: filled, with rows of codes of a layer that is rounded. ``sorting``: of a layer that ``sorts``, the order
    of its columns (``column_order.sorted_columns``).
    """
    if stored.sorts:
        assert sorting is not None, "columns that are sorted have an order"
        return _sorted_rows(stored, part, span, read, sorting)
    found = _rows_of(stored, part, span, read, losses)
    if part == "codes":
        return packed(found, is_half(stored.form)) if isinstance(stored.layout, Unpacked) else found
    if stored.repeats == 1:
        return found
    return np.ascontiguousarray(np.repeat(found, stored.repeats, 1)[:, : stored.shape(part)[1]])


def _sorted_rows(stored: Stored, part: Part, span: Range, read: Read, sorting: Sorting) -> Array:
    """Return rows of a layer whose columns are sorted by groups; of their order, columns."""
    if part == "order":
        return sorting.inputs[span[0] : span[1], None]
    found = _rows_of(stored, part, span, read, None)
    if part != "codes":
        return np.ascontiguousarray(found[:, sorting.groups])
    codes = np.ascontiguousarray(found[:, sorting.columns])
    codes[:, sorting.inputs < 0] = 0
    return packed(codes, is_half(stored.form))


def _rows_of(stored: Stored, part: Part, span: Range, read: Read, losses: Losses | None) -> Array:
    match stored.layout:
        case PackedRows(bits=bits):
            return _packed_rows(stored, part, span, read, bits)
        case PlainRows(block_rows=block_rows):
            return _plain_rows(stored, part, span, read, block_rows)
        case Gptq() as layout:
            return _gptq(stored, part, span, read, layout)
        case Awq():
            return _awq(stored, part, span, read)
        case Mxfp4() as layout:
            return _mxfp4(stored, part, span, read, layout)
        case Rounded() | RoundedColumns():
            return rounded_rows(stored, part, span, read, losses)


def _packed_rows(stored: Stored, part: Part, span: Range, read: Read, bits: int) -> Array:
    name = stored.tensors[part].name
    if part == "scales":
        return shared(stored, part, span, read)
    if part == "codes":
        return unpacked(read(name, span), bits)[:, : stored.columns]
    words = 32 // bits  # rows of a word
    first = span[0] // words
    zeros = transposed(read(name, (first, -(-span[1] // words))), bits).T  # [rows, groups]
    return np.ascontiguousarray(zeros[span[0] - first * words : span[1] - first * words])


def _plain_rows(stored: Stored, part: Part, span: Range, read: Read, block_rows: int) -> Array:
    name = stored.tensors[part].name
    if part == "scales":
        return shared(stored, part, span, read, block_rows)
    values = read(name, span) if part == "codes" else shared(stored, part, span, read)
    if stored.form.code == "int8":
        return signed(values)
    codes = values.view(np.uint8)
    wrong = np.argwhere((codes & 0x7F) == 0x7F)
    if len(wrong):
        row, column = (int(index) for index in wrong[0])
        raise ValuesError(f"{name}[{span[0] + row}, {column}]: found NaN, expected a number")
    return codes


def _gptq(stored: Stored, part: Part, span: Range, read: Read, layout: Gptq) -> Array:
    name = stored.tensors[part].name
    if part == "codes":
        return transposed(read(name, None)[:, span[0] : span[1]], layout.bits)
    if part == "scales":
        return transposed_scales(stored, span, read)
    words = 32 // layout.bits
    first, last = span[0] // words, -(-span[1] // words)
    zeros = unpacked(read(name, None)[:, first:last], layout.bits)  # [groups, rows]
    zeros = zeros[:, span[0] - first * words : span[1] - first * words].T
    if layout.stored_zero and layout.bits == 8 and (zeros == 255).any():
        raise ValuesError(f"{name}: found a zero point of 256, expected at most 255")
    zeros = np.ascontiguousarray(zeros + np.uint8(layout.stored_zero))
    if layout.symmetric and (zeros != 1 << (layout.bits - 1)).any():
        wrong = next(int(zero) for zero in zeros.flat if zero != 1 << (layout.bits - 1))
        raise ValuesError(
            f"{name}: found a zero point of {wrong}, expected {1 << (layout.bits - 1)} of symmetric codes (sym)"
        )
    return zeros


def _awq(stored: Stored, part: Part, span: Range, read: Read) -> Array:
    if part == "scales":
        return transposed_scales(stored, span, read)
    first, last = span[0] // 8, -(-span[1] // 8)
    codes = awq_columns(np.ascontiguousarray(read(stored.tensors[part].name, None)[:, first:last]))
    rows = np.ascontiguousarray(codes[:, span[0] - first * 8 : span[1] - first * 8].T)
    return packed(rows, True) if part == "codes" else rows


def _mxfp4(stored: Stored, part: Part, span: Range, read: Read, layout: Mxfp4) -> Array:
    name, (_, of_expert, *rest) = stored.tensors[part].name, stored.tensors[part].shapes[0]
    per_row = rest[0] if part == "codes" else 1  # rows of the tensor that are a row of the layer
    begin, end = (layout.expert * of_expert + layout.first + layout.step * row for row in span)
    end = min(end, (layout.expert + 1) * of_expert)
    whole = read(name, (begin * per_row, end * per_row))
    rows = whole.reshape(end - begin, -1)[:: layout.step]
    if part == "scales":
        wrong = np.argwhere(rows > MOST_EXPONENT)
        if len(wrong):
            found = int(rows[tuple(wrong[0])])
            raise ValuesError(f"{name}: found an exponent of {found}, expected at most {MOST_EXPONENT}")
        return np.ascontiguousarray(rows)
    codes = np.empty((len(rows), 2 * rows[0].size if len(rows) else 0), np.uint8)
    octets = rows.reshape(len(rows), -1)
    np.bitwise_and(octets, 15, out=codes[:, 0::2])
    np.right_shift(octets, 4, out=codes[:, 1::2])
    return packed(codes, True)
