"""Write all images in one walk over the tensors of the checkpoints, so that each source row is read once.

Every image has its slots in the order of execution, so it only grows at its end and is hashed while it grows. The walk
goes to the next piece that all images still waiting for it have in front, reads its rows in blocks, and appends each
image's share of a block. Where a later slot needs the same rows again (a tied lm_head, the embedding of an EAGLE head),
they are read back from an image that has them, in the dtype of the image.

    reading thread          the walk                        hashing ∥ writing threads
    source rows ──► block [rows, columns] ──slice, cast──►  BLAKE3  ∥  gpu0 gpu1 …

What a tensor has transposed is read in larger blocks: some columns of all its rows, which are some whole rows of the
image. Of columns that belong in turn to two pieces, each piece reads all.

The bytes of an image do not depend on timing: one thread hashes and one writes them, each in order.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from planner.checkpoints.header import TensorFile
from planner.families import Columns
from planner.images.casts import STORAGE, Array, cast_into
from planner.images.layout import Part, Slot
from planner.images.losses import RoundingLosses
from planner.images.pieces import Copied, Literal, Piece, row_width
from planner.images.pipeline import TURNED_BUFFERS, Buffer, Pipeline, Writer
from planner.images.reader import Reader
from planner.quantized import Rounded, RoundedColumns, Stored
from planner.quantized.converting import rows_of
from planner.quantized.rounding import Losses
from plans.artifact import RoundingErrors
from plans.dtypes import HEADER_BYTES
from plans.ranges import Range, Ranges

BLOCK_BYTES = 2 << 20
"""Bytes of source rows that are read at once."""
TURNED_BLOCKS = 16
"""A block that is transposed has as many bytes as so many others, so that its runs of bytes are long."""
AHEAD = 8
"""Blocks that are being read while one is processed."""

Progress = Callable[[int, int], None]
"""Called with the bytes written so far and the bytes to write in all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageInput:
    """An image to be written."""

    writer: Writer
    header: bytes
    pieces: Sequence[Piece]
    """Pieces in the order of the file, after the header."""


_Queue = tuple[Writer, deque[Piece]]
"""An image and the pieces that it still waits for."""
_Consumer = tuple[Writer, Copied]
"""An image and the piece that it takes from a block."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _WrittenRows:
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
        block[:] = _bytes(self._values[self.order[slice(*rows)]])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Block:
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
    consumers: Sequence[_Consumer]
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


_Step = tuple[Writer, Literal] | _Block
"""One step of the walk: literal bytes for one image, or a block for several."""


def stream(
    images: Sequence[ImageInput], reader: Reader, progress: Progress | None
) -> list[tuple[RoundingErrors, ...] | None]:
    """Write header and pieces of all images; return the errors of the weights that each has rounded.

    Raise CheckpointError or OutputError.
    """
    losses = RoundingLosses()
    total = sum(image.writer.size_bytes for image in images)
    with Pipeline(BLOCK_BYTES, TURNED_BLOCKS * BLOCK_BYTES) as pipeline:
        for image in images:
            pipeline.append(image.writer, memoryview(image.header), None)
        for step, buffer in _read_ahead(_walk(images, reader), pipeline, reader):
            if not isinstance(step, _Block):
                writer, literal = step
                pipeline.append(writer, memoryview(literal.data), None)
                continue
            assert buffer is not None, "every block is read into a buffer"
            buffer.settle()
            _distribute(step, buffer, pipeline)
            _note_losses(step, losses)
            if progress is not None:
                progress(sum(image.writer.written_bytes for image in images), total)
        pipeline.settle()
    reader.check_unchanged()
    if progress is not None:
        progress(total, total)
    return [losses.of(id(image.writer)) for image in images]


def _read_ahead(steps: Iterator[_Step], pipeline: Pipeline, reader: Reader) -> Iterator[tuple[_Step, Buffer | None]]:
    """Yield the steps in order, each block with its buffer, while the next AHEAD blocks are being read."""
    begun: deque[tuple[_Step, Buffer | None]] = deque()
    ahead = 0
    for step in steps:
        if not isinstance(step, _Block):
            begun.append((step, None))
            continue
        if isinstance(step.origin, Writer) and not step.origin.has(step.offset, step.nbytes):
            yield from begun  # the bytes to read back come from one of these, or are still being written
            begun.clear()
            ahead = 0
            pipeline.settle()
        begun.append((step, _begin_to_read(step, pipeline, reader)))
        ahead += 1
        while ahead > (AHEAD if step.turned is None else TURNED_BUFFERS - 1):
            yield begun[0]
            ahead -= begun.popleft()[1] is not None
    yield from begun


def _begin_to_read(block: _Block, pipeline: Pipeline, reader: Reader) -> Buffer:
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
    block[:] = _bytes(_rows_of(part, rows, reader, losses))


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


# ---- the walk ----


def _walk(images: Sequence[ImageInput], reader: Reader) -> Iterator[_Step]:
    """Yield literals and blocks in an order in which every image gets its pieces in the order of its file."""
    queues: list[_Queue] = [(image.writer, deque(image.pieces)) for image in images]
    waiting = Counter(piece.key for _, queue in queues for piece in queue if isinstance(piece, Copied))
    shared = _SharedTensors(images)
    while True:
        for writer, queue in queues:
            while queue and isinstance(literal := queue[0], Literal):
                queue.popleft()
                yield writer, literal
        consumers = _take_ready(queues, waiting)
        if not consumers:
            return
        yield from _blocks(reader, consumers, shared.written(consumers))
        shared.note(consumers)


def _take_ready(queues: Sequence[_Queue], waiting: Counter[tuple[str, int, Ranges | None]]) -> list[_Consumer]:
    """Take the next piece from all images that have it; empty at the end.

    The piece must be in front of every image that has it. There is one as long as any piece is left: all images have
    their slots in one order, and the first key of that order is in front of every image that has it.
    """
    fronts: dict[tuple[str, int, Ranges | None], list[tuple[_Queue, Copied]]] = {}
    for writer, queue in queues:
        if queue:
            piece = queue[0]
            assert isinstance(piece, Copied), "literals in front have been taken"
            fronts.setdefault(piece.key, []).append(((writer, queue), piece))
    for key, ready in fronts.items():
        if len(ready) == waiting[key]:
            for (_, queue), _ in ready:
                queue.popleft()
            return [(writer, piece) for (writer, _), piece in ready]
    assert not fronts, f"images disagree on the order of slots: {sorted(name for name, *_ in fronts)}"
    return []


class _SharedTensors:
    """The tensors that slots of several names need, and their rows that images already have."""

    def __init__(self, images: Sequence[ImageInput]) -> None:
        self._data_start = {id(image.writer): len(image.header) for image in images}
        slots: dict[tuple[str, str], set[str]] = {}
        for piece in (piece for image in images for piece in image.pieces if isinstance(piece, Copied)):
            slots.setdefault(piece.tensor_key, set()).add(piece.slot.name)
        self._written: dict[tuple[str, str], list[_WrittenRows]] = {
            tensor: [] for tensor, names in slots.items() if len(names) > 1
        }

    def written(self, consumers: Sequence[_Consumer]) -> list[_WrittenRows]:
        """Return the rows of the consumers' tensor that images have in the consumers' dtype."""
        _, piece = consumers[0]
        return [rows for rows in self._written.get(piece.tensor_key, []) if rows.dtype == piece.slot.dtype]

    def note(self, consumers: Sequence[_Consumer]) -> None:
        """Record that the images of the consumers have their rows, if these are whole and all of a slot."""
        for writer, piece in consumers:
            slot, part = piece.slot, piece.part
            whole = part.cols is None and part.columns is None
            if piece.tensor_key in self._written and len(slot.parts) == 1 and whole:
                offset = self._data_start[id(writer)] + slot.offset
                row_bytes = row_width(piece.tensor) * HEADER_BYTES[slot.dtype]
                for rows in part.rows:
                    written = _WrittenRows(rows=rows, dtype=slot.dtype, writer=writer, offset=offset)
                    self._written[piece.tensor_key].append(written)
                    offset += (rows[1] - rows[0]) * row_bytes


def _blocks(reader: Reader, consumers: Sequence[_Consumer], written: Sequence[_WrittenRows]) -> Iterator[_Block]:
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
                        yield _Block(
                            origin=file if image is None else image.writer,
                            offset=row_zero + (first * width + left) * item,
                            dtype=dtype,
                            rows=(row, row + count),
                            columns=(left, min(width, left + most)),
                            consumers=consumers,
                        )
                    row += count


def _coded_blocks(reader: Reader, consumers: Sequence[_Consumer], stored: Stored) -> Iterator[_Block]:
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
                yield _Block(
                    origin=origin,
                    offset=first,
                    dtype=piece.tensor.dtype,
                    rows=(row, row + count),
                    columns=(0, width),
                    consumers=consumers,
                    losses=np.zeros((count, 2)) if rounds else None,
                )
                row += count


def _turned_blocks(reader: Reader, consumers: Sequence[_Consumer], turned: Columns) -> Iterator[_Block]:
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
                yield _Block(
                    origin=file,
                    offset=tensor.offset + ((piece.part.first or 0) + left) * stride + column * item,
                    dtype=tensor.dtype,
                    rows=(row, end),
                    columns=(left, min(width, left + widest)),
                    consumers=consumers,
                    turned=_Turned(run=(end - row - 1) * turned.step + 1, step=turned.step, stride_bytes=stride),
                )


def _split(span: Range, written: Sequence[_WrittenRows]) -> Iterator[tuple[Range, _WrittenRows | None]]:
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


# ---- the shares of a block ----


def _distribute(block: _Block, buffer: Buffer, pipeline: Pipeline) -> None:
    """Append to each consumer its part of a block that was read."""
    flat = buffer.memory[: block.nbytes].view(STORAGE[block.dtype])
    if block.turned is None:
        values = flat.reshape(block.shape)
    else:
        values = flat.reshape(-1, block.turned.run)[:, :: block.turned.step].T
    for writer, piece in block.consumers:
        most = len(values) if block.turned is None else max(1, 2 * BLOCK_BYTES // _row_bytes(block, piece))
        for rows in piece.part.rows:
            first, last = max(block.rows[0], rows[0]), min(block.rows[1], rows[1])
            for start in range(first, last, most):
                share = values[start - block.rows[0] : min(last, start + most) - block.rows[0]]
                columns = _columns(share, block.columns, piece.part.cols)
                _append(writer, piece.slot, columns, block.dtype, buffer, pipeline)


def _note_losses(block: _Block, losses: RoundingLosses) -> None:
    """Add the losses of the rows of a block to those of the images that have them."""
    if block.losses is None:
        return
    for writer, piece in block.consumers:
        for rows in piece.part.rows:
            first, last = max(block.rows[0], rows[0]), min(block.rows[1], rows[1])
            if first < last:
                losses.add(id(writer), piece.slot.name, block.losses[first - block.rows[0] : last - block.rows[0]])


def _row_bytes(block: _Block, piece: Copied) -> int:
    """Return the most bytes that a row of a block has in an image."""
    return block.shape[1] * HEADER_BYTES[piece.slot.dtype]


def _columns(values: Array, present: Range, needed: Ranges | None) -> list[Array]:
    """Return the needed columns of some rows, which have the columns ``present``, as views side by side; None: all."""
    views = []
    for start, stop in needed or (present,):
        left, right = max(start, present[0]), min(stop, present[1])
        if left < right:
            views.append(values[:, left - present[0] : right - present[0]])
    return views


def _append(writer: Writer, slot: Slot, views: list[Array], dtype: str, buffer: Buffer, pipeline: Pipeline) -> None:
    """Append columns of the same rows to an image: in place where they are contiguous, else gathered and cast."""
    if not views:
        return
    if len(views) == 1 and dtype == slot.dtype and views[0].flags.c_contiguous:
        pipeline.append(writer, _bytes(views[0]), buffer)
        return
    target = pipeline.target()
    shape = len(views[0]), sum(view.shape[1] for view in views)
    out = target.memory[: shape[0] * shape[1] * HEADER_BYTES[slot.dtype]].view(STORAGE[slot.dtype]).reshape(shape)
    left = 0
    for view in views:
        cast_into(out[:, left : left + view.shape[1]], view, dtype, slot.dtype)
        left += view.shape[1]
    pipeline.append(writer, _bytes(out), target)


def _bytes(values: Array) -> memoryview:
    flat: Any = values.reshape(-1).view(np.uint8)
    return flat.data  # type: ignore[no-any-return]
