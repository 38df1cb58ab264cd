"""Checkpoints: ``config.json`` and the headers of safetensors files, never the bytes of a tensor.

Nothing that a file claims is used before it is checked against the size of the file; messages give the claimed and the
actual number. Format of a safetensors file: 8 bytes little-endian length n, n bytes of JSON, then the data, which the
tensors cover without holes or overlap (https://github.com/huggingface/safetensors).
"""

import json
import math
import re
import struct
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from planner.errors import CheckpointError

MAX_CONFIG_BYTES = 16 << 20
MAX_HEADER_BYTES = 100_000_000
MAX_RANK = 64

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"

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
class Checkpoint:
    """A config and, unless it is a bare ``config.json``, the table of its tensors."""

    directory: Path
    """Of the tensor files; for a converted pickle, the cache directory."""
    config_file: Path
    config: dict[str, Any]
    config_bytes: bytes
    tensors: dict[str, TensorInfo] | None
    """None for a bare config: a file, or a directory without weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSummary:
    """One tensor as `scan` shows it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockSummary:
    """The tensors of one block: ``embed``, ``layer 3``, ``head``, ``draft``, or ``other``."""

    block: str
    num_tensors: int
    nbytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What `scan` shows of a checkpoint; blocks in the order of execution."""

    num_tensors: int
    nbytes: int
    dtypes: tuple[str, ...]
    blocks: tuple[BlockSummary, ...]
    tensors: tuple[TensorSummary, ...]


def read_checkpoint(path: Path, pickle_cache: Path | None = None) -> Checkpoint:
    """Read a checkpoint directory, or a bare config file.

    ``pickle_cache``: the directory into which a ``pytorch_model.bin`` is converted; without it a pickle is refused.
    """
    if path.is_dir():
        config_file = path / "config.json"
    elif path.suffix == ".json":
        config_file = path
    else:
        found = "a file" if path.exists() else "nothing"
        raise CheckpointError(f"{path}: found {found}, expected a checkpoint's directory or its config.json")
    config_bytes = _read_small(config_file)
    config = _load_json(config_bytes, str(config_file))
    if not isinstance(config, dict):
        raise CheckpointError(f"{config_file}: expected a JSON object")
    directory, tensors = (path, _read_tensors(path)) if path.is_dir() else (path.parent, None)
    if path.is_dir() and tensors is None:
        directory, tensors = _read_pickle(path, pickle_cache)
    return Checkpoint(
        directory=directory, config_file=config_file, config=config, config_bytes=config_bytes, tensors=tensors
    )


def read_header(file: Path, name: str | None = None) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, checked to cover its data exactly; ``name`` is what ``file`` becomes."""
    size = _file_size(file)
    with file.open("rb") as stream:
        header, start = _read_header_bytes(stream, file, size)
    fields = _load_json(header, f"{file}: header")
    if not isinstance(fields, dict):
        raise CheckpointError(f"{file}: header: expected a JSON object")
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{file}: header: __metadata__: expected an object of strings")
    tensors = {
        tensor: _tensor_info(entry, f"{file}: {tensor}", name or file.name, start) for tensor, entry in fields.items()
    }
    _check_cover(tensors, file, start, size)
    return tensors


def describe(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> Summary:
    """Summarise a table of name: (dtype, shape), from headers or derived by a family."""
    rows = [
        TensorSummary(name=name, dtype=dtype, shape=shape, nbytes=math.prod(shape) * DTYPE_BYTES[dtype])
        for name, (dtype, shape) in tensors.items()
    ]
    rows.sort(key=lambda row: (_block_key(_block(row.name)), row.name))
    names = dict.fromkeys(_block(row.name) for row in rows)
    blocks = {name: [row for row in rows if _block(row.name) == name] for name in names}
    return Summary(
        num_tensors=len(rows),
        nbytes=sum(row.nbytes for row in rows),
        dtypes=tuple(sorted({row.dtype for row in rows})),
        blocks=tuple(
            BlockSummary(block=name, num_tensors=len(own), nbytes=sum(row.nbytes for row in own))
            for name, own in blocks.items()
        ),
        tensors=tuple(rows),
    )


# Files


def _file_size(file: Path) -> int:
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file")
    return file.stat().st_size


def _read_small(file: Path) -> bytes:
    size = _file_size(file)
    if size > MAX_CONFIG_BYTES:
        raise CheckpointError(f"{file}: {size} bytes, expected at most {MAX_CONFIG_BYTES}")
    return file.read_bytes()


def _read_tensors(directory: Path) -> dict[str, TensorInfo] | None:
    single, index = directory / SINGLE, directory / INDEX
    if single.exists() and index.exists():
        raise CheckpointError(f"{directory}: found both {SINGLE} and {INDEX}, expected one of them: remove the other")
    if single.exists():
        return read_header(single)
    if index.exists():
        return _read_index(index)
    others = sorted(file.name for file in directory.glob("*.safetensors"))
    if others:
        raise CheckpointError(
            f"{directory}: found {', '.join(others)} without {INDEX}, "
            f"expected {SINGLE}, or an index that names the files"
        )
    return None


def _read_index(index: Path) -> dict[str, TensorInfo]:
    data = _load_json(_read_small(index), str(index))
    weight_map = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{index}: weight_map: expected an object from tensor names to file names")
    tensors: dict[str, TensorInfo] = {}
    for name in sorted(set(weight_map.values())):
        file = _inside(index, name)
        if not file.is_file():
            raise CheckpointError(f"{index}: weight_map: {name}: no such file in {index.parent}")
        shard = read_header(file, name)
        for tensor in shard:
            if weight_map.get(tensor) != name:
                raise CheckpointError(f"{file}: {tensor}: in the file, but {index.name} does not place it there")
        tensors |= shard
    for tensor, name in weight_map.items():
        if tensor not in tensors:
            raise CheckpointError(f"{index}: weight_map: {tensor}: not in {name}, where the index places it")
    return tensors


def _inside(index: Path, name: str) -> Path:
    """The file ``name`` beside the index; links may point into the directory, or into the blobs of a hub cache."""
    parts = PurePosixPath(name).parts
    if not parts or PurePosixPath(name).is_absolute() or ".." in parts or "\\" in name or "\0" in name:
        raise CheckpointError(
            f"{index}: weight_map: {name!r} is outside the checkpoint's directory, expected a file in it"
        )
    directory = index.parent.resolve()
    target = (directory / name).resolve()
    homes = [directory]
    if directory.parent.name == "snapshots":
        homes.append(directory.parent.parent / "blobs")
    if not any(target.is_relative_to(home) for home in homes):
        raise CheckpointError(
            f"{index}: weight_map: {name!r} is a link to {target}, outside the checkpoint's directory, "
            "expected a file in it"
        )
    return index.parent / name


# Headers


def _read_header_bytes(stream: BinaryIO, file: Path, size: int) -> tuple[bytes, int]:
    """The JSON of a header and the offset at which the data starts."""
    prefix = stream.read(8)
    if len(prefix) < 8:
        raise CheckpointError(f"{file}: truncated: {size} bytes, expected at least the 8 of the header's length")
    (length,) = struct.unpack("<Q", prefix)
    if length > MAX_HEADER_BYTES and prefix.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04")):
        raise CheckpointError(f"{file}: found a pickle, expected a safetensors file: {_HOW_TO_CONVERT}")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"{file}: header of {length} bytes claimed, expected at most {MAX_HEADER_BYTES}")
    if 8 + length > size:
        raise CheckpointError(
            f"{file}: truncated: header of {length} bytes claimed, but the file has {size} bytes in all"
        )
    header = stream.read(length)
    if len(header) != length or not header.startswith(b"{"):
        raise CheckpointError(f"{file}: header: starts with {header[:8]!r}, expected a JSON object")
    return header, 8 + length


def _tensor_info(entry: Any, path: str, file: str, start: int) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        found = ", ".join(entry) if isinstance(entry, dict) else repr(entry)
        raise CheckpointError(f"{path}: found {found}, expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise CheckpointError(f"{path}: dtype: found {dtype!r}, expected one of {', '.join(DTYPE_BYTES)}")
    if not _are_sizes(shape):
        raise CheckpointError(f"{path}: shape: found {shape!r}, expected at most {MAX_RANK} non-negative integers")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{path}: data_offsets: found {offsets!r}, expected [begin, end] with begin <= end")
    nbytes = math.prod(shape) * DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != nbytes:
        raise CheckpointError(
            f"{path}: {offsets[1] - offsets[0]} bytes claimed by data_offsets, "
            f"but {dtype} of shape {shape} has {nbytes}"
        )
    return TensorInfo(file=file, dtype=dtype, shape=tuple(shape), offset=start + offsets[0], nbytes=nbytes)


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


# JSON


def _load_json(data: bytes, where: str) -> Any:
    """Strict JSON: UTF-8, no duplicate names, no NaN or infinity."""

    def unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise CheckpointError(f"{where}: {key}: the name occurs twice")
            result[key] = value
        return result

    def refuse(constant: str) -> None:
        raise CheckpointError(f"{where}: found {constant}, which is not JSON")

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: not valid JSON: {error}") from error


# Pickles


_HOW_TO_CONVERT = "load it where you trust it and save it with safetensors (model.save_pretrained of transformers)"


def _read_pickle(directory: Path, cache: Path | None) -> tuple[Path, dict[str, TensorInfo] | None]:
    """The one pickle of an EAGLE head, converted; None if the directory holds no weights at all."""
    files = sorted(file.name for file in directory.glob("pytorch_model*.bin"))
    if not files:
        return directory, None
    if cache is None or files != [PICKLE]:
        raise CheckpointError(
            f"{directory}: found {', '.join(files)}, a pickle, expected {SINGLE} or {INDEX}: {_HOW_TO_CONVERT}"
        )
    return _convert_pickle(directory / PICKLE, cache)


def _convert_pickle(file: Path, cache: Path) -> tuple[Path, dict[str, TensorInfo]]:
    cache.mkdir(parents=True, exist_ok=True)
    # A process of its own, so that planning never imports torch; -P keeps this directory out of its module path.
    program = Path(__file__).with_name("pickled.py")
    command = [sys.executable, "-P", str(program), str(file.resolve()), str((cache / SINGLE).resolve())]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        reason = result.stderr.strip().rpartition("\n")[2] or f"exit status {result.returncode}"
        raise CheckpointError(f"{file}: cannot be read as a dictionary of tensors: {reason}")
    return cache, read_header(cache / SINGLE)


# Blocks by name, for people to read


_BLOCKS = (
    (re.compile(r"(?:^|\.)layers\.([0-9]+)\."), "layer"),
    (re.compile(r"(?:^|\.)embed_tokens\."), "embed"),
    (re.compile(r"^midlayer\.|^fc\.|^d2t$|^t2d$"), "draft"),
    (re.compile(r"(?:^|\.)lm_head\.|(?:^|\.)norm\."), "head"),
)


def _block(name: str) -> str:
    for pattern, block in _BLOCKS:
        match = pattern.search(name)
        if match:
            return f"layer {int(match[1])}" if block == "layer" else block
    return "other"


def _block_key(block: str) -> tuple[int, int]:
    kind, _, number = block.partition(" ")
    return ("embed", "layer", "draft", "head", "other").index(kind), int(number or 0)
