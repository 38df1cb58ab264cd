"""Run one thread that reads, one that hashes and one that writes, over small rings of buffers.

    reading thread ──► source ring ──► the walk (``stream``) ──► hashing thread ∥ writing thread ──► image
                                            └─ columns, casts ─► target ring ─┘

A buffer is used again only when every operation on it is done, so memory depends neither on the model nor on the size
of a tensor. Each thread works in the order in which it was asked, so an image has the same bytes whatever the timing.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from blake3 import blake3

from planner.checkpoints.header import TensorFile
from planner.errors import OutputError
from planner.images.casts import Array
from planner.images.reader import Reader
from plans import paging

SOURCE_BUFFERS = 16
"""Buffers of the source ring: blocks that are read ahead, and blocks that are still hashed and written."""
TARGET_BUFFERS = 8
"""Buffers of the target ring, for bytes that are no view of a source buffer: gathered columns, and casts."""
TURNED_BUFFERS = 2
"""Buffers of the ring of blocks that are transposed, which are larger; allocated with the first of them."""
MAX_LITERALS = 64
"""Pieces outside all buffers that may be pending before the walk waits for them."""
FLUSH_BYTES = 32 << 20
"""Written bytes after which write-back is started, so that the final fsync has little left to wait for."""
HASH_THREADS = min(4, max(1, (os.cpu_count() or 1) - 3))
"""Threads that hash one image; three cores are left for reading, writing and the walk."""


class Writer:
    """An image's file, which grows at its end and is hashed as it grows.

    ``hash`` and ``write`` are each called with the same pieces in the same order, possibly by two threads. The file is
    complete and on disk after ``finish``. All methods raise OutputError.
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
            paging.reserve(self._descriptor, size_bytes)  # a full disk is reported before an hour of copying

    def hash(self, piece: memoryview) -> None:
        """Add bytes to the digest."""
        self._hash.update(piece)

    def write(self, piece: memoryview) -> None:
        """Append bytes to the file."""
        assert self._descriptor is not None
        with self._errors():
            while piece:
                count = os.write(self._descriptor, piece)
                self.written_bytes += count
                piece = piece[count:]
            if (unflushed := self.written_bytes - self._flushed_bytes) >= FLUSH_BYTES:
                paging.begin_to_write(self._descriptor, self._flushed_bytes, unflushed)
                self._flushed_bytes = self.written_bytes

    def has(self, offset: int, nbytes: int) -> bool:
        """Return True if these bytes are written."""
        return offset + nbytes <= self.written_bytes

    def read_into(self, offset: int, block: memoryview) -> None:
        """Fill ``block`` with written bytes, from ``offset`` on."""
        assert self._descriptor is not None
        with self._errors():
            while block:
                count = os.preadv(self._descriptor, [block], offset)
                assert count, f"{self._file}: {offset} is beyond the {self.written_bytes} bytes that were written"
                offset, block = offset + count, block[count:]

    def finish(self) -> str:
        """Bring the file to disk; return its BLAKE3 in hex."""
        assert self.written_bytes == self.size_bytes, f"{self._file}: {self.written_bytes} of {self.size_bytes} bytes"
        assert self._descriptor is not None
        with self._errors():
            os.fsync(self._descriptor)
        return self._hash.hexdigest()

    def close(self) -> None:
        """Close the file; closing twice is allowed."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"{self._file}: cannot write {self.size_bytes} bytes: {error.strerror}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Buffer:
    """Memory of a ring, uint8 [bytes]."""

    memory: Array
    users: list["Future[None]"] = field(default_factory=list)
    """Pending operations that fill or read the memory."""

    def settle(self) -> None:
        """Wait until no operation uses the buffer; raise the error of one that failed."""
        _settle(self.users)


def _settle(futures: "list[Future[None]]") -> None:
    for future in futures:
        future.result()
    futures.clear()


class Pipeline:
    """The three threads and the rings.

    ``block_bytes``: the most that is read at once. A target buffer has twice as many, as a cast may double its bytes.
    ``turned_bytes``: of a block that is transposed.
    """

    def __init__(self, block_bytes: int, turned_bytes: int) -> None:
        self._reading, self._hashing, self._writing = (
            ThreadPoolExecutor(1, thread_name_prefix=name) for name in ("read", "hash", "write")
        )
        self._sources = _ring(SOURCE_BUFFERS, block_bytes)
        self._targets = _ring(TARGET_BUFFERS, 2 * block_bytes)
        self._turned_bytes = turned_bytes
        self._turned: Iterator[Buffer] | None = None
        self._literals: list[Future[None]] = []

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(self, *unused: object) -> None:
        for thread in (self._reading, self._hashing, self._writing):
            thread.shutdown(wait=True, cancel_futures=True)

    def fill(self, fill: Callable[[memoryview], None], nbytes: int) -> Buffer:
        """Begin to fill a buffer on the reading thread; return it."""
        buffer = next(self._sources)
        buffer.settle()
        buffer.users.append(self._reading.submit(fill, buffer.memory[:nbytes].data))
        return buffer

    def read(self, reader: Reader, origin: TensorFile | Writer, offset: int, nbytes: int) -> Buffer:
        """Begin to read bytes of a checkpoint, or of an image; return a buffer that begins with them once settled."""
        buffer = next(self._sources)
        buffer.settle()
        view = buffer.memory[:nbytes].data
        if isinstance(origin, Writer):
            buffer.users.append(self._reading.submit(origin.read_into, offset, view))
        else:
            reader.expect(origin, offset, nbytes)
            buffer.users.append(self._reading.submit(reader.read_into, origin, offset, view))
        return buffer

    def read_rows(self, reader: Reader, file: TensorFile, offset: int, nbytes: int, count: int, stride: int) -> Buffer:
        """Begin to read ``nbytes`` of a checkpoint, in ``count`` runs that begin ``stride`` bytes one after the other.

        The buffer is of the ring of blocks that are transposed.
        """
        if self._turned is None:
            self._turned = _ring(TURNED_BUFFERS, self._turned_bytes)
        buffer = next(self._turned)
        buffer.settle()
        view = buffer.memory[:nbytes].data
        reader.expect(file, offset, (count - 1) * stride + nbytes // count)
        buffer.users.append(self._reading.submit(reader.read_rows_into, file, offset, view, count, stride))
        return buffer

    def target(self) -> Buffer:
        """Return a free buffer of the target ring, twice as large as a block."""
        buffer = next(self._targets)
        buffer.settle()
        return buffer

    def append(self, writer: Writer, piece: memoryview, buffer: Buffer | None) -> None:
        """Begin to hash and write bytes; ``buffer``: the one that they lie in, None for literal bytes."""
        users = self._literals if buffer is None else buffer.users
        if len(self._literals) >= MAX_LITERALS:
            _settle(self._literals)
        users += [self._hashing.submit(writer.hash, piece), self._writing.submit(writer.write, piece)]

    def settle(self) -> None:
        """Wait for all operations; raise the error of one that failed."""
        _settle(self._literals)
        turned = iter(()) if self._turned is None else self._turned
        rings = (self._sources, SOURCE_BUFFERS), (self._targets, TARGET_BUFFERS), (turned, TURNED_BUFFERS)
        for ring, count in rings:
            for buffer in itertools.islice(ring, count):
                buffer.settle()


def _ring(count: int, nbytes: int) -> Iterator[Buffer]:
    return itertools.cycle([Buffer(memory=np.empty(nbytes, np.uint8)) for _ in range(count)])
