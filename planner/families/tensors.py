"""Compare the tensors that a config implies with those that the headers of a checkpoint declare."""

import hashlib
from collections.abc import Collection, Mapping

from planner.checkpoints.checkpoint import Checkpoint
from planner.checkpoints.header import TensorInfo
from planner.errors import CheckpointError
from planner.families.records import Reading, Roles, Source
from plans.dtypes import HEADER_NAMES

FLOATS = frozenset(HEADER_NAMES.values())
"""Dtypes of weights that are read; ``d2t``, a table of token ids, is I64."""


def check_tensors(checkpoint: Checkpoint, tensors: Mapping[str, TensorInfo], reading: Reading) -> None:
    """Raise CheckpointError with the first tensor that is missing, surplus, or of another shape or dtype."""
    derived = {source.name: source for source in reading.roles.values()}
    where = checkpoint.config_file.parent
    for name, source in derived.items():
        if name not in tensors:
            raise CheckpointError(f"{where}: {name}: missing, expected shape {list(source.shape)} by config.json")
    for name, info in tensors.items():
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


def table_sha256(roles: Roles) -> str:
    """Return the digest of the derived tensors: one line ``name:d0,d1`` per tensor, sorted by name."""
    shapes = {source.name: source.shape for source in roles.values()}
    lines = (f"{name}:{','.join(map(str, shape))}\n" for name, shape in sorted(shapes.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _surplus_reason(name: str, derived: Mapping[str, Source]) -> str:
    if name == "lm_head.weight" and "model.embed_tokens.weight" in derived:
        return "tie_word_embeddings is true, so the embedding is the lm_head; say false if this tensor is the lm_head"
    return "nothing that config.json describes has it"


def _check_dtype(path: str, dtype: str, allowed: Collection[str]) -> None:
    if dtype not in allowed:
        raise CheckpointError(f"{path}: found dtype {dtype}, expected {' or '.join(sorted(allowed))}")
