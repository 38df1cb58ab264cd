"""Images as they grow, and the threads that do it: one that reads, one that hashes and one that writes.

Buffers are few, and what is in one stays until all who use it are done, so memory depends neither on the model nor on
the size of a tensor.
"""

import contextlib
import itertools
import os
from collections.abc import Iterator
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
"""Those that are read ahead, and those that are still hashed and written."""
TARGET_BUFFERS = 8
"""For what is no view of a source buffer: columns, and casts, which may double its bytes."""
LITERALS = 64
"""Pieces that are in no buffer, waited for at a time."""
FLUSH_BYTES = 32 << 20
"""Written pages are sent to the disk this often, so that the last sync has little left to wait for."""
HASH_THREADS = min(4, max(1, (os.cpu_count() or 1) - 3))
"""Of each image; reading, writing and the walk need cores too."""


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
            paging.reserve(self._descriptor, size_bytes)  # a full disk is told before an hour of copying

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
                paging.begin_to_write(self._descriptor, self._flushed_bytes, fresh)
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Buffer:
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


class Lanes:
    """A thread that reads, one that hashes and one that writes, each in the order in which it was asked.

    ``block_bytes``: the most that is read at once.
    """

    def __init__(self, block_bytes: int) -> None:
        self._reading, self._hashing, self._writing = (
            ThreadPoolExecutor(1, thread_name_prefix=name) for name in ("read", "hash", "write")
        )
        self._sources = _ring(SOURCE_BUFFERS, block_bytes)
        self._targets = _ring(TARGET_BUFFERS, 2 * block_bytes)
        self._literals: list[Future[None]] = []

    def __enter__(self) -> "Lanes":
        return self

    def __exit__(self, *unused: object) -> None:
        for lane in (self._reading, self._hashing, self._writing):
            lane.shutdown(wait=True, cancel_futures=True)

    def read(self, reader: Reader, where: TensorFile | Writer, offset: int, nbytes: int) -> Buffer:
        """A buffer that begins with bytes of a source, or of an image, once it is settled."""
        buffer = next(self._sources)
        buffer.settle()
        view = buffer.memory[:nbytes].data
        if isinstance(where, Writer):
            buffer.users.append(self._reading.submit(where.read_into, offset, view))
        else:
            reader.expect(where, offset, nbytes)
            buffer.users.append(self._reading.submit(reader.read_into, where, offset, view))
        return buffer

    def target(self) -> Buffer:
        """A buffer that nobody uses, twice as large as a block."""
        buffer = next(self._targets)
        buffer.settle()
        return buffer

    def append(self, writer: Writer, piece: memoryview, buffer: Buffer | None) -> None:
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


def _ring(count: int, nbytes: int) -> Iterator[Buffer]:
    return itertools.cycle([Buffer(memory=np.empty(nbytes, np.uint8)) for _ in range(count)])
