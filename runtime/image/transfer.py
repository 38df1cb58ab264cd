"""Read an image with several threads, hash it in order, and copy it to a GPU through a ring of pinned buffers.

    file ──preadv, several at a time──► ring of buffers ──in order──► BLAKE3, on a thread of its own
                                                        ──in order──► one stream ──► one allocation (image.slots)

A buffer is filled again only when it is hashed and the event of its copy is reached. Processes of one host that load at
once share its threads; what was not in the page cache before may be dropped behind the reader.

The file is read, not mapped, so one that is truncated meanwhile gives an error instead of a fault (SIGBUS). Only for
hashing, and only where a lease guards the file, it is mapped: all cores hash the page cache in place, in half of the
processor's time.
"""

import contextlib
import mmap
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from plans import paging
from runtime.errors import ImageDamaged, ImageTruncated

COPY_BYTES = 32 << 20
"""Bytes that are read, hashed and copied to a GPU at a time: 2 MiB for each of 16 threads that hash."""
HASH_BYTES = 8 << 20
"""Bytes that are read and only hashed at a time: they are still in a cache of the processor."""
READERS = min(8, os.cpu_count() or 1)
"""Threads of a host that read."""
HASHERS = min(16, os.cpu_count() or 1)
"""Threads of a host that hash. Each digest has its own: the shared ones of blake3.AUTO are gone in a forked process,
which hangs."""
BEHIND = 3
"""Buffers beside those that are read into: one that is hashed, one that is copied, and one that waits for either."""
SLICE_BYTES = 32 << 20
"""Bytes of a mapping that are hashed at a time, a multiple of any page size; signals are handled between two slices."""


Chunk = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """What the processes of a host share that load images at once."""

    processes: int = 1
    keeps_pages: bool = True
    """What is read stays in the page cache; False: only what was there before."""

    @property
    def readers(self) -> int:
        """Threads of one process that read."""
        return max(1, READERS // self.processes)

    @property
    def hashers(self) -> int:
        """Threads of one process that hash."""
        return max(1, HASHERS // self.processes)


class CopyEngine(Protocol):
    """Copies chunks to their destination in the order of the calls, possibly asynchronously."""

    def buffer(self, nbytes: int) -> Chunk:
        """Return memory to read into, uint8 [nbytes]."""

    def copy(self, offset: int, chunk: Chunk) -> Any:
        """Begin to copy to an offset of the destination; return an event, after which ``chunk`` may be overwritten."""

    def wait(self, event: Any) -> None:
        """Wait for an event."""

    def finish(self) -> None:
        """Wait for all copies."""


class _NoCopies:
    """Copies nothing, for bytes that are only hashed."""

    def buffer(self, nbytes: int) -> Chunk:
        return np.empty(nbytes, np.uint8)

    def copy(self, offset: int, chunk: Chunk) -> None:
        pass

    def wait(self, event: None) -> None:
        pass

    def finish(self) -> None:
        pass


def hash_mapped(descriptor: int, size_bytes: int) -> str:
    """Return the BLAKE3 of an open file of this size by mapping it; a lease must keep others from truncating it."""
    digest = blake3(max_threads=HASHERS)
    mapping = mmap.mmap(descriptor, size_bytes, access=mmap.ACCESS_READ)
    view = memoryview(mapping)
    for start in range(0, size_bytes, SLICE_BYTES):
        piece = view[start : start + SLICE_BYTES]
        paging.will_read(descriptor, start + SLICE_BYTES, SLICE_BYTES)
        digest.update(piece)
        mapping.madvise(mmap.MADV_DONTNEED, start, len(piece))  # not read again: it need not count as memory
    return digest.hexdigest()


def hash_file(descriptor: int, size_bytes: int, file: Path) -> str:
    """Return the BLAKE3 of an open file of this size by reading it; raise ImageTruncated or ImageDamaged."""
    pieces = range(0, size_bytes, HASH_BYTES)
    return _transfer(descriptor, pieces, file, blake3(max_threads=HASHERS), _NoCopies(), Host())


def read(descriptor: int, offset: int, nbytes: int, file: Path) -> Chunk:
    """Return bytes of an open file; raise ImageTruncated or ImageDamaged."""
    chunk = np.empty(nbytes, np.uint8)
    _fill(chunk, descriptor, offset, file)
    return chunk


def upload(descriptor: int, data: tuple[int, int], file: Path, engine: CopyEngine, host: Host, *, hashed: bool) -> str:
    """Copy bytes ``data`` of an open file, up to its end; return the BLAKE3 of the whole file if ``hashed``, else "".

    Raise ImageTruncated or ImageDamaged.
    """
    digest = blake3(max_threads=host.hashers) if hashed else None
    if digest is not None:
        digest.update(os.pread(descriptor, data[0], 0))
    return _transfer(descriptor, range(*data, COPY_BYTES), file, digest, engine, host)


def _transfer(descriptor: int, pieces: range, file: Path, digest: Any, engine: CopyEngine, host: Host) -> str:
    start, stop, step = pieces.start, pieces.stop, pieces.step
    ring = [engine.buffer(min(step, stop - start)) for _ in range(host.readers + BEHIND)]
    copies: list[Any] = [None] * len(ring)
    hashes: list[Future[Any] | None] = [None] * len(ring)
    reading: deque[tuple[int, int, Chunk, Future[None]]] = deque()

    def pass_on() -> None:
        """Begin to hash and to copy the oldest chunk, once it is read."""
        turn, offset, chunk, read = reading.popleft()
        read.result()
        if digest is not None:
            hashes[turn] = hasher.submit(digest.update, chunk.data)
        copies[turn] = engine.copy(offset - start, chunk)

    with _threads(host.readers, "read") as readers, _threads(1, "hash") as hasher:
        for number, offset in enumerate(pieces):
            if len(reading) == host.readers:
                pass_on()
            turn = number % len(ring)
            if (hashing := hashes[turn]) is not None:
                hashing.result()
            if copies[turn] is not None:
                engine.wait(copies[turn])
            chunk = ring[turn][: min(step, stop - offset)]
            # read-ahead beyond a chunk does not reach the last byte of the next one
            kept = host.keeps_pages or paging.is_cached(descriptor, offset + len(chunk) - 1)
            paging.will_read(descriptor, offset, len(chunk))
            read_chunk = _fill if kept else _fill_once
            reading.append((turn, offset, chunk, readers.submit(read_chunk, chunk, descriptor, offset, file)))
        while reading:
            pass_on()
        for last in hashes:
            if last is not None:
                last.result()
    engine.finish()
    return digest.hexdigest() if digest is not None else ""


@contextlib.contextmanager
def _threads(count: int, name: str) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(count, thread_name_prefix=name)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _fill_once(chunk: Chunk, descriptor: int, offset: int, file: Path) -> None:
    """Read a chunk that is not to stay in the page cache; raise ImageTruncated or ImageDamaged."""
    _fill(chunk, descriptor, offset, file)
    paging.forget(descriptor, offset, len(chunk))


def _fill(chunk: Chunk, descriptor: int, offset: int, file: Path) -> None:
    """Read a chunk; raise ImageTruncated or ImageDamaged."""
    view, done = chunk.data, 0
    while done < len(view):
        try:
            count = os.preadv(descriptor, [view[done:]], offset + done)
        except OSError as error:
            raise ImageDamaged(f"{file}: cannot read at byte {offset + done}: {error.strerror}") from error
        if count == 0:
            raise ImageTruncated(f"{file}: ends at byte {offset + done}: it was truncated while it was read")
        done += count
