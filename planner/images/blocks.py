"""Blocks of one tensor: the rows that are read or computed at once for all images that take a part of them.

What a tensor has transposed is read in larger blocks: some columns of all its rows, which are some whole rows of the
image. Of columns that belong in turn to two pieces, each piece reads all. ``planner.images.stream`` chooses the tensor.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from planner.checkpoints.header import TensorFile
from planner.families import Columns
from planner.images.casts import Array
from planner.images.layout import Part
from planner.images.pieces import Copied, row_width
from planner.images.pipeline import Buffer, Pipeline, Writer
from planner.images.reader import Reader
from planner.quantized import Rounded, RoundedColumns, Stored
from planner.quantized.converting import rows_of
from planner.quantized.rounding import Losses
from plans.dtypes import HEADER_BYTES
from plans.ranges import Range

BLOCK_BYTES = 2 << 20
"""Bytes of source rows that are read at once."""
TURNED_BLOCKS = 16
"""A block that is transposed has as many bytes as so many others, so that its runs of bytes are long."""

Consumer = tuple[Writer, Copied]
"""An image and the piece that it takes from a block."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenRows:
    """Whole rows of a tensor that an image has, in the image's dtype."""

    rows: Range
    dtype: str
    writer: Writer
    offset: int
    """Offset of the first of the rows in the image's file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Turned:
    """A block whose rows are columns of the tensor: it is read in runs of values, one for each of its columns."""

    run: int
    """Values of a run."""
    step: int
    """Values from one row to the next."""
    stride_bytes: int
    """Bytes from one run to the next."""


@dataclass(frozen=True, kw_only=True)
class _SortedRows:
    """Rows of a part of a quantized layer in the order of another's columns; used by the reading thread alone."""

    part: Part
    reader: Reader
    order: Array
    """Rows of the role."""

    @cached_property
    def _values(self) -> Array:
        """All rows of the role, in the order of the checkpoint, kept as long as a block needs them."""
        first = self.part.first or 0
        return _rows_of(self.part, (first, first + len(self.order)), self.reader, None)

    def fill(self, rows: Range, block: memoryview) -> None:
        """Fill ``block`` with rows of the order."""
        block[:] = as_bytes(self._values[self.order[slice(*rows)]])


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A rectangle of a source tensor, and the pieces that need a part of it."""

    origin: "TensorFile | Writer | Part | _SortedRows"
    """The checkpoint's file, an image that has these rows, or a part of a quantized layer that they are computed of."""
    offset: int
    """Offset of the first byte in ``origin``; of a quantized layer the first row."""
    dtype: str
    """Dtype in ``origin``: the tensor's, or the slot's."""
    rows: Range
    """Rows as the pieces count them (``layout.Part``)."""
    columns: Range
    """All columns, unless a single row is larger than BLOCK_BYTES."""
    consumers: Sequence[Consumer]
    turned: _Turned | None = None
    """The rectangle is transposed where it is read; None: it is contiguous."""
    losses: Losses | None = None
    """Filled with the rectangle, where its rows are codes to which weights are rounded."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the rectangle."""
        values = self.shape[0] * self.shape[1] if self.turned is None else self.shape[1] * self.turned.run
        return values * HEADER_BYTES[self.dtype]


def begin_to_read(block: Block, pipeline: Pipeline, reader: Reader) -> Buffer:
    turned, origin = block.turned, block.origin
    if isinstance(origin, _SortedRows):
        return pipeline.fill(partial(origin.fill, (block.offset, block.offset + block.shape[0])), block.nbytes)
    if isinstance(origin, Part):
        return pipeline.fill(
            partial(_compute, origin, (block.offset, block.offset + block.shape[0]), reader, block.losses),
            block.nbytes,
        )
    if turned is None:
        return pipeline.read(reader, origin, block.offset, block.nbytes)
    assert isinstance(origin, TensorFile), "images have rows as rows"
    return pipeline.read_rows(reader, origin, block.offset, block.nbytes, block.shape[1], turned.stride_bytes)


def _compute(part: Part, rows: Range, reader: Reader, losses: Losses | None, block: memoryview) -> None:
    """Fill ``block`` with rows of a part of a quantized layer, and ``losses``."""
    block[:] = as_bytes(_rows_of(part, rows, reader, losses))


def _rows_of(part: Part, rows: Range, reader: Reader, losses: Losses | None) -> Array:
    """Return rows of a part of a quantized layer, counted as the checkpoint has them; fill ``losses``."""
    stored = part.stored
    assert stored is not None
    sorting = reader.sorting(part.source, stored)
    with reader.naming(part.source):
        return rows_of(stored, part.kind, rows, reader.arrays_of(part.source), losses, sorting)


def _sorted_rows(part: Part, reader: Reader) -> Array | None:
    """Return the rows of a role in the order of another layer's columns; None: they have their own order."""
    if part.sorted_as is None:
        return None
    reader.open_all(part.source, [part.sorted_as.tensors["order"].name])
    sorting = reader.sorting(part.source, part.sorted_as)
    assert sorting is not None, "what sorts rows has columns in an order"
    return sorting.columns


def _tensor_rows(part: Part, order: Array | None, rows: Range) -> Iterator[Range]:
    """Yield rows of a role as ranges of the tensor's; ``order``: of ``_sorted_rows``."""
    if order is None:
        yield from part.tensor_rows(*rows)
        return
    for row in order[slice(*rows)].tolist():
        yield (part.first or 0) + row, (part.first or 0) + row + 1


def blocks_of(reader: Reader, consumers: Sequence[Consumer], written: Sequence[WrittenRows]) -> Iterator[Block]:
    """Yield the rows that any consumer needs, in blocks of at most BLOCK_BYTES; a larger row is cut into pieces."""
    _, piece = consumers[0]
    if piece.part.columns is not None:
        yield from _turned_blocks(reader, consumers, piece.part.columns)
        return
    if piece.part.stored is not None:
        yield from _coded_blocks(reader, consumers, piece.part.stored)
        return
    tensor, part, file = piece.tensor, piece.part, reader.open(piece.part.source, piece.tensor.file)
    width, order = max(1, row_width(tensor)), _sorted_rows(piece.part, reader)
    for span in _union([rows for _, consumer in consumers for rows in consumer.part.rows]):
        for (start, stop), image in _split(span, written):
            dtype = tensor.dtype if image is None else image.dtype
            item, most = HEADER_BYTES[dtype], max(1, BLOCK_BYTES // HEADER_BYTES[dtype])
            row_zero = tensor.offset if image is None else image.offset - image.rows[0] * width * item
            row = start
            for begin, end in _tensor_rows(part, order, (start, stop)) if image is None else [(start, stop)]:
                for first in range(begin, end, max(1, most // width)):
                    count = min(end - first, max(1, most // width))
                    for left in range(0, width, min(width, most)):
                        yield Block(
                            origin=file if image is None else image.writer,
                            offset=row_zero + (first * width + left) * item,
                            dtype=dtype,
                            rows=(row, row + count),
                            columns=(left, min(width, left + most)),
                            consumers=consumers,
                        )
                    row += count


def _coded_blocks(reader: Reader, consumers: Sequence[Consumer], stored: Stored) -> Iterator[Block]:
    """Yield the same of a part of a quantized layer."""
    _, piece = consumers[0]
    part, width = piece.part, row_width(piece.tensor)
    reader.open_all(part.source, [tensor.name for tensor in stored.read])
    order = _sorted_rows(part, reader)
    origin = part if order is None else _SortedRows(part=part, reader=reader, order=order)
    most = max(1, BLOCK_BYTES // (width * HEADER_BYTES[piece.tensor.dtype]))
    rounds = part.kind == "codes" and isinstance(stored.layout, Rounded | RoundedColumns)
    for start, stop in _union([rows for _, consumer in consumers for rows in consumer.part.rows]):
        row = start
        for begin, end in part.tensor_rows(start, stop) if order is None else [(start, stop)]:
            for first in range(begin, end, most):
                count = min(end - first, most)
                yield Block(
                    origin=origin,
                    offset=first,
                    dtype=piece.tensor.dtype,
                    rows=(row, row + count),
                    columns=(0, width),
                    consumers=consumers,
                    losses=np.zeros((count, 2)) if rounds else None,
                )
                row += count


def _turned_blocks(reader: Reader, consumers: Sequence[Consumer], turned: Columns) -> Iterator[Block]:
    """Yield the same of a piece whose rows are columns of its tensor; blocks have TURNED_BLOCKS times as many bytes."""
    _, piece = consumers[0]
    tensor, file = piece.tensor, reader.open(piece.part.source, piece.tensor.file)
    item, width = HEADER_BYTES[tensor.dtype], turned.width
    stride, widest = row_width(tensor) * item, max(1, BLOCK_BYTES // item)
    size = max(1, TURNED_BLOCKS * BLOCK_BYTES // (width * turned.step * item)) if width <= widest else 1
    for start, stop in _union([rows for _, consumer in consumers for rows in consumer.part.rows]):
        for row in range(start, stop, size):
            end = min(stop, row + size)
            column = turned.first + row * turned.step
            for left in range(0, width, widest):
                yield Block(
                    origin=file,
                    offset=tensor.offset + ((piece.part.first or 0) + left) * stride + column * item,
                    dtype=tensor.dtype,
                    rows=(row, end),
                    columns=(left, min(width, left + widest)),
                    consumers=consumers,
                    turned=_Turned(run=(end - row - 1) * turned.step + 1, step=turned.step, stride_bytes=stride),
                )


def _split(span: Range, written: Sequence[WrittenRows]) -> Iterator[tuple[Range, WrittenRows | None]]:
    """Cut a range of rows into ranges that one image has, and (None) ranges that none has."""
    start, stop = span
    while start < stop:
        image = next((rows for rows in written if rows.rows[0] <= start < rows.rows[1]), None)
        ends = [rows.rows[0] for rows in written if rows.rows[0] > start] if image is None else [image.rows[1]]
        end = min([stop, *ends])
        yield (start, end), image
        start = end


def _union(ranges: Sequence[Range]) -> list[Range]:
    """Return the union of ranges; those that touch become one."""
    union: list[Range] = []
    for start, stop in sorted(ranges):
        if union and start <= union[-1][1]:
            union[-1] = union[-1][0], max(stop, union[-1][1])
        else:
            union.append((start, stop))
    return union


def as_bytes(values: Array) -> memoryview:
    flat: Any = values.reshape(-1).view(np.uint8)
    return flat.data  # type: ignore[no-any-return]
