"""Source rows -> image bytes: one walk over the tensors of the checkpoints feeds all images at once.

The slots of every image are in the order of execution, so each image only ever grows at its end, is hashed while it
grows, and a source row is read once for all devices:

    source rows  ──read──►  block [rows, width]  ──slice, cast──►  gpu0  gpu1  …   (BLAKE3 + write)

A block has at most ``BLOCK_BYTES``, so memory does not depend on the model.
"""

import contextlib
import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from planner.checkpoint import Checkpoint, TensorInfo
from planner.errors import CheckpointError, OutputError
from planner.layout import Part, Slot
from plans.artifact import ITEM_BYTES
from plans.ranges import Range, Ranges

BLOCK_BYTES = 8 << 20
"""Of source rows held at once; casting needs about four times as much beside it."""

Progress = Callable[[int, int], None]
"""Called with bytes written and bytes to write."""
Array = npt.NDArray[Any]

_STORAGE = {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "I64": "<i8"}
"""What numpy holds a source dtype in; it has no bfloat16, so that is its bits."""


# ---- casts ----


def _widen(bits: Array) -> Array:
    """bfloat16 bits -> float32, exactly."""
    widened = bits.astype(np.uint32)
    np.left_shift(widened, np.uint32(16), out=widened)
    return widened.view(np.float32)


def _narrow(values: Array) -> Array:
    """float32 -> bfloat16 bits, round to nearest even; a NaN stays a (quiet) NaN."""
    bits: npt.NDArray[np.uint32] = values.view(np.uint32)
    rounded = bits + (((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))
    np.right_shift(rounded, np.uint32(16), out=rounded)
    nan = np.isnan(values)
    if nan.any():
        rounded[nan] = (bits[nan] >> np.uint32(16)) | np.uint32(0x40)
    return rounded.astype(np.uint16)


def _half(values: Array) -> Array:
    """float32 -> float16, round to nearest even; beyond its range infinite, as everywhere."""
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
    """Whether a source dtype can become a slot's dtype."""
    return (source == target and source in _STORAGE) or (source, target) in _CASTS


def cast(array: Array, source: str, target: str) -> Array:
    """An array in the storage of ``source`` as one, contiguous, in the storage of ``target``."""
    contiguous = np.ascontiguousarray(array)
    return contiguous if source == target else _CASTS[source, target](contiguous)


# ---- sources ----


class Reader:
    """Reads rows of the checkpoints' tensors; each file is opened once, and must stay as it was then."""

    def __init__(self, checkpoints: dict[str, Checkpoint]) -> None:
        self._checkpoints = checkpoints
        self._files: dict[Path, tuple[int, os.stat_result]] = {}
        self._stack = contextlib.ExitStack()
        self._buffer = np.empty(BLOCK_BYTES, np.uint8)
        self.read_bytes = 0

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *unused: object) -> None:
        self._stack.close()

    def locate(self, part: Part) -> tuple[TensorInfo, Path]:
        """Where a part's tensor is."""
        checkpoint = self._checkpoints[part.source]
        assert checkpoint.tensors is not None
        info = checkpoint.tensors[part.tensor]
        return info, checkpoint.directory / info.file

    def identity(self, file: Path) -> list[object]:
        """What tells whether a file is the one of the last compile: name, size, time of change, header."""
        status = self._open(file)[1]
        return [file.name, status.st_size, status.st_mtime_ns, self._header_sha256(file)]

    def headers_sha256(self, source: str) -> str | None:
        """Of the safetensors headers of all files of a checkpoint, by name; None where there is no such checkpoint."""
        if source not in self._checkpoints:
            return None
        checkpoint = self._checkpoints[source]
        assert checkpoint.tensors is not None
        files = sorted({info.file for info in checkpoint.tensors.values()})
        text = json.dumps([[file, self._header_sha256(checkpoint.directory / file)] for file in files])
        return hashlib.sha256(text.encode()).hexdigest()

    def rows(self, info: TensorInfo, file: Path, start: int, stop: int) -> Array:
        """Rows of a tensor as [rows, width] in the storage of its dtype; valid until the next call."""
        width = row_width(info)
        row_bytes = width * ITEM_BYTES[info.dtype]
        block = self._buffer[: (stop - start) * row_bytes]
        self._fill(file, info.offset + start * row_bytes, block)
        return block.view(_STORAGE[info.dtype]).reshape(stop - start, width)

    def check_unchanged(self) -> None:
        """Raise CheckpointError where a file changed since it was opened."""
        for file, (_, before) in self._files.items():
            try:
                now = file.stat()
            except OSError as error:
                raise CheckpointError(f"{file}: vanished while it was compiled: {error.strerror}") from error
            if _stamp(now) != _stamp(before):
                raise CheckpointError(f"{file}: changed while it was compiled: compile again")

    def _fill(self, file: Path, offset: int, block: Array) -> None:
        descriptor = self._open(file)[0]
        view, done = block.data, 0
        while done < len(view):
            try:
                count = os.preadv(descriptor, [view[done:]], offset + done)
            except OSError as error:
                raise CheckpointError(f"{file}: cannot read at byte {offset + done}: {error.strerror}") from error
            if count == 0:
                raise CheckpointError(f"{file}: ends at byte {offset + done}, within a tensor: the file was truncated")
            done += count
        self.read_bytes += done

    def _open(self, file: Path) -> tuple[int, os.stat_result]:
        if file not in self._files:
            try:
                descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise CheckpointError(f"{file}: cannot open: {error.strerror}") from error
            self._stack.callback(os.close, descriptor)
            self._files[file] = descriptor, os.fstat(descriptor)
        return self._files[file]

    def _header_sha256(self, file: Path) -> str:
        descriptor, status = self._open(file)
        length = os.pread(descriptor, 8, 0)
        text = os.pread(descriptor, min(int.from_bytes(length, "little"), status.st_size), 8)
        return hashlib.sha256(length + text).hexdigest()


def row_width(info: TensorInfo) -> int:
    """Elements of one row; a vector has rows of one."""
    return info.shape[1] if len(info.shape) == 2 else 1


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ino


# ---- images ----


class Writer:
    """A file that grows at its end and is hashed as it grows; complete and on disk after ``finish``."""

    def __init__(self, file: Path, size_bytes: int) -> None:
        self._file = file
        self._hash = blake3(max_threads=blake3.AUTO)
        self.size_bytes = size_bytes
        self.written_bytes = 0
        self._descriptor: int | None = None
        with self._errors():
            self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            os.posix_fallocate(self._descriptor, 0, size_bytes)  # a full disk is told before an hour of copying

    def write(self, data: bytes | Array) -> None:
        """Append bytes, or a contiguous array."""
        view = memoryview(data).cast("B") if isinstance(data, bytes) else data.reshape(-1).view(np.uint8).data
        self._hash.update(view)
        assert self._descriptor is not None
        with self._errors():
            while view:
                count = os.write(self._descriptor, view)
                self.written_bytes += count
                view = view[count:]

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
            self.close()
            raise OutputError(f"{self._file}: cannot write {self.size_bytes} bytes: {error.strerror}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class _Key:
    """One part of a slot; images that have a share of it have it at the same place of the walk."""

    slot: str
    part: int


_Piece = tuple[_Key, Slot, Part | None]
"""A part of a slot, or (None) its literal."""


def stream(images: Sequence[tuple[Writer, Sequence[Slot]]], reader: Reader, progress: Progress | None) -> None:
    """Write the slots of all images, in one walk over the source tensors."""
    queues = [(writer, deque(_pieces(slots))) for writer, slots in images]
    waiting = Counter(key for _, queue in queues for key, _, part in queue if part is not None)
    total = sum(writer.size_bytes for writer, _ in images)
    while True:
        for writer, queue in queues:
            _write_literals(writer, queue)
        ready = _next(queues, waiting)
        if not ready:
            break
        consumers = [(writer, *queue.popleft()) for writer, queue in ready]
        for _ in _copy(reader, [(writer, slot, part) for writer, _, slot, part in consumers if part is not None]):
            if progress is not None:
                progress(sum(writer.written_bytes for writer, _ in images), total)
    reader.check_unchanged()


def _pieces(slots: Sequence[Slot]) -> Iterator[_Piece]:
    for slot in slots:
        for number, part in enumerate(slot.parts or (None,)):
            yield _Key(slot=slot.name, part=number), slot, part


def _write_literals(writer: Writer, queue: deque[_Piece]) -> None:
    while queue and queue[0][2] is None:
        literal = queue.popleft()[1].literal
        assert literal is not None
        writer.write(literal)


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


def _copy(reader: Reader, consumers: Sequence[tuple[Writer, Slot, Part]]) -> Iterator[None]:
    """Read the rows that any consumer wants, block by block, and give each its rectangle."""
    info, file = reader.locate(consumers[0][2])
    row_bytes = row_width(info) * ITEM_BYTES[info.dtype]
    if row_bytes > BLOCK_BYTES:
        raise CheckpointError(f"{consumers[0][2].tensor}: a row of {row_bytes} bytes, expected at most {BLOCK_BYTES}")
    wanted = [span for _, _, part in consumers for span in part.rows]
    for start, stop in _blocks(wanted, BLOCK_BYTES // row_bytes):
        block = reader.rows(info, file, start, stop)
        for writer, slot, part in consumers:
            for rows in part.rows:
                first, last = max(start, rows[0]), min(stop, rows[1])
                if first < last:
                    rectangle = _columns(block[first - start : last - start], part.cols)
                    writer.write(cast(rectangle, info.dtype, slot.dtype))
        yield


def _columns(rows: Array, cols: Ranges | None) -> Array:
    """Ranges of columns side by side; a single one is a view."""
    if cols is None:
        return rows
    pieces = [rows[:, start:stop] for start, stop in cols]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)


def _blocks(ranges: Sequence[Range], most: int) -> Iterator[Range]:
    """The union of row ranges, cut into blocks of at most ``most`` rows; ranges that touch are one."""
    union: list[Range] = []
    for start, stop in sorted(ranges):
        if union and start <= union[-1][1]:
            union[-1] = union[-1][0], max(stop, union[-1][1])
        else:
            union.append((start, stop))
    for start, stop in union:
        for first in range(start, stop, most):
            yield first, min(stop, first + most)
