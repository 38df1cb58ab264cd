"""Bytes of a matrix in codes, as they are stored and as time counts them."""

from collections.abc import Iterable
from math import ceil

from plans.dtypes import HEADER_BYTES
from plans.quantized import ORDER_BYTES, SCALE_NAMES, code_bytes, groups, is_half
from plans.schema import Mlp, WeightFormat

PLAIN_PERCENT, HALF_PERCENT = 69, 62
"""Percent of a GPU's bandwidth that products reach with plain weights and with codes of 4 bits, which are widened in
registers: Llama-2-7B on an A100 in gpt-fast, bfloat16 and int4 (https://github.com/pytorch-labs/gpt-fast)."""


def stored_bytes(form: WeightFormat | None, rows: int, columns: int, width: int) -> int:
    """Return the bytes of a matrix [rows, columns]; ``width``: of a value that is not in codes."""
    if form is None:
        return rows * columns * width
    of_group = HEADER_BYTES[SCALE_NAMES[form.scale]] + form.zeros
    return rows * (code_bytes(form, columns) + groups(form, columns) * of_group)


def rows_bytes(rows: Iterable[tuple[WeightFormat | None, int]], columns: int, width: int) -> int:
    """Return the bytes, as ``read_bytes``, of matrices with one input: formats with rows, once of equal formats."""
    of_formats: dict[WeightFormat | None, int] = {}
    for form, count in rows:
        of_formats[form] = of_formats.get(form, 0) + count
    return sum(read_bytes(form, count, columns, width) for form, count in of_formats.items())


def order_bytes(form: WeightFormat | None, columns: int) -> int:
    """Return the bytes of the order of the columns of a matrix, which it has once for all rows."""
    return ORDER_BYTES * columns if form is not None and form.ordered else 0


def gate_up_order_bytes(mlp: Mlp, hidden: int) -> int:
    """Return the bytes of the order of the columns of gate and up: once, or of each where their formats differ."""
    names = ("gate",) if mlp.gate_up_formats is None else ("gate", "up")
    return sum(order_bytes(mlp.formats[name], hidden) for name in names)


def read_bytes(form: WeightFormat | None, rows: int, columns: int, width: int) -> int:
    """Return the bytes that take as long to read where they are plain weights."""
    nbytes = stored_bytes(form, rows, columns, width)
    return nbytes if form is None or not is_half(form) else ceil(nbytes * PLAIN_PERCENT / HALF_PERCENT)
