"""Source rows -> image bytes: one walk over the tensors of the checkpoints feeds all images at once.

The slots of every image are in the order of execution, so each image only ever grows at its end, is hashed while it
grows, and a source row is read once for all devices. Where another slot wants rows again (a tied head, the embedding of
an EAGLE head), they are read from the image that has them. Three threads besides the one that walks:

    read ahead            walk                            hash      write
    source rows ──► block [rows, width] ──slice, cast──►  BLAKE3 ∥  gpu0 gpu1 …

What is written is the same in any order of threads: an image's bytes are hashed by one, and written by one, in order.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from planner.checkpoints.header import TensorFile, TensorInfo
from planner.images.casts import STORAGE, Array, cast_into
from planner.images.pipeline import Buffer, Lanes, Writer
from planner.images.reader import Reader
from plans.artifact import ITEM_BYTES
from plans.ranges import Range, Ranges
from plans.slots import Part, Slot

BLOCK_BYTES = 2 << 20
"""Of source rows that are read at once."""
AHEAD = 8
"""Blocks that are being read while one is worked on."""

Progress = Callable[[int, int], None]
"""Called with bytes written and bytes to write."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Key:
    """One part of a slot; images that have a share of it have it at the same place of the walk."""

    slot: str
    part: int


_Piece = tuple[_Key, Slot, Part | None]
"""A part of a slot, or (None) its literal."""
_Consumer = tuple[Writer, Slot, Part]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Literal:
    """Bytes that are the plan's own."""

    writer: Writer
    data: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class _Held:
    """Whole rows of a tensor that an image has, from ``offset`` of its file on."""

    rows: Range
    dtype: str
    writer: Writer
    offset: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Block:
    """A rectangle of a source tensor, side by side where it is read, and who wants a part of it."""

    where: TensorFile | Writer
    """Its file, or an image that has these rows."""
    offset: int
    """There."""
    dtype: str
    """There: the tensor's, or the slot's."""
    rows: Range
    cols: Range
    """Of whole rows, unless a single row is larger than a buffer."""
    consumers: Sequence[_Consumer]

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows[1] - self.rows[0], self.cols[1] - self.cols[0]

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self.shape[1] * ITEM_BYTES[self.dtype]


def row_width(info: TensorInfo) -> int:
    """Elements of one row; a vector has rows of one."""
    return info.shape[1] if len(info.shape) == 2 else 1


def stream(images: Sequence[tuple[Writer, bytes, Sequence[Slot]]], reader: Reader, progress: Progress | None) -> None:
    """Write header and slots of all images, in one walk over the tensors; raise CheckpointError or OutputError."""
    total = sum(writer.size_bytes for writer, _, _ in images)
    with Lanes(BLOCK_BYTES) as lanes:
        for writer, header, _ in images:
            lanes.append(writer, memoryview(header), None)
        for step, buffer in _read_ahead(_walk(images, reader), lanes, reader):
            if isinstance(step, _Literal):
                lanes.append(step.writer, memoryview(step.data), None)
                continue
            assert buffer is not None
            buffer.settle()
            _deal(step, buffer, lanes)
            if progress is not None:
                progress(sum(writer.written_bytes for writer, _, _ in images), total)
        lanes.settle()
    reader.check_unchanged()
    if progress is not None:
        progress(total, total)


def _read_ahead(
    steps: Iterator[_Literal | _Block], lanes: Lanes, reader: Reader
) -> Iterator[tuple[_Literal | _Block, Buffer | None]]:
    """The steps, each block with its buffer; the next AHEAD blocks are being read meanwhile."""
    begun: deque[tuple[_Literal | _Block, Buffer | None]] = deque()
    ahead = 0
    for step in steps:
        if isinstance(step, _Block) and isinstance(step.where, Writer) and not step.where.has(step.offset, step.nbytes):
            yield from begun  # what is to be read there is among these, or is still being written
            begun.clear()
            ahead = 0
            lanes.settle()
        buffer = None if isinstance(step, _Literal) else lanes.read(reader, step.where, step.offset, step.nbytes)
        begun.append((step, buffer))
        ahead += buffer is not None
        while ahead > AHEAD:
            yield begun[0]
            ahead -= begun.popleft()[1] is not None
    yield from begun


def _walk(images: Sequence[tuple[Writer, bytes, Sequence[Slot]]], reader: Reader) -> Iterator[_Literal | _Block]:
    queues = [(writer, deque(_pieces(slots))) for writer, _, slots in images]
    waiting = Counter(key for _, queue in queues for key, _, part in queue if part is not None)
    tables = _Tables(images)
    while True:
        for writer, queue in queues:
            yield from _literals(writer, queue)
        ready = _next(queues, waiting)
        if not ready:
            return
        taken = [(writer, *queue.popleft()) for writer, queue in ready]
        consumers = [(writer, slot, part) for writer, _, slot, part in taken if part is not None]
        yield from _blocks(reader, consumers, tables.held(consumers))
        tables.hold(reader, consumers)


class _Tables:
    """The tensors that several slots want rows of, and which of their rows images have already."""

    def __init__(self, images: Sequence[tuple[Writer, bytes, Sequence[Slot]]]) -> None:
        self._data_start = {id(writer): len(header) for writer, header, _ in images}
        slots: dict[tuple[str, str], set[str]] = {}
        for slot in (slot for _, _, image in images for slot in image):
            for part in slot.parts:
                slots.setdefault((part.source, part.tensor), set()).add(slot.name)
        self._held: dict[tuple[str, str], list[_Held]] = {name: [] for name, own in slots.items() if len(own) > 1}

    def held(self, consumers: Sequence[_Consumer]) -> list[_Held]:
        _, slot, part = consumers[0]
        return [one for one in self._held.get((part.source, part.tensor), []) if one.dtype == slot.dtype]

    def hold(self, reader: Reader, consumers: Sequence[_Consumer]) -> None:
        """From now on the images of the consumers have their rows."""
        for writer, slot, part in consumers:
            if (part.source, part.tensor) in self._held and len(slot.parts) == 1 and part.cols is None:
                offset = self._data_start[id(writer)] + slot.offset
                row_bytes = row_width(reader.locate(part)[0]) * ITEM_BYTES[slot.dtype]
                for rows in part.rows:
                    held = _Held(rows=rows, dtype=slot.dtype, writer=writer, offset=offset)
                    self._held[part.source, part.tensor].append(held)
                    offset += (rows[1] - rows[0]) * row_bytes


def _pieces(slots: Sequence[Slot]) -> Iterator[_Piece]:
    for slot in slots:
        for number, part in enumerate(slot.parts or (None,)):
            yield _Key(slot=slot.name, part=number), slot, part


def _literals(writer: Writer, queue: deque[_Piece]) -> Iterator[_Literal]:
    while queue and queue[0][2] is None:
        literal = queue.popleft()[1].literal
        assert literal is not None
        yield _Literal(writer=writer, data=literal)


def _next(queues: Sequence[tuple[Writer, deque[_Piece]]], waiting: Counter[_Key]) -> list[tuple[Writer, deque[_Piece]]]:
    """The images whose next piece is the same and which no other image will come to later; empty at the end.

    There is one as long as any piece is left: all images have their slots in one order, and the first key of that
    order is in front of every image that has it.
    """
    fronts: dict[_Key, list[tuple[Writer, deque[_Piece]]]] = {}
    for writer, queue in queues:
        if queue:
            fronts.setdefault(queue[0][0], []).append((writer, queue))
    for key, ready in fronts.items():
        if len(ready) == waiting[key]:
            return ready
    assert not fronts, f"images disagree on the order of slots: {sorted(key.slot for key in fronts)}"
    return []


def _blocks(reader: Reader, consumers: Sequence[_Consumer], held: Sequence[_Held]) -> Iterator[_Block]:
    """The rows that any consumer wants, in blocks of at most BLOCK_BYTES; a larger row in pieces."""
    info, file = reader.locate(consumers[0][2])
    width = max(1, row_width(info))
    for span in _union([span for _, _, part in consumers for span in part.rows]):
        for (start, stop), there in _split(span, held):
            dtype = info.dtype if there is None else there.dtype
            item, most = ITEM_BYTES[dtype], max(1, BLOCK_BYTES // ITEM_BYTES[dtype])
            where, offset = (file, info.offset) if there is None else (there.writer, there.offset)
            origin = offset - (0 if there is None else there.rows[0] * width * item)
            for first in range(start, stop, max(1, most // width)):
                last = min(stop, first + max(1, most // width))
                for left in range(0, width, most if width > most else width):
                    cols = left, min(width, left + most) if width > most else width
                    yield _Block(
                        where=where,
                        offset=origin + (first * width + left) * item,
                        dtype=dtype,
                        rows=(first, last),
                        cols=cols,
                        consumers=consumers,
                    )


def _split(span: Range, held: Sequence[_Held]) -> Iterator[tuple[Range, _Held | None]]:
    """A range of rows in pieces, each with an image that has it, or None."""
    start, stop = span
    while start < stop:
        there = next((one for one in held if one.rows[0] <= start < one.rows[1]), None)
        begins = [one.rows[0] for one in held if one.rows[0] > start] if there is None else [there.rows[1]]
        end = min([stop, *begins])
        yield (start, end), there
        start = end


def _union(ranges: Sequence[Range]) -> list[Range]:
    """The union of ranges; those that touch are one."""
    union: list[Range] = []
    for start, stop in sorted(ranges):
        if union and start <= union[-1][1]:
            union[-1] = union[-1][0], max(stop, union[-1][1])
        else:
            union.append((start, stop))
    return union


def _deal(block: _Block, buffer: Buffer, lanes: Lanes) -> None:
    """Give each consumer its rectangle of a block that was read."""
    source = buffer.memory[: block.nbytes].view(STORAGE[block.dtype]).reshape(block.shape)
    for writer, slot, part in block.consumers:
        for rows in part.rows:
            first, last = max(block.rows[0], rows[0]), min(block.rows[1], rows[1])
            if first < last:
                there = source[first - block.rows[0] : last - block.rows[0]]
                _give(writer, slot, _columns(there, block.cols, part.cols), block.dtype, buffer, lanes)


def _columns(there: Array, held: Range, wanted: Ranges | None) -> list[Array]:
    """What a consumer wants of the columns ``held`` of some rows, as views side by side."""
    pieces = []
    for start, stop in wanted or (held,):
        left, right = max(start, held[0]), min(stop, held[1])
        if left < right:
            pieces.append(there[:, left - held[0] : right - held[0]])
    return pieces


def _give(writer: Writer, slot: Slot, pieces: list[Array], dtype: str, buffer: Buffer, lanes: Lanes) -> None:
    """Append some columns of the same rows to an image: as they lie there, or gathered and cast in a buffer."""
    if not pieces:
        return
    if len(pieces) == 1 and dtype == slot.dtype and pieces[0].flags.c_contiguous:
        lanes.append(writer, _bytes(pieces[0]), buffer)
        return
    target = lanes.target()
    shape = len(pieces[0]), sum(piece.shape[1] for piece in pieces)
    out = target.memory[: shape[0] * shape[1] * ITEM_BYTES[slot.dtype]].view(STORAGE[slot.dtype]).reshape(shape)
    left = 0
    for piece in pieces:
        cast_into(out[:, left : left + piece.shape[1]], piece, dtype, slot.dtype)
        left += piece.shape[1]
    lanes.append(writer, _bytes(out), target)


def _bytes(values: Array) -> memoryview:
    flat: Any = values.reshape(-1).view(np.uint8)
    return flat.data  # type: ignore[no-any-return]
