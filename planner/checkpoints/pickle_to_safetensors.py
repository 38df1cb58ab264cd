"""A program of its own: a pickled dictionary of tensors becomes a safetensors file. Never imported by the planner.

``python -P pickle_to_safetensors.py SOURCE TARGET``. Only tensors are read (``weights_only``): no code of the file is
run. They are
written one at a time, and what reads the result distrusts it as it does any other file. ``--header`` in front of both
writes the header alone, to a file that has room for the rest and does not take it.
"""

import json
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}
PIECE_BYTES = 16 << 20
MOST_TIMES = 4
"""As many times its own bytes may a file have in tensors that share memory; more is a bomb."""


def convert(source: Path, target: Path, *, header_only: bool = False) -> None:
    """Write the tensors of ``source`` to ``target``; end with a message where they are no tensors."""
    data = _load(source)
    if not isinstance(data, dict):
        sys.exit(f"found {type(data).__name__}, expected a dictionary of tensors")
    for name, value in data.items():
        _check(name, value)
    total = sum(value.numel() * value.element_size() for value in data.values())
    if total > MOST_TIMES * source.stat().st_size:
        sys.exit(f"tensors of {total} bytes in a file of {source.stat().st_size}, expected {MOST_TIMES} times at most")
    try:
        _save(data, target, header_only)
    except OSError as error:
        sys.exit(f"cannot write {target}: {error.strerror}")


def _load(source: Path) -> Any:
    """Only the newer, zipped format can be mapped; the older one is read whole."""
    try:
        return torch.load(source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source) or None)
    except pickle.UnpicklingError:
        sys.exit("it is no pickle, or holds something else than tensors, which is never loaded")
    except Exception as error:  # a damaged archive fails in as many ways as there are lines in its reader
        sys.exit(str(error).partition(". ")[0].partition("\n")[0] or type(error).__name__)


def _check(name: Any, value: Any) -> None:
    if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.layout != torch.strided:
        sys.exit(f"{name!r}: found {type(value).__name__}, expected a dense tensor with a name")
    if value.dtype not in DTYPES or value.is_quantized or value.is_meta:
        sys.exit(f"{name!r}: found a tensor of {value.dtype}, expected one of {', '.join(DTYPES.values())}")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        sys.exit(f"{name!r}: {tuple(value.shape)} in {value.untyped_storage().nbytes()} bytes: it repeats its elements")


def _save(tensors: dict[str, torch.Tensor], target: Path, header_only: bool) -> None:
    """As safetensors' own writer lays them out, but without all of them in memory at once."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in order:
        value = tensors[name]
        end = offset + value.numel() * value.element_size()
        header[name] = {"dtype": DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        if header_only:
            stream.truncate(8 + len(text) + offset)
            return
        for name in order:
            raw = tensors[name].detach().contiguous().reshape(-1).view(torch.uint8)
            for start in range(0, raw.numel(), PIECE_BYTES):
                stream.write(raw[start : start + PIECE_BYTES].numpy().data)


if __name__ == "__main__":
    convert(Path(sys.argv[-2]), Path(sys.argv[-1]), header_only=sys.argv[1] == "--header")
