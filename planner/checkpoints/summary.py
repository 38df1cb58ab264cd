"""Summarises the tensors of a checkpoint by block, from headers alone."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from plans.safetensors_header import DTYPE_BYTES


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
