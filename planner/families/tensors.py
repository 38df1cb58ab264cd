"""Compare the tensors that a config implies with those that the headers of a checkpoint declare."""

import dataclasses
import hashlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from planner.checkpoints.checkpoint import Checkpoint
from planner.checkpoints.header import TensorInfo
from planner.errors import CheckpointError
from planner.families.records import Columns, Reading, Roles, Source
from planner.quantized import Stored
from plans.dtypes import HEADER_NAMES

FLOATS = frozenset(HEADER_NAMES.values())
"""Dtypes of weights that are read; ``d2t``, a table of token ids, is I64."""


def check_tensors(checkpoint: Checkpoint, tensors: Mapping[str, TensorInfo], reading: Reading) -> None:
    """Raise CheckpointError with the first tensor that is missing, surplus, or of another shape or dtype."""
    derived = {source.name: source for source in reading.roles.values() if source.stored is None}
    where = checkpoint.config_file.parent
    coded = _check_coded(where, tensors, reading)
    for name, source in derived.items():
        if name not in tensors:
            raise CheckpointError(f"{where}: {name}: missing, expected shape {list(source.shape)} by config.json")
    for name, info in tensors.items():
        if name in coded:
            continue
        if name not in derived and name.startswith(reading.ignored_prefixes):
            continue
        shape = derived[name].shape if name in derived else reading.ignored.get(name)
        if shape is None:
            raise CheckpointError(
                f"{where}: {name}: surplus, of shape {list(info.shape)}: {_surplus_reason(name, derived)}"
            )
        if info.shape != shape:
            raise CheckpointError(
                f"{where}: {name}: found shape {list(info.shape)}, expected {list(shape)} by config.json"
            )
        if name in derived:
            _check_dtype(f"{where}: {name}", info.dtype, {"I64"} if name.endswith("d2t") else FLOATS)


def as_stored(roles: Roles, tensors: Mapping[str, TensorInfo]) -> Roles:
    """Return the roles of experts whose packed tensors are transposed in a checkpoint; others as they are.

    Shapes tell: [E, rows, columns] is derived, and [E, columns, rows] found of a tensor in which the two differ.
    """
    packed = {source.name: source.shape for source in roles.values() if _is_packed(source)}
    turned = {name: (count, width, rows) for name, (count, rows, width) in packed.items()}
    stored = {name: tensors[name].shape for name in packed if name in tensors}
    if not any(shape == turned[name] != packed[name] for name, shape in stored.items()):
        return roles
    return {role: _turned(source) if _is_packed(source) else source for role, source in roles.items()}


def _is_packed(source: Source) -> bool:
    return len(source.shape) == 3 and source.columns is None


def _turned(source: Source) -> Source:
    """Return the source of rows that are columns of each expert's matrix."""
    count, rows, width = source.shape
    expert, first = divmod(source.first, rows)
    columns = Columns(first=first, step=1, width=width)
    return dataclasses.replace(source, shape=(count, width, rows), first=expert * width, columns=columns)


def _check_coded(where: Path, tensors: Mapping[str, TensorInfo], reading: Reading) -> set[str]:
    """Check the tensors of quantized layers; return their names, and those of tensors that they may have."""
    known: set[str] = set()
    for stored in _stored(reading.roles):
        for expected in stored.tensors.values():
            if expected.name not in tensors:
                shapes = " or ".join(str(list(shape)) for shape in expected.shapes)
                raise CheckpointError(f"{where}: {expected.name}: missing, expected shape {shapes} by config.json")
        for expected in (*stored.read, *stored.ignored.values()):
            info = tensors.get(expected.name)
            if info is None:
                continue
            if info.shape not in expected.shapes:
                shapes = " or ".join(str(list(shape)) for shape in expected.shapes)
                problem = f"found shape {list(info.shape)}, expected {shapes} by config.json"
                raise CheckpointError(f"{where}: {expected.name}: {problem}")
            _check_dtype(f"{where}: {expected.name}", info.dtype, expected.dtypes)
            known.add(expected.name)
    return known


def _stored(roles: Roles) -> Iterable[Stored]:
    """Return the quantized layers of a table, each once."""
    return {source.stored.module: source.stored for source in roles.values() if source.stored is not None}.values()


def table_sha256(roles: Roles) -> str:
    """Return the digest of the derived tensors: one line ``name:d0,d1`` per tensor, sorted by name."""
    shapes = {source.name: source.shape for source in roles.values() if source.stored is None}
    shapes |= {tensor.digested: tensor.shapes[0] for stored in _stored(roles) for tensor in stored.tensors.values()}
    lines = (f"{name}:{','.join(map(str, shape))}\n" for name, shape in sorted(shapes.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _surplus_reason(name: str, derived: Mapping[str, Source]) -> str:
    if name == "lm_head.weight" and "model.embed_tokens.weight" in derived:
        return "tie_word_embeddings is true, so the embedding is the lm_head; say false if this tensor is the lm_head"
    return "nothing that config.json describes has it"


def _check_dtype(path: str, dtype: str, allowed: Collection[str]) -> None:
    if dtype not in allowed:
        raise CheckpointError(f"{path}: found dtype {dtype}, expected {' or '.join(sorted(allowed))}")
