"""Read bytes of checkpoints while images are compiled; a file that is no longer the one that was planned is refused.

Each file is opened once. When it is opened, and again when all is read, its stamp must be the one that it had when its
header was read.
"""

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from planner.checkpoints.header import TensorFile, stamp
from planner.errors import CheckpointError, ValuesError
from planner.images.casts import STORAGE, Array
from planner.images.pieces import Checkpoints, row_width
from planner.quantized import Stored
from planner.quantized.codes import Read
from planner.quantized.column_order import Sorting, sorted_columns
from planner.quantized.proofs import require_proofs
from plans import paging
from plans.files import open_regular
from plans.ranges import Range, Ranges

BITS = {**STORAGE, "I8": "i1", "U8": "u1", "F8_E4M3": "u1"}
"""Numpy dtype in which ``Reader.array`` holds values of each dtype."""
BYTES = {dtype: np.dtype(bits).itemsize for dtype, bits in BITS.items()}
MOST_ARRAYS = 4
"""Whole tensors that are kept: those of one quantized layer."""
MOST_SORTINGS = 1024
"""Orders of columns that are kept: those of all experts of a layer, at most some tens of MiB."""


class Reader:
    """Reads bytes of the checkpoints' files, from any thread; files are opened by one thread."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._open_files: dict[Path, int] = {}
        self._stack = contextlib.ExitStack()
        self._kept: dict[Path, tuple[int, memoryview]] = {}
        self._arrays: dict[tuple[str, str], Array] = {}
        self._sortings: dict[tuple[str, str, Ranges | None], Sorting | None] = {}
        self._sorts = threading.Lock()
        self.read_bytes = 0

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *unused: object) -> None:
        self._stack.close()

    def open(self, source: str, name: str) -> TensorFile:
        """Return a checkpoint's file, open until the reader is closed; raise CheckpointError if it changed."""
        file = self._checkpoints[source].files[name]
        if file.path not in self._open_files:
            try:
                descriptor = open_regular(file.path)
            except OSError as error:
                raise CheckpointError(f"{file.path}: cannot open: {error.strerror}") from error
            self._stack.callback(os.close, descriptor)
            _check_stamp(file, descriptor)
            self._open_files[file.path] = descriptor
        return file

    def open_all(self, source: str, names: Iterable[str]) -> None:
        """Open the files of tensors of a checkpoint; raise CheckpointError if one changed."""
        tensors = self._checkpoints[source].tensors
        assert tensors is not None, "a checkpoint without weights is refused before"
        for name in names:
            self.open(source, tensors[name].file)

    def expect(self, file: TensorFile, offset: int, nbytes: int) -> None:
        """Tell the kernel that these bytes of an open file are read soon."""
        paging.will_read(self._open_files[file.path], offset, nbytes)

    def keep(self, file: TensorFile, offset: int, nbytes: int) -> memoryview:
        """Return bytes of an open file; ``read_into`` copies what is within them, so that they are read once.

        Of each file the last such bytes are kept. Raise CheckpointError.
        """
        content = memoryview(bytearray(nbytes))
        self.read_into(file, offset, content)
        self._kept[file.path] = offset, content
        return content

    def read_into(self, file: TensorFile, offset: int, block: memoryview) -> None:
        """Fill ``block`` with the bytes of an open file from ``offset`` on; raise CheckpointError."""
        start, content = self._kept.get(file.path, (0, memoryview(b"")))
        if start <= offset and offset + len(block) <= start + len(content):
            block[:] = content[offset - start : offset - start + len(block)]
            return
        descriptor, done = self._open_files[file.path], 0
        while done < len(block):
            try:
                count = os.preadv(descriptor, [block[done:]], offset + done)
            except OSError as error:
                raise CheckpointError(f"{file.path}: cannot read at byte {offset + done}: {error.strerror}") from error
            if count == 0:
                raise CheckpointError(
                    f"{file.path}: ends at byte {offset + done}, within a tensor: the file was truncated"
                )
            done += count
        self.read_bytes += done

    def read_rows_into(self, file: TensorFile, offset: int, block: memoryview, count: int, stride: int) -> None:
        """Fill ``block`` with ``count`` runs of bytes, each beginning ``stride`` bytes after the one before.

        Raise CheckpointError.
        """
        nbytes = len(block) // count
        if nbytes == stride:
            self.read_into(file, offset, block)
            return
        for row in range(count):
            self.read_into(file, offset + row * stride, block[row * nbytes : (row + 1) * nbytes])

    def array(self, source: str, name: str, rows: Range | None) -> Array:
        """Return rows of a tensor of a checkpoint, or all of it, which is kept for a while; raise CheckpointError.

        Rows are counted through all matrices of a tensor [rows, columns]. Floats of 8 bits and bfloat16 are their bits.
        """
        checkpoint = self._checkpoints[source]
        assert checkpoint.tensors is not None, "a checkpoint without weights is refused before"
        tensor = checkpoint.tensors[name]
        if rows is None and (source, name) in self._arrays:
            return self._arrays[source, name]
        first, last = rows or (0, 1)
        row_bytes = tensor.nbytes if rows is None else row_width(tensor) * BYTES[tensor.dtype]
        content = np.empty((last - first) * row_bytes, np.uint8)
        self.read_into(checkpoint.files[tensor.file], tensor.offset + first * row_bytes, content.data)
        shape = tensor.shape if rows is None else (last - first, row_width(tensor))
        array = content.view(BITS[tensor.dtype]).reshape(shape)
        if rows is None:
            if len(self._arrays) >= MOST_ARRAYS:
                del self._arrays[next(iter(self._arrays))]
            self._arrays[source, name] = array
        return array

    def arrays_of(self, source: str) -> Read:
        """Return ``array`` of one checkpoint."""
        return lambda name, rows: self.array(source, name, rows)

    @contextlib.contextmanager
    def naming(self, source: str) -> Iterator[None]:
        """Put the directory of a checkpoint before the message of a ValuesError."""
        try:
            yield
        except ValuesError as error:
            raise CheckpointError(f"{self._checkpoints[source].directory}: {error}") from error

    def sorting(self, source: str, stored: Stored) -> Sorting | None:
        """Return the order of a layer's columns, None of the checkpoint's; raise CheckpointError.

        It is kept as all parts of the layer need it, which is proven to be as the config says when it is made.
        """
        if not stored.sorts and not stored.proofs:
            return None
        key = source, stored.module, stored.share
        with self._sorts:
            if key not in self._sortings:
                if len(self._sortings) >= MOST_SORTINGS:
                    del self._sortings[next(iter(self._sortings))]
                read = self.arrays_of(source)
                with self.naming(source):
                    require_proofs(stored, read)
                    self._sortings[key] = sorted_columns(stored, read) if stored.sorts else None
            return self._sortings[key]

    def check_unchanged(self) -> None:
        """Raise CheckpointError for an open file that is not, or no longer, the one whose header was read."""
        for checkpoint in self._checkpoints.values():
            for file in checkpoint.files.values():
                descriptor = self._open_files.get(file.path)
                if descriptor is not None:
                    _check_stamp(file, descriptor)


def _check_stamp(file: TensorFile, descriptor: int) -> None:
    """Raise CheckpointError unless the name and the descriptor both lead to the file whose header was read."""
    try:
        stamps = [stamp(file.original.stat())]
        if file.original == file.path:
            stamps.append(stamp(os.fstat(descriptor)))
    except OSError as error:
        raise CheckpointError(f"{file.original}: vanished while it was compiled: {error.strerror}") from error
    if any(current != file.stamp for current in stamps):
        raise CheckpointError(f"{file.original}: changed while it was compiled: compile again")
