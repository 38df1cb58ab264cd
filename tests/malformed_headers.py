"""Malformed safetensors files, one per broken rule, as the bytes of a header or of a whole file."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

Write = Callable[[Path], None]


def raw(header: bytes, data: bytes = b"", length: int | None = None) -> Write:
    """Return a writer of a file with a header, claimed to have ``length`` bytes, and data."""
    content = struct.pack("<Q", len(header) if length is None else length) + header + data
    return lambda file: file.write_bytes(content) and None  # type: ignore[func-returns-value]


def whole(content: bytes) -> Write:
    return lambda file: file.write_bytes(content) and None  # type: ignore[func-returns-value]


def sparse(prefix: bytes, size: int) -> Write:
    """Return a writer of a sparse file of ``size`` bytes that begins with ``prefix``."""

    def write(file: Path) -> None:
        with file.open("wb") as stream:
            stream.write(prefix)
            stream.truncate(size)

    return write


def tensor(dtype: Any = "F32", shape: Any = (2, 3), offsets: Any = (0, 24)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def table(entries: Any, size: int = 24) -> Write:
    return raw(json.dumps(entries).encode(), bytes(size))


def one(**changes: Any) -> Write:
    return table({"a": tensor(**changes)})


def text(entry: str, size: int = 24) -> Write:
    """Return a writer of one tensor whose entry is given as text."""
    return raw(f'{{"a":{entry}}}'.encode(), bytes(size))


GOOD = '{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}'
HEADER = f'{{"a":{GOOD}}}'.encode()


def entry(shape: str = "[2,3]", offsets: str = "[0,24]", dtype: str = '"F32"') -> str:
    return f'{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}'


def many(count: int, last: str) -> bytes:
    """Return a header of many empty tensors and a last entry."""
    rows = [f'"model.layers.{i}.weight":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(count)]
    return f"{{{','.join(rows)},{last}}}".encode()


MALFORMED: dict[str, Write] = {
    # the length
    "empty file": whole(b""),
    "seven bytes": whole(bytes(7)),
    "length only": whole(struct.pack("<Q", 2)),
    "length 0": raw(b"", b"", 0),
    "length 0 with data": raw(b"", bytes(24), 0),
    "length 1": raw(b"{", b"", 1),
    "length beyond the file": raw(HEADER, bytes(24), 1000),
    "length one too long": raw(HEADER, b"", len(HEADER) + 1),
    "length one too short": raw(HEADER, bytes(24), len(HEADER) - 1),
    "length into the data": raw(HEADER, bytes(24), len(HEADER) + 8),
    "length over 100 MB": raw(HEADER, bytes(24), 100_000_001),
    "length over 100 MB, and there": sparse(struct.pack("<Q", 100_000_001) + b"{", 200_000_000),
    "length of 99 MB, and there": sparse(struct.pack("<Q", 99_000_000) + b"{", 200_000_000),
    "length 2^32": raw(HEADER, bytes(24), 1 << 32),
    "length 2^63": raw(HEADER, bytes(24), 1 << 63),
    "length 2^64 - 1": raw(HEADER, bytes(24), (1 << 64) - 1),
    "length big-endian": whole(struct.pack(">Q", len(HEADER)) + HEADER + bytes(24)),
    # the text
    "not JSON": raw(b"{this is no JSON}"),
    "NULs": raw(bytes(64)),
    "JSON, then NULs": raw(HEADER + bytes(8), bytes(24)),
    "JSON, then more JSON": raw(HEADER + b"{}", bytes(24)),
    "JSON without its end": raw(HEADER[:-1], bytes(24)),
    "bad UTF-8": raw(b'{"\xff\xfe":' + GOOD.encode() + b"}", bytes(24)),
    "bad UTF-8 in metadata": raw(b'{"__metadata__":{"a":"\xc3\x28"},"a":' + GOOD.encode() + b"}", bytes(24)),
    "overlong UTF-8": raw(b'{"\xc0\xaf":' + GOOD.encode() + b"}", bytes(24)),
    "UTF-16": raw(HEADER.decode().encode("utf-16"), bytes(24)),
    "byte order mark": raw(b"\xef\xbb\xbf" + HEADER, bytes(24)),
    "leading space": raw(b" " + HEADER, bytes(24)),
    "control character in a name": raw(b'{"a\x01":' + GOOD.encode() + b"}", bytes(24)),
    "list": raw(b"[]"),
    "null": raw(b"null"),
    "NaN": text(entry(shape="[NaN]")),
    "Infinity": text(entry(offsets="[0,Infinity]")),
    "comment": raw(b"{/* */}"),
    "trailing comma": raw(HEADER[:-1] + b",}", bytes(24)),
    "deep lists": raw(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    "deep objects": raw(b'{"a":' * 200_000 + b"1" + b"}" * 200_000),
    "deep and without end": raw(b'{"a":' + b"[" * 8_000_000),
    "8 MB of empty lists": raw(b'{"a":[' + b"[]," * 2_600_000 + b"[]]}"),
    "8 MB of empty objects": raw(b'{"a":[' + b"{}," * 2_600_000 + b"{}]}"),
    "8 MB of escapes": raw(b'{"a":"' + b"\\u4e00" * 1_300_000 + b'"}'),
    "8 MB of wide characters": raw(b'{"a":"' + "\U0001f600".encode() * 2_000_000 + b'"}'),
    "8 MB of zeros": raw(b'{"a":[' + b"0," * 4_000_000 + b"0]}"),
    "8 MB of tensors, the last one wrong": raw(many(100_000, f'"z":{entry(dtype="1")}')),
    "a number of 10000 digits": text(entry(offsets=f"[0,{'9' * 10_000}]")),
    "a number of 8 million digits": text(entry(offsets=f"[0,{'9' * 8_000_000}]")),
    # names
    "duplicate names": raw(f'{{"a":{GOOD},"a":{GOOD}}}'.encode(), bytes(24)),
    "duplicate names, differently escaped": raw(f'{{"a":{GOOD},"\\u0061":{GOOD}}}'.encode(), bytes(24)),
    "duplicate keys of a tensor": text('{"dtype":"F32","dtype":"F32","shape":[2,3],"data_offsets":[0,24]}'),
    "duplicate metadata": raw(f'{{"__metadata__":{{}},"__metadata__":{{}},"a":{GOOD}}}'.encode(), bytes(24)),
    "empty name": table({"": tensor()}),
    "name ../": table({"../../etc/passwd": tensor()}),
    "name with .. inside": table({"model/../../x": tensor()}),
    "name with ..\\": table({"..\\x": tensor()}),
    "absolute name": table({"/etc/passwd": tensor()}),
    "name with NUL": table({"a\0b": tensor()}),
    "name with a newline": table({"a\nb": tensor()}),
    "name of a lone surrogate": raw(b'{"\\ud800":' + GOOD.encode() + b"}", bytes(24)),
    "name of 100 kB": table({"a" * 100_000: tensor()}),
    # metadata
    "metadata is a list": table({"__metadata__": [], "a": tensor()}),
    "metadata of numbers": table({"__metadata__": {"a": 1}, "a": tensor()}),
    "metadata of objects": table({"__metadata__": {"a": {}}, "a": tensor()}),
    # entries
    "entry is a number": table({"a": 1}),
    "entry is null": table({"a": None}),
    "entry is a list": table({"a": ["F32", [2, 3], [0, 24]]}),
    "no dtype": table({"a": {"shape": [2, 3], "data_offsets": [0, 24]}}),
    "no shape": table({"a": {"dtype": "F32", "data_offsets": [0, 24]}}),
    "no offsets": table({"a": {"dtype": "F32", "shape": [2, 3]}}),
    "surplus key": table({"a": tensor() | {"stride": [3, 1]}}),
    "unprintable key": text('{"dtype":"F32","sha\\u0000pe":[2,3],"data_offsets":[0,24]}'),
    "unknown dtype": one(dtype="Q4_K"),
    "dtype in small letters": one(dtype="f32"),
    "dtype is a number": one(dtype=4),
    "dtype is null": one(dtype=None),
    "dtype is a list": one(dtype=["F32"]),
    "shape is a number": one(shape=6),
    "shape is a string": one(shape="2,3"),
    "negative shape": one(shape=[-2, -3]),
    "float shape": text(entry(shape="[2.0,3]")),
    "boolean shape": text(entry(shape="[true,6]")),
    "exponent in a shape": text(entry(shape="[6e0]")),
    "null in a shape": text(entry(shape="[6,null]")),
    "shape overflows 64 bits": one(shape=[1 << 32, 1 << 32]),
    "shape overflows to the right size": one(shape=[(1 << 62) + 6], offsets=[0, 24]),
    "shape with a size of 2^64": one(shape=[1 << 64]),
    "rank 2000": one(shape=[1] * 1994 + [2, 3]),
    "rank 2000 of 2^62": one(shape=[1 << 62] * 2000),
    "rank 1000000": one(shape=[1] * 1_000_000),
    "offsets are a number": one(offsets=24),
    "one offset": one(offsets=[0]),
    "three offsets": one(offsets=[0, 12, 24]),
    "negative offset": one(offsets=[-24, 0]),
    "float offsets": text(entry(offsets="[0.0,24.0]")),
    "offsets as strings": one(offsets=["0", "24"]),
    "offsets reversed": one(offsets=[24, 0]),
    "offset of 2^64": one(offsets=[0, 1 << 64]),
    "offsets for fewer bytes": one(offsets=[0, 20]),
    "offsets for more bytes": one(offsets=[0, 28]),
    # the data
    "offsets beyond the file": one(offsets=[1000, 1024]),
    "overlap": table({"a": tensor(), "b": tensor(offsets=[20, 44])}, 44),
    "the same bytes twice": table({"a": tensor(), "b": tensor()}, 24),
    "one inside another": table({"a": tensor(shape=[12], offsets=[0, 48]), "b": tensor(offsets=[8, 32])}, 48),
    "hole": table({"a": tensor(), "b": tensor(offsets=[28, 52])}, 52),
    "hole in front": one(offsets=[8, 32]),
    "data truncated": table({"a": tensor()}, 23),
    "no data": table({"a": tensor()}, 0),
    "trailing byte": table({"a": tensor()}, 25),
    "data without tensors": raw(b"{}", bytes(24)),
    "empty tensor far away": table({"a": tensor(), "b": tensor(shape=[0], offsets=[1000, 1000])}),
    # other things
    "zip": whole(b"PK\x03\x04" + bytes(100)),
    "pickle": whole(b"\x80\x04\x95" + bytes(100)),
    "gguf": whole(b"GGUF\x03\0\0\0" + bytes(100)),
    "text": whole(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
}
