"""Convert a pickled dictionary of tensors to a safetensors file. A program of its own, never imported by the planner.

    python pickle_to_safetensors.py [--header] SOURCE TARGET

Only tensors are unpickled (``weights_only``), so no code in the file is run; memory and processor time are limited in
proportion to the file, since a pickle of a few bytes may ask for any amount. The result is checked by its reader like
any other file. ``--header`` writes the header alone and leaves the data as a hole, which takes no room on disk.

The writer of the safetensors library is not used: it refuses tensors that share memory or are transposed, so all of
them would have to be copied at once, and it cannot write a header without the data.
"""

import os
import pickle
import resource
import sys
import zipfile
from pathlib import Path
from typing import Any

from plans.deferred import unused_deferred
from plans.safetensors_header import TensorEntry, encode_header

with unused_deferred():
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
"""Bytes of a tensor that are written at a time."""
MAX_EXPANSION = 4
"""Greatest ratio of the tensors' bytes to the file's: tensors may share memory, but not without limit."""
DATA_ALIGNMENT_BYTES = 8
SPARE_BYTES = 1 << 30
"""Address space beside that of this program and the tensors."""
SPARE_CPU_S = 30
CPU_BYTES_PER_S = 20 << 20
"""Slowest reading and writing that is awaited, in bytes of the file per second of processor time."""
MOST_PICKLE_BYTES = 64 << 20
"""Largest ``data.pkl`` of an archive: it has names and shapes, which for a head are a few kB."""

TOO_MUCH = "takes more memory than a dictionary of tensors in a file of its size"


def convert(source: Path, target: Path, *, header_only: bool = False) -> None:
    """Write the tensors of ``source`` to ``target``; exit with a message if it holds anything else."""
    tensors = _load(source)
    if not isinstance(tensors, dict):
        sys.exit(f"found {type(tensors).__name__}, expected a dictionary of tensors")
    for name, value in tensors.items():
        _check(name, value)
    total = sum(_nbytes(value) for value in tensors.values())
    file_bytes = source.stat().st_size
    if total > MAX_EXPANSION * file_bytes:
        sys.exit(f"tensors of {total} bytes in a file of {file_bytes}, expected {MAX_EXPANSION} times at most")
    try:
        _save(tensors, target, header_only)
    except OSError as error:
        sys.exit(f"cannot write {target}: {error.strerror}")


def limit(source: Path) -> None:
    """Limit memory and processor time of this process by the size of ``source``."""
    file_bytes = source.stat().st_size
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    memory = pages * os.sysconf("SC_PAGE_SIZE") + (1 + MAX_EXPANSION) * file_bytes + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(usage.ru_utime + usage.ru_stime) + SPARE_CPU_S + file_bytes // CPU_BYTES_PER_S
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _load(source: Path) -> Any:
    """Unpickle tensors; a zip archive is mapped, the older format can only be read whole."""
    try:
        zipped = zipfile.is_zipfile(source)
        if zipped:
            _check_archive(source)
        return torch.load(source, map_location="cpu", weights_only=True, mmap=zipped or None)
    except (MemoryError, RecursionError) as error:
        sys.exit(f"{TOO_MUCH}: {type(error).__name__}")
    except pickle.UnpicklingError:
        sys.exit("it is no pickle, or holds something else than tensors, which is never loaded")
    except Exception as error:  # torch raises errors of many classes for a damaged archive
        if "can't allocate memory" in str(error):  # a RuntimeError of torch's allocator
            sys.exit(f"{TOO_MUCH}, of which its reader has {resource.getrlimit(resource.RLIMIT_AS)[0]} bytes")
        sys.exit(str(error).partition(". ")[0].partition("\n")[0] or type(error).__name__)


def _check_archive(source: Path) -> None:
    """Exit for an archive with compressed members, which torch never writes, or with a large pickle."""
    with zipfile.ZipFile(source) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                sys.exit(f"{member.filename!r}: compressed, expected an archive as torch writes it")
            if member.filename.endswith("data.pkl") and member.file_size > MOST_PICKLE_BYTES:
                sys.exit(f"{member.filename!r}: {member.file_size} bytes, expected at most {MOST_PICKLE_BYTES}")


def _check(name: Any, value: Any) -> None:
    if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.layout != torch.strided:
        sys.exit(f"{name!r}: found {type(value).__name__}, expected a dense tensor with a name")
    if value.dtype not in DTYPES or value.is_quantized or value.is_meta:
        sys.exit(f"{name!r}: found a tensor of {value.dtype}, expected one of {', '.join(DTYPES.values())}")
    if _nbytes(value) > value.untyped_storage().nbytes():
        sys.exit(f"{name!r}: {tuple(value.shape)} in {value.untyped_storage().nbytes()} bytes: it repeats its elements")


def _nbytes(value: torch.Tensor) -> int:
    return value.numel() * value.element_size()


def _save(tensors: dict[str, torch.Tensor], target: Path, header_only: bool) -> None:
    """Write tensors by falling alignment and then by name, one piece at a time."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    entries, data_bytes = [], 0
    for name in order:
        value = tensors[name]
        entry = TensorEntry(
            name=name, dtype=DTYPES[value.dtype], shape=tuple(value.shape), offset=data_bytes, nbytes=_nbytes(value)
        )
        entries.append(entry)
        data_bytes += entry.nbytes
    header = encode_header(entries, {"format": "pt"}, DATA_ALIGNMENT_BYTES)
    with target.open("wb") as stream:
        stream.write(header)
        if header_only:
            stream.truncate(len(header) + data_bytes)
            return
        for name in order:
            raw = tensors[name].detach().contiguous().reshape(-1).view(torch.uint8)
            for start in range(0, raw.numel(), PIECE_BYTES):
                stream.write(raw[start : start + PIECE_BYTES].numpy().data)


if __name__ == "__main__":
    limit(Path(sys.argv[-2]))
    convert(Path(sys.argv[-2]), Path(sys.argv[-1]), header_only=sys.argv[1] == "--header")
