"""Headers of safetensors files: the one strict parser, and the one writer, for checkpoints and for images.

    8 bytes         length bytes                          the data
    length n (u64)  {"__metadata__": ..., "name": ...}    tensors, one after the other, to the end of the file

The format is https://github.com/huggingface/safetensors. The rules here are stricter than those of its library, where
the last of two tensors of one name wins and a header may have any depth and 100 MB:

- the header has at most ``MAX_HEADER_BYTES``, fits into the file, begins with ``{`` and is strict JSON;
- a tensor has a printable name that is no path, a known dtype, at most ``MAX_RANK`` sizes, and the bytes that they say;
- the tensors cover the data without hole, overlap or rest.

Nothing is allocated by what a file claims before the claim is checked. Messages begin inside the header and name no
file: the planner reports them as a damaged checkpoint (exit code 2), the runtime as a damaged image (exit code 4).
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from plans import strict_json
from plans.dtypes import HEADER_BYTES
from plans.format import MAX_NAME, shown
from plans.strict_json import JsonError

PREFIX_BYTES = 8
MAX_HEADER_BYTES = 8 << 20
"""Some 70 000 tensors in one file. A longer header is refused unread, so that a refusal takes no time or memory."""
MAX_RANK = 64
METADATA = "__metadata__"

_FIELDS = {"dtype", "shape", "data_offsets"}
_PATH = re.compile(r"^[/\\]|(?:^|[/\\])\.\.(?:[/\\]|$)")


class HeaderError(ValueError):
    """A header that breaks a rule; the message says where in the header, what was found and what was expected."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorEntry:
    """One tensor as a header declares it."""

    name: str
    dtype: str
    """Name in the header: ``BF16``, ``F32``, ``I64``."""
    shape: tuple[int, ...]
    offset: int
    """Offset of the first byte, from the start of the data."""
    nbytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """A checked header."""

    data_start: int
    """Offset of the data in the file, in bytes."""
    metadata: Mapping[str, str] | None
    """None where the header has no ``__metadata__``."""
    tensors: list[TensorEntry]
    """Tensors in the order of the header, which need not be that of their data."""


# ---- parsing ----


def header_length(prefix: bytes, file_bytes: int) -> int:
    """Return the length of the header's text, from the first 8 bytes of a file; raise HeaderError."""
    if len(prefix) < PREFIX_BYTES:
        raise HeaderError(f"truncated: {file_bytes} bytes, expected at least the {PREFIX_BYTES} of the header's length")
    length = int.from_bytes(prefix[:PREFIX_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise HeaderError(f"claims {length} bytes, expected at most {MAX_HEADER_BYTES}")
    if PREFIX_BYTES + length > file_bytes:
        raise HeaderError(f"claims {length} bytes, but the file has {file_bytes} bytes in all: it is truncated")
    return length


def parse_header(text: bytes, file_bytes: int) -> Header:
    """Check the text of a header against all rules, for a file of ``file_bytes``; raise HeaderError."""
    if not text.startswith(b"{"):
        raise HeaderError(f"starts with {text[:8]!r}, expected a JSON object")
    try:
        fields = strict_json.loads(text)
    except JsonError as error:
        raise HeaderError(str(error)) from error
    metadata = _metadata(fields)
    tensors = []
    while fields:  # from the end, so that the parsed text shrinks as the table grows
        name, entry = fields.popitem()
        _check_name(name)
        tensors.append(_tensor(name, entry))
    tensors.reverse()
    data_start = PREFIX_BYTES + len(text)
    _check_cover(tensors, data_start, file_bytes)
    return Header(data_start=data_start, metadata=metadata, tensors=tensors)


def _metadata(fields: dict[str, Any]) -> dict[str, str] | None:
    """Take ``__metadata__`` out of the parsed header."""
    if METADATA not in fields:
        return None
    metadata = fields.pop(METADATA)
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise HeaderError(f"{METADATA}: expected an object of strings")
    return metadata


def _check_name(name: str) -> None:
    """Raise HeaderError for a name that could be taken for a path: names go into messages, tables and look-ups."""
    if not name.isprintable() or not 0 < len(name) <= MAX_NAME or _PATH.search(name):
        raise HeaderError(
            f"{shown(name)}: expected the name of a tensor: 1 to {MAX_NAME} printable characters, and no path"
        )


def _tensor(name: str, entry: Any) -> TensorEntry:
    def refuse(problem: str) -> NoReturn:
        raise HeaderError(f"{name}: {problem}")

    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        fields = ", ".join(map(shown, entry)) if isinstance(entry, dict) else repr(entry)
        refuse(f"found {_short(fields)}, expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in HEADER_BYTES:
        refuse(f"dtype: found {_short(repr(dtype))}, expected one of {', '.join(HEADER_BYTES)}")
    if not _are_sizes(shape):
        refuse(f"shape: found {_short(repr(shape))}, expected at most {MAX_RANK} non-negative integers")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        refuse(f"data_offsets: found {_short(repr(offsets))}, expected [begin, end] with begin <= end")
    nbytes = math.prod(shape) * HEADER_BYTES[dtype]
    if offsets[1] - offsets[0] != nbytes:
        refuse(f"{offsets[1] - offsets[0]} bytes claimed by data_offsets, but {dtype} of shape {shape} has {nbytes}")
    return TensorEntry(name=name, dtype=dtype, shape=tuple(shape), offset=offsets[0], nbytes=nbytes)


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:197]}..."


def _are_sizes(data: Any) -> bool:
    return (
        isinstance(data, list)
        and len(data) <= MAX_RANK
        and all(type(item) is int and 0 <= item < 1 << 63 for item in data)
    )


def _check_cover(tensors: Iterable[TensorEntry], data_start: int, file_bytes: int) -> None:
    """Raise HeaderError unless the tensors follow each other without hole or overlap, up to the end of the file."""
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset != end:
            problem = "a hole" if tensor.offset > end else "an overlap"
            raise HeaderError(
                f"{tensor.name}: {problem}: starts at byte {tensor.offset} of the data, "
                f"expected {end}, the end of the tensor before it"
            )
        end += tensor.nbytes
    claimed = data_start + end
    if claimed > file_bytes:
        raise HeaderError(f"truncated: claims {claimed} bytes in all, the file has {file_bytes}")
    if claimed < file_bytes:
        raise HeaderError(
            f"{file_bytes - claimed} bytes after the last tensor: claims {claimed} bytes in all, "
            f"the file has {file_bytes}"
        )


# ---- writing ----


def encode_header(tensors: Iterable[TensorEntry], metadata: Mapping[str, str], alignment_bytes: int) -> bytes:
    """Return length and text of a header, padded with spaces so that the data starts at a multiple of the alignment."""
    table: dict[str, object] = {METADATA: dict(metadata)}
    for tensor in tensors:
        offsets = [tensor.offset, tensor.offset + tensor.nbytes]
        table[tensor.name] = {"data_offsets": offsets, "dtype": tensor.dtype, "shape": list(tensor.shape)}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(PREFIX_BYTES + len(text)) % alignment_bytes)
    return len(text).to_bytes(PREFIX_BYTES, "little") + text
