"""Read a checkpoint: ``config.json``, the index and the headers of its files, never the bytes of a tensor.

    config.json ─────────────────────────────────────────────────► config
    model.safetensors, or model.safetensors.index.json + shards ─► tensors: position of each one's bytes
    pytorch_model.bin (EAGLE heads only) ─ another process ──────► the same, of the file that it would be converted to

Everything that a file claims is checked; what is wrong raises CheckpointError (exit code 2).
"""

import dataclasses
import errno
import importlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from planner.checkpoints.formats import refuse_other_files
from planner.checkpoints.header import HOW_TO_CONVERT, TensorFile, TensorInfo, read_header, read_stream, stamp
from planner.errors import CheckpointError
from plans import strict_json
from plans.files import kind_of, read_inside, resolved_inside
from plans.format import quote
from plans.strict_json import JsonError

MAX_CONFIG_BYTES = 12 << 20
"""Largest ``config.json`` or index that is read."""

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
CONVERSION_S, CONVERSION_BYTES_PER_S = 120, 5 << 20
"""Longest wait for the conversion of a pickle: so many seconds, and so many bytes of the file per second."""
MOST_REASON = 300
_SHARD = re.compile(r"model-[0-9]+-of-[0-9]+\.safetensors")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@.+)?")
_SOURCES = Path(__file__).resolve().parents[2]
"""Directory of the packages ``planner`` and ``plans``."""


class _AbsentFileError(CheckpointError):
    """A file that a checkpoint must have, or that its index names, and that is not there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A config and, unless it is a bare ``config.json``, the table of its tensors."""

    directory: Path
    """Directory of the tensor files; of a converted pickle, that of the pickle."""
    config_file: Path
    config: dict[str, Any]
    config_bytes: bytes
    """Content of ``config_file``."""
    tensors: dict[str, TensorInfo] | None
    """Tensors by name; None for a bare config: a file, or a directory without weights."""
    files: dict[str, TensorFile]
    """Files of the tensors, by ``TensorInfo.file``."""


def located(path: Path) -> Path:
    """Return a path that exists as it is, and the directory in the Hugging Face cache for ``org/model[@revision]``.

    Raise CheckpointError, with the command that downloads it, for a name that is not in the cache.
    """
    if path.exists() or _HUB_NAME.fullmatch(str(path)) is None or path.suffix == ".json":
        return path
    directory: Path = importlib.import_module("planner.checkpoints.hub").snapshot(str(path))
    return directory


def read_checkpoint(path: Path, *, pickles: bool = False) -> Checkpoint:
    """Read a checkpoint directory, a bare config file, or a model of the Hugging Face cache; raise CheckpointError.

    ``pickles``: accept tensors in one ``pytorch_model.bin``, in which many EAGLE heads are published.
    """
    directory = located(path)
    try:
        return _read_checkpoint(directory, pickles)
    except _AbsentFileError as error:
        if directory == path:
            raise CheckpointError(str(error)) from error
        how_to_get = importlib.import_module("planner.checkpoints.hub").how_to_get(str(path))
        raise CheckpointError(f"{error}: {how_to_get}") from error


def _read_checkpoint(path: Path, pickles: bool) -> Checkpoint:
    if path.is_dir():
        if not (path / "config.json").exists():
            refuse_other_files(path)
        config_file = path / "config.json"
    elif path.suffix == ".json":
        config_file = path
    else:
        kind = kind_of(path) if path.exists() else "nothing"
        hint = ": GGUF is not read here" if path.suffix == ".gguf" else ""
        raise CheckpointError(f"{path}: found {kind}, expected a checkpoint's directory or its config.json{hint}")
    config_bytes = _read_small(config_file)
    config = _parse_json(config_bytes, config_file, constants=True)
    if not isinstance(config, dict):
        raise CheckpointError(f"{config_file}: expected a JSON object")
    tables = None
    if path.is_dir():
        tables = _read_tables(path) or _read_pickle(path, pickles)
    return Checkpoint(
        directory=path if path.is_dir() else path.parent,
        config_file=config_file,
        config=config,
        config_bytes=config_bytes,
        tensors=None if tables is None else tables[0],
        files={} if tables is None else tables[1],
    )


# ---- safetensors files ----

_Tables = tuple[dict[str, TensorInfo], dict[str, TensorFile]]
"""Tensors by name, and files by ``TensorInfo.file``."""


def _read_small(file: Path) -> bytes:
    try:
        return read_inside(file.parent, file.name, MAX_CONFIG_BYTES)
    except FileNotFoundError as error:
        raise _AbsentFileError(f"{file}: no such file") from error
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise CheckpointError(f"{file}: {error.strerror}") from error
        raise CheckpointError(f"{file}: cannot read: {error.strerror}") from error


def _parse_json(content: bytes, file: Path, *, constants: bool = False) -> Any:
    try:
        return strict_json.loads(content, constants=constants)
    except JsonError as error:
        raise CheckpointError(f"{file}: {error}") from error


def _read_tables(directory: Path) -> _Tables | None:
    """Read the headers of a directory's safetensors files; None if it has none."""
    single, index = directory / SINGLE, directory / INDEX
    if os.path.lexists(single) and os.path.lexists(index):
        raise CheckpointError(f"{directory}: found both {SINGLE} and {INDEX}, expected one of them: remove the other")
    if os.path.lexists(single):
        tensors, file = read_header(single)
        return tensors, {SINGLE: file}
    if os.path.lexists(index):
        return _read_index(index)
    if any(directory.glob("pytorch_model*.bin")):
        return None
    refuse_other_files(directory)
    others = sorted(file.name for file in directory.glob("*.safetensors"))
    if others:
        raise CheckpointError(
            f"{directory}: found {', '.join(others)} without {INDEX}, "
            f"expected {SINGLE}, or an index that names the files"
        )
    return None


def _read_index(index: Path) -> _Tables:
    data = _parse_json(_read_small(index), index)
    weight_map = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{index}: weight_map: expected an object from tensor names to file names")
    tensors: dict[str, TensorInfo] = {}
    files: dict[str, TensorFile] = {}
    names = sorted(set(weight_map.values()))
    _refuse_surplus(index, names)
    for name in names:
        file = _inside(index, name)
        shard, files[name] = read_header(file, name, inside=index.parent)
        for tensor in shard:
            if weight_map.get(tensor) != name:
                raise CheckpointError(f"{file}: {tensor}: in the file, but {index.name} does not place it there")
        tensors |= shard
    for tensor, name in weight_map.items():
        if tensor not in tensors:
            raise CheckpointError(f"{index}: weight_map: {tensor}: not in {name}, where the index places it")
    return tensors, files


def _refuse_surplus(index: Path, names: list[str]) -> None:
    """Raise CheckpointError for a shard that the index does not name: one of the two is of another checkpoint."""
    shards = sorted(file.name for file in index.parent.glob("*.safetensors") if _SHARD.fullmatch(file.name))
    if surplus := [name for name in shards if name not in names]:
        raise CheckpointError(
            f"{index}: weight_map: does not name {', '.join(surplus)}, which {'is' if len(surplus) == 1 else 'are'} "
            "beside it: take away what is of another checkpoint"
        )


def _inside(index: Path, name: str) -> Path:
    """Return the path of a shard; raise CheckpointError where it is not in the checkpoint, or in its subdirectory."""
    parts = PurePosixPath(name).parts
    if not parts or PurePosixPath(name).is_absolute() or ".." in parts or "\\" in name or "\0" in name:
        raise CheckpointError(
            f"{index}: weight_map: {name!r} is outside the checkpoint's directory, expected a file in it"
        )
    try:
        resolved_inside(index.parent, name)
    except FileNotFoundError as error:
        raise _AbsentFileError(f"{index}: weight_map: {name}: no such file in {index.parent}") from error
    except OSError as error:
        raise CheckpointError(f"{index}: weight_map: {name}: cannot read: {error.strerror}") from error
    return index.parent / name


# ---- pickles ----


def with_tensors(checkpoint: Checkpoint, cache: Path) -> Checkpoint:
    """Return the checkpoint with its pickle, if it has one, converted to a safetensors file in a new directory.

    ``cache``: the directory to make. Raises CheckpointError if the pickle is no longer what was read.
    """
    if PICKLE not in checkpoint.files:
        return checkpoint
    before = checkpoint.files[PICKLE]
    cache.mkdir()
    _convert_pickle(before.original, cache / SINGLE)
    tensors, file = read_header(cache / SINGLE, PICKLE)
    if file.header_sha256 != before.header_sha256:
        raise CheckpointError(f"{before.original}: changed while it was compiled: compile again")
    files = {PICKLE: dataclasses.replace(file, original=before.original, stamp=before.stamp)}
    return dataclasses.replace(checkpoint, tensors=tensors, files=files)


def _read_pickle(directory: Path, accepted: bool) -> _Tables | None:
    """Read the tensors of the one pickle of an EAGLE head; None if the directory holds no weights at all.

    The header of the converted file is written to a temporary file without a name, which ends with the process, and is
    read like any other.
    """
    files = sorted(file.name for file in directory.glob("pytorch_model*.bin"))
    if not files:
        return None
    if not accepted or files != [PICKLE]:
        raise CheckpointError(
            f"{directory}: found {', '.join(files)}, a pickle, expected {SINGLE} or {INDEX}: {HOW_TO_CONVERT}"
        )
    pickle = directory / PICKLE
    try:
        before = stamp(resolved_inside(directory, PICKLE).stat())
    except OSError as error:
        raise CheckpointError(f"{pickle}: cannot read: {error.strerror}") from error
    try:
        with tempfile.TemporaryFile() as stream:
            _convert_pickle(pickle, Path(f"/dev/fd/{stream.fileno()}"), "--header", descriptors=(stream.fileno(),))
            stream.seek(0)
            tensors, file = read_stream(stream, pickle)
    except OSError as error:
        raise CheckpointError(f"{pickle}: cannot be read into a temporary file: {error.strerror or error}") from error
    return tensors, {PICKLE: dataclasses.replace(file, stamp=before)}


def _convert_pickle(file: Path, target: Path, *options: str, descriptors: tuple[int, ...] = ()) -> None:
    """Run ``pickle_to_safetensors`` in a process of its own, so that planning never imports torch.

    ``descriptors``: open files that the process inherits. Raises CheckpointError with the reason of a failure.
    """
    program = Path(__file__).with_name("pickle_to_safetensors.py")
    # -P keeps the program's own directory out of its module path; it imports ``plans`` from where this process has it.
    command = [sys.executable, "-P", str(program), *options, str(file.resolve()), str(target)]
    paths = [str(_SOURCES), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    most_s = CONVERSION_S + file.stat().st_size / CONVERSION_BYTES_PER_S
    try:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            pass_fds=descriptors,
            env=environment,
            timeout=most_s,
        )
    except subprocess.TimeoutExpired as error:
        raise CheckpointError(f"{file}: cannot be read as a dictionary of tensors in {most_s:.0f} s") from error
    if result.returncode != 0:
        raise CheckpointError(f"{file}: cannot be read as a dictionary of tensors: {_reason(result)}")


def _reason(result: subprocess.CompletedProcess[str]) -> str:
    """Return why the conversion of a pickle failed: a limit of its process, or the last line that it wrote."""
    if result.returncode == -signal.SIGXCPU:
        return "it takes more processor time than its size explains"
    last = result.stderr.strip().rpartition("\n")[2]
    return quote(last) if len(last) > MOST_REASON else last or f"exit status {result.returncode}"
