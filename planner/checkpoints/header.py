"""Headers of safetensors files: the table of tensors, or a refusal, before anything is sized by what a file claims.

8 bytes of length n, little endian; n bytes of JSON; then the data, which the tensors cover without holes or overlap
(https://github.com/huggingface/safetensors). Messages give the claimed and the actual number. Stricter than the
library: there the last of two tensors of one name wins, and a header may have any depth and 100 MB.
"""

import hashlib
import json
import math
import os
import re
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from planner.errors import CheckpointError

MAX_HEADER_BYTES = 8 << 20
"""Some 70 000 tensors in one file; what claims more is refused unread, so that a refusal takes no time or memory."""
MAX_RANK = 64
MAX_NAME = 1024
_SMALL = 1 << 20
_BYTES_PER_BRACKET, _BYTES_PER_COMMA = 20, 6
"""Of JSON beyond ``_SMALL``: a tensor takes 60 bytes at least, with three brackets and five commas."""

HOW_TO_CONVERT = "load it where you trust it and save it with safetensors (model.save_pretrained of transformers)"

_DTYPES_OF_SIZE = {
    1: ("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3"),
    2: ("I16", "U16", "F16", "BF16"),
    4: ("I32", "U32", "F32"),
    8: ("I64", "U64", "F64"),
}
DTYPE_BYTES: Mapping[str, int] = {name: size for size, names in _DTYPES_OF_SIZE.items() for name in names}
"""Bytes of one element, by the name that a header uses."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorInfo:
    """Where a tensor's bytes are."""

    file: str
    """Name inside the checkpoint's directory."""
    dtype: str
    """As the header spells it: ``BF16``, ``F32``, ``I64``."""
    shape: tuple[int, ...]
    offset: int
    """Of the first byte, from the start of the file."""
    nbytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Stamp:
    """What changes when a file does."""

    size_bytes: int
    modified_ns: int
    changed_ns: int
    """Of the inode: no program can set it, as it can the other."""
    inode: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorFile:
    """A file of tensors, as it was when its header was read."""

    path: Path
    original: Path
    """What it was made from, where a pickle was converted; else ``path``."""
    stamp: Stamp
    """Of ``original``."""
    header_sha256: str


def stamp(status: os.stat_result) -> Stamp:
    """The stamp of a file's status."""
    return Stamp(
        size_bytes=status.st_size, modified_ns=status.st_mtime_ns, changed_ns=status.st_ctime_ns, inode=status.st_ino
    )


def read_header(file: Path, name: str | None = None) -> tuple[dict[str, TensorInfo], TensorFile]:
    """The tensors of one safetensors file, checked to cover its data exactly; ``name`` is what ``file`` becomes."""
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file")
    try:
        with file.open("rb") as stream:
            return read_stream(stream, file, name)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot read: {error.strerror}") from error


def read_stream(stream: BinaryIO, file: Path, name: str | None = None) -> tuple[dict[str, TensorInfo], TensorFile]:
    """As ``read_header``, of an open file; messages call it ``file``."""
    found = stamp(os.fstat(stream.fileno()))
    header = _read_header_bytes(stream, file, found.size_bytes)
    digest = hashlib.sha256(struct.pack("<Q", len(header)) + header).hexdigest()
    check_brackets(header, f"{file}: header")
    start = 8 + len(header)
    fields = load_json(header, f"{file}: header")
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{file}: header: __metadata__: expected an object of strings")
    tensors = {}
    while fields:
        tensor, entry = fields.popitem()
        _check_name(tensor, file)
        tensors[tensor] = _tensor_info(entry, file, tensor, name or file.name, start)
    _check_cover(tensors, file, start, found.size_bytes)
    return tensors, TensorFile(path=file, original=file, stamp=found, header_sha256=digest)


def load_json(data: bytes, where: str) -> Any:
    """Strict JSON: UTF-8, no duplicate names, no NaN or infinity; raise CheckpointError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise CheckpointError(f"{where}: {_shown(twice)}: the name occurs twice")
        return result

    def refuse(constant: str) -> None:
        raise CheckpointError(f"{where}: found {constant}, which is not JSON")

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: not valid JSON: {error}") from error


def _read_header_bytes(stream: BinaryIO, file: Path, size: int) -> bytes:
    """The JSON of a header."""
    prefix = stream.read(8)
    if len(prefix) < 8:
        raise CheckpointError(f"{file}: truncated: {size} bytes, expected at least the 8 of the header's length")
    (length,) = struct.unpack("<Q", prefix)
    if length > MAX_HEADER_BYTES and prefix.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04")):
        raise CheckpointError(f"{file}: found a pickle, expected a safetensors file: {HOW_TO_CONVERT}")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"{file}: header of {length} bytes claimed, expected at most {MAX_HEADER_BYTES}")
    if 8 + length > size:
        raise CheckpointError(
            f"{file}: truncated: header of {length} bytes claimed, but the file has {size} bytes in all"
        )
    header = stream.read(length)
    if len(header) != length or not header.startswith(b"{"):
        raise CheckpointError(f"{file}: header: starts with {header[:8]!r}, expected a JSON object")
    return header


def check_brackets(header: bytes, where: str) -> None:
    """Large JSON must be mostly names and numbers: brackets and escapes cost many times their bytes to parse."""
    if len(header) <= _SMALL:
        return
    brackets = header.count(b"{") + header.count(b"[") + header.count(b"\\")
    commas = header.count(b",")
    many = brackets * _BYTES_PER_BRACKET > len(header) or commas * _BYTES_PER_COMMA > len(header)
    if many or not header.isascii():
        raise CheckpointError(
            f"{where}: {len(header)} bytes with {brackets} brackets and escapes and {commas} commas, expected "
            f"ASCII, and of these at most one in {_BYTES_PER_BRACKET} and {_BYTES_PER_COMMA}: it is no table of tensors"
        )


def _check_name(name: str, file: Path) -> None:
    """Names go into messages, tables and lookups: one that could be taken for a path out of here is no name."""
    if not name.isprintable() or not 0 < len(name) <= MAX_NAME or _PATH.search(name):
        raise CheckpointError(
            f"{file}: header: {_shown(name)}: expected the name of a tensor: 1 to {MAX_NAME} printable characters, "
            "and no path"
        )


_PATH = re.compile(r"^[/\\]|(?:^|[/\\])\.\.(?:[/\\]|$)")


def _shown(name: str) -> str:
    return name if name.isprintable() and 0 < len(name) <= MAX_NAME else f"{name[:40]!r} of {len(name)} characters"


def _tensor_info(entry: Any, file: Path, tensor: str, name: str, start: int) -> TensorInfo:
    def refuse(problem: str) -> NoReturn:
        raise CheckpointError(f"{file}: {tensor}: {problem}")

    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        found = ", ".join(map(_shown, entry)) if isinstance(entry, dict) else repr(entry)
        refuse(f"found {_short(found)}, expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        refuse(f"dtype: found {_short(repr(dtype))}, expected one of {', '.join(DTYPE_BYTES)}")
    if not _are_sizes(shape):
        refuse(f"shape: found {_short(repr(shape))}, expected at most {MAX_RANK} non-negative integers")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        refuse(f"data_offsets: found {_short(repr(offsets))}, expected [begin, end] with begin <= end")
    nbytes = math.prod(shape) * DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != nbytes:
        refuse(f"{offsets[1] - offsets[0]} bytes claimed by data_offsets, but {dtype} of shape {shape} has {nbytes}")
    return TensorInfo(file=name, dtype=dtype, shape=tuple(shape), offset=start + offsets[0], nbytes=nbytes)


_FIELDS = {"dtype", "shape", "data_offsets"}


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:197]}..."


def _are_sizes(data: Any) -> bool:
    return (
        isinstance(data, list)
        and len(data) <= MAX_RANK
        and all(type(item) is int and 0 <= item < 1 << 63 for item in data)
    )


def _check_cover(tensors: Mapping[str, TensorInfo], file: Path, start: int, size: int) -> None:
    """The tensors follow each other without a hole or an overlap, up to the end of the file."""
    position = start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if info.offset != position:
            problem = "a hole" if info.offset > position else "an overlap"
            raise CheckpointError(
                f"{file}: {name}: {problem}: starts at byte {info.offset - start} of the data, "
                f"expected {position - start}, the end of the tensor before it"
            )
        position += info.nbytes
    if position > size:
        raise CheckpointError(f"{file}: truncated: the header claims {position} bytes in all, the file has {size}")
    if position < size:
        raise CheckpointError(
            f"{file}: {size - position} bytes after the last tensor: "
            f"the header claims {position} bytes in all, the file has {size}"
        )
