"""Source rows -> image bytes: one walk over the tensors of the checkpoints feeds all images at once.

The slots of every image are in the order of execution, so each image only ever grows at its end, is hashed while it
grows, and a source row is read once for all devices. Where another slot wants rows again (a tied head, the embedding of
an EAGLE head), they are read from the image that has them. Three threads besides the one that walks:

    read ahead            walk                            hash      write
    source rows ──► block [rows, width] ──slice, cast──►  BLAKE3 ∥  gpu0 gpu1 …

Buffers are few and of ``BLOCK_BYTES``, so memory depends neither on the model nor on the size of a tensor. What is
written is the same in any order of threads: an image's bytes are hashed by one thread, and written by one, in order.
"""

import contextlib
import itertools
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from planner.casts import STORAGE, Array, cast_into
from planner.errors import OutputError
from planner.headers import TensorFile, TensorInfo
from planner.layout import Part, Slot
from planner.sources import Reader
from plans.artifact import ITEM_BYTES
from plans.ranges import Range, Ranges

BLOCK_BYTES = 2 << 20
"""Of source rows that are read at once."""
AHEAD = 8
"""Blocks that are being read while one is worked on."""
SOURCE_BUFFERS = 16
"""Of BLOCK_BYTES each: those ahead, and those that are still hashed and written."""
TARGET_BUFFERS = 8
"""For what is no view of a source buffer: columns, and casts, which may double its bytes."""
LITERALS = 64
"""Pieces that are in no buffer, waited for at a time."""
FLUSH_BYTES = 32 << 20
"""Written pages are sent to the disk this often, so that the last sync has little left to wait for."""
HASH_THREADS = blake3.AUTO if (os.cpu_count() or 1) > 4 else 1
"""Where cores are few, reading and writing need the others; the digest is the same."""

Progress = Callable[[int, int], None]
"""Called with bytes written and bytes to write."""


# ---- images ----


class Writer:
    """A file that grows at its end and is hashed as it grows; complete and on disk after ``finish``.

    ``hash`` and ``write`` are each called with the same pieces in the same order, perhaps by two threads.
    """

    def __init__(self, file: Path, size_bytes: int) -> None:
        self._file = file
        self._hash = blake3(max_threads=HASH_THREADS)
        self._flushed_bytes = 0
        self.size_bytes = size_bytes
        self.written_bytes = 0
        self._descriptor: int | None = None
        with self._errors():
            self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            os.posix_fallocate(self._descriptor, 0, size_bytes)  # a full disk is told before an hour of copying

    def hash(self, piece: memoryview) -> None:
        self._hash.update(piece)

    def write(self, piece: memoryview) -> None:
        """Append bytes; raise OutputError."""
        assert self._descriptor is not None
        with self._errors():
            while piece:
                count = os.write(self._descriptor, piece)
                self.written_bytes += count
                piece = piece[count:]
            if (fresh := self.written_bytes - self._flushed_bytes) >= FLUSH_BYTES:
                # of dirty pages this means: begin to write them, without waiting
                os.posix_fadvise(self._descriptor, self._flushed_bytes, fresh, os.POSIX_FADV_DONTNEED)
                self._flushed_bytes = self.written_bytes

    def has(self, offset: int, nbytes: int) -> bool:
        """Whether these bytes are written."""
        return offset + nbytes <= self.written_bytes

    def read_into(self, offset: int, block: memoryview) -> None:
        """Fill ``block`` with bytes that were written; raise OutputError."""
        assert self._descriptor is not None
        with self._errors():
            while block:
                count = os.preadv(self._descriptor, [block], offset)
                assert count, f"{self._file}: {offset} is beyond the {self.written_bytes} bytes that were written"
                offset, block = offset + count, block[count:]

    def finish(self) -> str:
        """Bring the file to disk; its BLAKE3 in hex."""
        assert self.written_bytes == self.size_bytes, f"{self._file}: {self.written_bytes} of {self.size_bytes} bytes"
        assert self._descriptor is not None
        with self._errors():
            os.fsync(self._descriptor)
        return self._hash.hexdigest()

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"{self._file}: cannot write {self.size_bytes} bytes: {error.strerror}") from error


# ---- threads ----


@dataclass(frozen=True, kw_only=True, slots=True)
class _Buffer:
    """Memory, and what still reads it or fills it."""

    memory: Array
    users: list["Future[None]"] = field(default_factory=list)

    def settle(self) -> None:
        """Wait until nobody uses it; raise what went wrong with it."""
        _settle(self.users)


def _settle(futures: "list[Future[None]]") -> None:
    for future in futures:
        future.result()
    futures.clear()


class _Lanes:
    """A thread that reads, one that hashes and one that writes, each in the order in which it was asked."""

    def __init__(self) -> None:
        self._reading, self._hashing, self._writing = (
            ThreadPoolExecutor(1, thread_name_prefix=name) for name in ("read", "hash", "write")
        )
        self._sources = _ring(SOURCE_BUFFERS, BLOCK_BYTES)
        self._targets = _ring(TARGET_BUFFERS, 2 * BLOCK_BYTES)
        self._literals: list[Future[None]] = []

    def __enter__(self) -> "_Lanes":
        return self

    def __exit__(self, *unused: object) -> None:
        for lane in (self._reading, self._hashing, self._writing):
            lane.shutdown(wait=True, cancel_futures=True)

    def read(self, reader: Reader, block: "_Block") -> _Buffer:
        """A buffer that begins with the bytes of a block, once it is settled."""
        buffer = next(self._sources)
        buffer.settle()
        view = buffer.memory[: block.nbytes].data
        if isinstance(block.where, Writer):
            buffer.users.append(self._reading.submit(block.where.read_into, block.offset, view))
        else:
            reader.expect(block.where, block.offset, block.nbytes)
            buffer.users.append(self._reading.submit(reader.read_into, block.where, block.offset, view))
        return buffer

    def target(self) -> _Buffer:
        """A buffer that nobody uses, of 2 * BLOCK_BYTES."""
        buffer = next(self._targets)
        buffer.settle()
        return buffer

    def append(self, writer: Writer, piece: memoryview, buffer: _Buffer | None) -> None:
        """Hash and write bytes, which are part of ``buffer``, or (None) are nobody's."""
        users = self._literals if buffer is None else buffer.users
        if len(self._literals) >= LITERALS:
            _settle(self._literals)
        users += [self._hashing.submit(writer.hash, piece), self._writing.submit(writer.write, piece)]

    def settle(self) -> None:
        """Wait for everything; raise what went wrong."""
        _settle(self._literals)
        for ring, count in ((self._sources, SOURCE_BUFFERS), (self._targets, TARGET_BUFFERS)):
            for buffer in itertools.islice(ring, count):
                buffer.settle()


def _ring(count: int, nbytes: int) -> Iterator[_Buffer]:
    return itertools.cycle([_Buffer(memory=np.empty(nbytes, np.uint8)) for _ in range(count)])


# ---- the walk ----


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
    with _Lanes() as lanes:
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
    steps: Iterator[_Literal | _Block], lanes: _Lanes, reader: Reader
) -> Iterator[tuple[_Literal | _Block, _Buffer | None]]:
    """The steps, each block with its buffer; the next AHEAD blocks are being read meanwhile."""
    begun: deque[tuple[_Literal | _Block, _Buffer | None]] = deque()
    ahead = 0
    for step in steps:
        if isinstance(step, _Block) and isinstance(step.where, Writer) and not step.where.has(step.offset, step.nbytes):
            yield from begun  # what is to be read there is among these, or is still being written
            begun.clear()
            ahead = 0
            lanes.settle()
        buffer = None if isinstance(step, _Literal) else lanes.read(reader, step)
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


def _deal(block: _Block, buffer: _Buffer, lanes: _Lanes) -> None:
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


def _give(writer: Writer, slot: Slot, pieces: list[Array], dtype: str, buffer: _Buffer, lanes: _Lanes) -> None:
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
