"""Read an image with several threads, hash it in order, and copy it to a GPU through a ring of pinned buffers.

    file ──preadv, several at a time──► ring of buffers ──in order──► BLAKE3
                                                        ──in order──► one stream ──► one allocation (image.slots)

A buffer is filled again only when the event of its copy is reached. The file is read, not mapped, so one that is
truncated meanwhile gives an error instead of a fault (SIGBUS). Only for hashing, and only where a lease guards the
file, it is mapped: all cores hash the page cache in place, in half of the processor's time.
"""

import contextlib
import mmap
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from plans import paging
from runtime.errors import ImageDamaged, ImageTruncated

CHUNK_BYTES = 8 << 20
"""Bytes that are read, hashed and copied at a time."""
READERS = min(8, os.cpu_count() or 1)
"""Threads that read."""
HASHERS = min(16, os.cpu_count() or 1)
"""Threads of each digest, its own ones: the shared ones of blake3.AUTO are gone in a forked process, which hangs."""
RING = READERS + 2
"""Buffers: one per reading thread, one that is hashed, and one that is copied."""
SLICE_BYTES = 32 << 20
"""Bytes of a mapping that are hashed at a time, a multiple of any page size; signals are handled between two slices."""


Chunk = NDArray[np.uint8]


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
    return _transfer(descriptor, 0, size_bytes, file, blake3(max_threads=HASHERS), _NoCopies())


def read(descriptor: int, offset: int, nbytes: int, file: Path) -> Chunk:
    """Return bytes of an open file; raise ImageTruncated or ImageDamaged."""
    chunk = np.empty(nbytes, np.uint8)
    _fill(chunk, descriptor, offset, file)
    return chunk


def upload(descriptor: int, start: int, size_bytes: int, file: Path, engine: CopyEngine, *, hashed: bool) -> str:
    """Copy an open file from ``start`` on; return the BLAKE3 of the whole file if ``hashed``, else an empty string.

    Raise ImageTruncated or ImageDamaged.
    """
    digest = blake3(max_threads=HASHERS) if hashed else None
    if digest is not None:
        digest.update(os.pread(descriptor, start, 0))
    return _transfer(descriptor, start, size_bytes, file, digest, engine)


def _transfer(descriptor: int, start: int, stop: int, file: Path, digest: Any, engine: CopyEngine) -> str:
    ring = [engine.buffer(min(CHUNK_BYTES, stop - start)) for _ in range(RING)]
    events: list[Any] = [None] * RING
    reading: deque[tuple[int, int, Chunk, Future[None]]] = deque()

    def pass_on() -> None:
        """Hash and copy the oldest chunk, once it is read."""
        turn, offset, chunk, read = reading.popleft()
        read.result()
        if digest is not None:
            digest.update(chunk.data)
        events[turn] = engine.copy(offset - start, chunk)

    with _threads() as pool:
        for number, offset in enumerate(range(start, stop, CHUNK_BYTES)):
            if len(reading) == READERS:
                pass_on()
            turn = number % RING
            if events[turn] is not None:
                engine.wait(events[turn])
            chunk = ring[turn][: min(CHUNK_BYTES, stop - offset)]
            paging.will_read(descriptor, offset, len(chunk))
            reading.append((turn, offset, chunk, pool.submit(_fill, chunk, descriptor, offset, file)))
        while reading:
            pass_on()
    engine.finish()
    return digest.hexdigest() if digest is not None else ""


@contextlib.contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(READERS, thread_name_prefix="read")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


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
