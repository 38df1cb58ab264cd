"""Write all images in one walk over the tensors of the checkpoints, so that each source row is read once.

Every image has its slots in the order of execution, so it only grows at its end and is hashed while it grows. The walk
goes to the next piece that all images still waiting for it have in front, reads its rows in blocks, and appends each
image's share of a block. Where a later slot needs the same rows again (a tied lm_head, the embedding of an EAGLE head),
they are read back from an image that has them, in the dtype of the image.

    reading thread          the walk                        hashing ∥ writing threads
    source rows ──► block [rows, columns] ──slice, cast──►  BLAKE3  ∥  gpu0 gpu1 …

How a tensor is cut into blocks: ``planner.images.blocks``.

The bytes of an image do not depend on timing: one thread hashes and one writes them, each in order.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from planner.images import blocks
from planner.images.blocks import Block, Consumer, WrittenRows, as_bytes, begin_to_read, blocks_of
from planner.images.casts import STORAGE, Array, cast_into
from planner.images.layout import Slot
from planner.images.losses import RoundingLosses
from planner.images.pieces import Copied, Literal, Piece, row_width
from planner.images.pipeline import TURNED_BUFFERS, Buffer, Pipeline, Writer
from planner.images.reader import Reader
from plans.artifact import RoundingErrors
from plans.dtypes import HEADER_BYTES
from plans.ranges import Range, Ranges

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

_Step = tuple[Writer, Literal] | Block
"""One step of the walk: literal bytes for one image, or a block for several."""


def stream(
    images: Sequence[ImageInput], reader: Reader, progress: Progress | None
) -> list[tuple[RoundingErrors, ...] | None]:
    """Write header and pieces of all images; return the errors of the weights that each has rounded.

    Raise CheckpointError or OutputError.
    """
    losses = RoundingLosses()
    total = sum(image.writer.size_bytes for image in images)
    with Pipeline(blocks.BLOCK_BYTES, blocks.TURNED_BLOCKS * blocks.BLOCK_BYTES) as pipeline:
        for image in images:
            pipeline.append(image.writer, memoryview(image.header), None)
        for step, buffer in _read_ahead(_walk(images, reader), pipeline, reader):
            if not isinstance(step, Block):
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
        if not isinstance(step, Block):
            begun.append((step, None))
            continue
        if isinstance(step.origin, Writer) and not step.origin.has(step.offset, step.nbytes):
            yield from begun  # the bytes to read back come from one of these, or are still being written
            begun.clear()
            ahead = 0
            pipeline.settle()
        begun.append((step, begin_to_read(step, pipeline, reader)))
        ahead += 1
        while ahead > (AHEAD if step.turned is None else TURNED_BUFFERS - 1):
            yield begun[0]
            ahead -= begun.popleft()[1] is not None
    yield from begun


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
        yield from blocks_of(reader, consumers, shared.written(consumers))
        shared.note(consumers)


def _take_ready(queues: Sequence[_Queue], waiting: Counter[tuple[str, int, Ranges | None]]) -> list[Consumer]:
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
        self._written: dict[tuple[str, str], list[WrittenRows]] = {
            tensor: [] for tensor, names in slots.items() if len(names) > 1
        }

    def written(self, consumers: Sequence[Consumer]) -> list[WrittenRows]:
        """Return the rows of the consumers' tensor that images have in the consumers' dtype."""
        _, piece = consumers[0]
        return [rows for rows in self._written.get(piece.tensor_key, []) if rows.dtype == piece.slot.dtype]

    def note(self, consumers: Sequence[Consumer]) -> None:
        """Record that the images of the consumers have their rows, if these are whole and all of a slot."""
        for writer, piece in consumers:
            slot, part = piece.slot, piece.part
            whole = part.cols is None and part.columns is None
            if piece.tensor_key in self._written and len(slot.parts) == 1 and whole:
                offset = self._data_start[id(writer)] + slot.offset
                row_bytes = row_width(piece.tensor) * HEADER_BYTES[slot.dtype]
                for rows in part.rows:
                    written = WrittenRows(rows=rows, dtype=slot.dtype, writer=writer, offset=offset)
                    self._written[piece.tensor_key].append(written)
                    offset += (rows[1] - rows[0]) * row_bytes


def _distribute(block: Block, buffer: Buffer, pipeline: Pipeline) -> None:
    """Append to each consumer its part of a block that was read."""
    flat = buffer.memory[: block.nbytes].view(STORAGE[block.dtype])
    if block.turned is None:
        values = flat.reshape(block.shape)
    else:
        values = flat.reshape(-1, block.turned.run)[:, :: block.turned.step].T
    for writer, piece in block.consumers:
        most = len(values) if block.turned is None else max(1, 2 * blocks.BLOCK_BYTES // _row_bytes(block, piece))
        for rows in piece.part.rows:
            first, last = max(block.rows[0], rows[0]), min(block.rows[1], rows[1])
            for start in range(first, last, most):
                share = values[start - block.rows[0] : min(last, start + most) - block.rows[0]]
                columns = _columns(share, block.columns, piece.part.cols)
                _append(writer, piece.slot, columns, block.dtype, buffer, pipeline)


def _note_losses(block: Block, losses: RoundingLosses) -> None:
    """Add the losses of the rows of a block to those of the images that have them."""
    if block.losses is None:
        return
    for writer, piece in block.consumers:
        for rows in piece.part.rows:
            first, last = max(block.rows[0], rows[0]), min(block.rows[1], rows[1])
            if first < last:
                losses.add(id(writer), piece.slot.name, block.losses[first - block.rows[0] : last - block.rows[0]])


def _row_bytes(block: Block, piece: Copied) -> int:
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
        pipeline.append(writer, as_bytes(views[0]), buffer)
        return
    target = pipeline.target()
    shape = len(views[0]), sum(view.shape[1] for view in views)
    out = target.memory[: shape[0] * shape[1] * HEADER_BYTES[slot.dtype]].view(STORAGE[slot.dtype]).reshape(shape)
    left = 0
    for view in views:
        cast_into(out[:, left : left + view.shape[1]], view, dtype, slot.dtype)
        left += view.shape[1]
    pipeline.append(writer, as_bytes(out), target)
