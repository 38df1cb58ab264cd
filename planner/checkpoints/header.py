"""Read the header of a checkpoint's file of tensors, and remember the state of the file when it was read.

The rules are those of ``plans.safetensors_header``; a file that breaks one is a CheckpointError, with exit code 2.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from planner.errors import CheckpointError
from plans.files import open_inside
from plans.safetensors_header import MAX_HEADER_BYTES, PREFIX_BYTES, HeaderError, header_length, parse_header

HOW_TO_CONVERT = "load it where you trust it and save it with safetensors (model.save_pretrained of transformers)"
_PICKLE_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x04")
"""First bytes of what torch.save writes: a zip archive, or a bare pickle of protocol 2 or 4."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorInfo:
    """The position of a tensor's bytes in a checkpoint."""

    file: str
    """Name of the file inside the checkpoint's directory."""
    dtype: str
    """Name in the header: ``BF16``, ``F32``, ``I64``."""
    shape: tuple[int, ...]
    offset: int
    """Offset of the first byte, from the start of the file."""
    nbytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Stamp:
    """The part of a file's status that changes whenever its content does."""

    size_bytes: int
    modified_ns: int
    changed_ns: int
    """Time of the inode's last change (ctime), which no program can set, unlike ``modified_ns``."""
    inode: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorFile:
    """A file of tensors, as it was when its header was read."""

    path: Path
    original: Path
    """The pickle from which ``path`` was converted; otherwise ``path``."""
    stamp: Stamp
    """Stamp of ``original``."""
    header_sha256: str
    """SHA-256 of the header's length and text."""


def stamp(status: os.stat_result) -> Stamp:
    """Return the stamp of a file's status."""
    return Stamp(
        size_bytes=status.st_size, modified_ns=status.st_mtime_ns, changed_ns=status.st_ctime_ns, inode=status.st_ino
    )


def read_header(
    file: Path, name: str | None = None, *, inside: Path | None = None
) -> tuple[dict[str, TensorInfo], TensorFile]:
    """Return the tensors of one safetensors file, by name; raise CheckpointError.

    ``name``: name of the file in the tensors' ``TensorInfo.file``; default: that of ``file``. ``inside``: the directory
    that no link may lead out of; default: that of the file.
    """
    directory = inside or file.parent
    try:
        with os.fdopen(open_inside(directory, str(file.relative_to(directory))), "rb") as stream:
            return read_stream(stream, file, name)
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: no such file") from error
    except OSError as error:
        raise CheckpointError(f"{file}: cannot read: {error.strerror}") from error


def read_stream(stream: BinaryIO, file: Path, name: str | None = None) -> tuple[dict[str, TensorInfo], TensorFile]:
    """Return the tensors of an open file, which messages call ``file``; raise CheckpointError."""
    state = stamp(os.fstat(stream.fileno()))
    prefix = stream.read(PREFIX_BYTES)
    if prefix.startswith(_PICKLE_MAGIC) and int.from_bytes(prefix, "little") > MAX_HEADER_BYTES:
        raise CheckpointError(f"{file}: found a pickle, expected a safetensors file: {HOW_TO_CONVERT}")
    try:
        text = stream.read(header_length(prefix, state.size_bytes))
        header = parse_header(text, state.size_bytes)
    except HeaderError as error:
        raise CheckpointError(f"{file}: header: {error}") from error
    tensors = {
        tensor.name: TensorInfo(
            file=name or file.name,
            dtype=tensor.dtype,
            shape=tensor.shape,
            offset=header.data_start + tensor.offset,
            nbytes=tensor.nbytes,
        )
        for tensor in header.tensors
    }
    digest = hashlib.sha256(prefix + text).hexdigest()
    return tensors, TensorFile(path=file, original=file, stamp=state, header_sha256=digest)
