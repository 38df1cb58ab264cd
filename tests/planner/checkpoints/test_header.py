"""Headers of checkpoint files: any malformed header is a CheckpointError, in bounded time and memory."""

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from planner.checkpoints.header import read_header
from planner.errors import CheckpointError
from tests.malformed_headers import MALFORMED


def tensor(dtype: str = "F32", shape: tuple[int, ...] = (2, 3), begin: int = 0, end: int = 24) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def write_raw(file: Path, header: bytes, data: bytes = b"", length: int | None = None) -> None:
    file.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)


def write(file: Path, header: dict[str, Any], data: bytes) -> None:
    write_raw(file, json.dumps(header).encode(), data)


def refused(action: Callable[[], Any]) -> str:
    with pytest.raises(CheckpointError) as caught:
        action()
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_offsets_are_absolute_and_no_data_is_read(tmp_path: Path) -> None:
    values = {"b": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3), "a": torch.arange(4), "e": torch.zeros(0, 3)}
    save_file(values, tmp_path / "x.safetensors", metadata={"format": "pt"})
    tensors, _ = read_header(tmp_path / "x.safetensors")
    assert {name: (info.dtype, info.shape) for name, info in tensors.items()} == {
        "a": ("I64", (4,)),
        "b": ("BF16", (2, 3)),
        "e": ("F32", (0, 3)),
    }
    content = (tmp_path / "x.safetensors").read_bytes()
    info = tensors["a"]
    assert content[info.offset : info.offset + info.nbytes] == struct.pack("<4q", 0, 1, 2, 3)


RAW: list[tuple[str, bytes, bytes, int | None, str]] = [
    (
        "header of 1000 bytes",
        b"{}",
        b"",
        1000,
        "claims 1000 bytes, but the file has 10 bytes in all: it is truncated",
    ),
    (
        "enormous header",
        b"{}",
        b"",
        1 << 40,
        "claims 1099511627776 bytes, expected at most 8388608",
    ),
    ("no object", b"[]", b"", None, "starts with b'[]', expected a JSON object"),
    ("leading space", b" {}", b"", None, "starts with b' {}', expected a JSON object"),
    ("two names", b'{"a": 1, "a": 2}', b"", None, "a: the name occurs twice"),
    (
        "not UTF-8",
        b'{"\xff": 1}',
        b"",
        None,
        "not valid JSON: 'utf-8' codec can't decode byte 0xff in position 2: invalid start byte",
    ),
    ("NaN", b'{"a": NaN}', b"", None, "found NaN, which is not JSON"),
    (
        "metadata",
        b'{"__metadata__": {"a": 1}}',
        b"",
        None,
        "__metadata__: expected an object of strings",
    ),
]


@pytest.mark.parametrize(("header", "data", "length", "message"), [row[1:] for row in RAW], ids=[row[0] for row in RAW])
def test_an_invalid_header_is_refused(
    tmp_path: Path, header: bytes, data: bytes, length: int | None, message: str
) -> None:
    file = tmp_path / "x.safetensors"
    write_raw(file, header, data, length)
    assert refused(lambda: read_header(file)) == f"{file}: header: {message}"


TENSORS: list[tuple[str, dict[str, Any], int, str]] = [
    (
        "dtype",
        {"a": tensor("Q4")},
        24,
        "a: dtype: found 'Q4', expected one of BOOL, U8, I8, F8_E5M2, F8_E4M3, I16, U16, F16, BF16, "
        "I32, U32, F32, I64, U64, F64",
    ),
    (
        "extra key",
        {"a": tensor() | {"x": 1}},
        24,
        "a: found dtype, shape, data_offsets, x, expected dtype, shape and data_offsets",
    ),
    (
        "negative",
        {"a": tensor(shape=(-2, -3))},
        24,
        "a: shape: found [-2, -3], expected at most 64 non-negative integers",
    ),
    ("boolean", {"a": tensor(shape=(True,))}, 24, "a: shape: found [True], expected at most 64 non-negative integers"),
    (
        "offsets",
        {"a": tensor(begin=24, end=0)},
        24,
        "a: data_offsets: found [24, 0], expected [begin, end] with begin <= end",
    ),
    ("size", {"a": tensor(end=20)}, 20, "a: 20 bytes claimed by data_offsets, but F32 of shape [2, 3] has 24"),
    ("truncated", {"a": tensor()}, 20, "truncated: claims {} bytes in all, the file has {}"),
    (
        "trailing",
        {"a": tensor()},
        28,
        "4 bytes after the last tensor: claims {} bytes in all, the file has {}",
    ),
    (
        "hole",
        {"a": tensor(), "b": tensor(begin=28, end=52)},
        52,
        "b: a hole: starts at byte 28 of the data, expected 24, the end of the tensor before it",
    ),
    (
        "overlap",
        {"a": tensor(), "b": tensor(begin=20, end=44)},
        44,
        "b: an overlap: starts at byte 20 of the data, expected 24, the end of the tensor before it",
    ),
    (
        "hole in front",
        {"a": tensor(begin=8, end=32)},
        32,
        "a: a hole: starts at byte 8 of the data, expected 0, the end of the tensor before it",
    ),
]


@pytest.mark.parametrize(("header", "size", "message"), [row[1:] for row in TENSORS], ids=[row[0] for row in TENSORS])
def test_inconsistent_tensor_entries_are_refused(
    tmp_path: Path, header: dict[str, Any], size: int, message: str
) -> None:
    file = tmp_path / "x.safetensors"
    write(file, header, bytes(size))
    total = file.stat().st_size
    expected = message.format(total - size + 24, total) if "{}" in message else message
    assert refused(lambda: read_header(file)) == f"{file}: header: {expected}"


def test_every_truncation_of_a_file_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(1)}, tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    for size in range(len(content)):
        (tmp_path / "part").write_bytes(content[:size])
        refused(lambda: read_header(tmp_path / "part"))
    (tmp_path / "part").write_bytes(content)
    assert set(read_header(tmp_path / "part")[0]) == {"a", "b"}


# Malformed headers, more than sixty


READ = """
import sys, time
from pathlib import Path
from planner.errors import CheckpointError
from planner.checkpoints.header import read_header

def peak_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

before = peak_bytes()
for file in sorted(Path(sys.argv[1]).iterdir()):
    began = time.process_time()
    try:
        read_header(file)
    except CheckpointError as error:
        message = str(error)
        assert message.startswith(str(file)) and message.isprintable() and len(message) < 2000, (file.name, message)
    else:
        sys.exit(f"{file.name}: accepted")
    seconds = time.process_time() - began
    if seconds > 1 or peak_bytes() - before > 100_000_000:
        sys.exit(f"{file.name}: {seconds:.2f} s of the processor, {(peak_bytes() - before) / 1e6:.0f} MB in all")
print("refused")
"""


def test_malformed_headers_are_refused_within_a_second_and_100_mb(tmp_path: Path) -> None:
    assert len(MALFORMED) >= 60
    for number, (name, write) in enumerate(MALFORMED.items()):
        write(tmp_path / f"{number:03} {''.join(c if c.isalnum() else '-' for c in name)}")
    result = subprocess.run([sys.executable, "-c", READ, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "refused\n"), result.stderr
