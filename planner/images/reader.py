"""The files of checkpoints while they are compiled: each opened once, to stay as it was when its header was read."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from planner.checkpoints.checkpoint import Checkpoint
from planner.checkpoints.header import TensorFile, TensorInfo, stamp
from planner.errors import CheckpointError
from plans import paging
from plans.slots import Part

Checkpoints = Mapping[str, Checkpoint]
"""By the name that a part calls them."""


def locate(checkpoints: Checkpoints, part: Part) -> tuple[TensorInfo, TensorFile]:
    """Where a part's tensor is."""
    checkpoint = checkpoints[part.source]
    assert checkpoint.tensors is not None
    info = checkpoint.tensors[part.tensor]
    return info, checkpoint.files[info.file]


class Reader:
    """Reads bytes of the checkpoints' tensors, from any thread."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._open_files: dict[Path, int] = {}
        self._stack = contextlib.ExitStack()
        self.read_bytes = 0

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *unused: object) -> None:
        self._stack.close()

    def locate(self, part: Part) -> tuple[TensorInfo, TensorFile]:
        """Where a part's tensor is; the file is open from now on."""
        info, file = locate(self._checkpoints, part)
        self._open(file)
        return info, file

    def expect(self, file: TensorFile, offset: int, nbytes: int) -> None:
        """Let the disk begin to read what will be asked for."""
        paging.will_read(self._open_files[file.path], offset, nbytes)

    def read_into(self, file: TensorFile, offset: int, block: memoryview) -> None:
        """Fill ``block`` with the bytes from ``offset`` of a located file; raise CheckpointError."""
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

    def check_unchanged(self) -> None:
        """Raise CheckpointError where a file is not the one whose header was read, or changed since."""
        for checkpoint in self._checkpoints.values():
            for file in checkpoint.files.values():
                descriptor = self._open_files.get(file.path)
                if descriptor is not None:
                    _check_stamp(file, descriptor)

    def _open(self, file: TensorFile) -> None:
        if file.path in self._open_files:
            return
        try:
            descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointError(f"{file.path}: cannot open: {error.strerror}") from error
        self._stack.callback(os.close, descriptor)
        _check_stamp(file, descriptor)
        self._open_files[file.path] = descriptor


def _check_stamp(file: TensorFile, descriptor: int) -> None:
    """Both what is open and what now has its name must be the file whose header was read."""
    try:
        found = [stamp(file.original.stat())]
        if file.original == file.path:
            found.append(stamp(os.fstat(descriptor)))
    except OSError as error:
        raise CheckpointError(f"{file.original}: vanished while it was compiled: {error.strerror}") from error
    if any(now != file.stamp for now in found):
        raise CheckpointError(f"{file.original}: changed while it was compiled: compile again")
