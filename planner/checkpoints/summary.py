"""Summarise the tensors of a checkpoint by block, from headers alone: what ``scan`` shows."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from plans.dtypes import HEADER_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSummary:
    """One tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockSummary:
    """Tensors of one block: ``embed``, ``layer 3``, ``head``, ``draft``, or ``other``."""

    block: str
    num_tensors: int
    nbytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """A checkpoint's tensors and blocks, in the order of execution."""

    num_tensors: int
    nbytes: int
    dtypes: tuple[str, ...]
    blocks: tuple[BlockSummary, ...]
    tensors: tuple[TensorSummary, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldedBlocks:
    """Consecutive layers with equal tensors, or one block."""

    label: str
    """``embed``, ``layer 3``, ``layers 0-31``."""
    num_blocks: int
    num_tensors: int
    """Number of tensors of one block."""
    nbytes: int
    """Bytes of one block."""


def describe(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> Summary:
    """Summarise a table of (dtype, shape) by name, read from headers or derived from a config."""
    rows = [
        TensorSummary(name=name, dtype=dtype, shape=shape, nbytes=math.prod(shape) * HEADER_BYTES[dtype])
        for name, (dtype, shape) in tensors.items()
    ]
    rows.sort(key=lambda row: (_block_key(_block(row.name)), row.name))
    blocks = tuple(
        BlockSummary(block=block, num_tensors=len(members), nbytes=sum(row.nbytes for row in members))
        for block, members in _by_block(rows)
    )
    return Summary(
        num_tensors=len(rows),
        nbytes=sum(row.nbytes for row in rows),
        dtypes=tuple(sorted({row.dtype for row in rows})),
        blocks=blocks,
        tensors=tuple(rows),
    )


def fold(summary: Summary) -> tuple[FoldedBlocks, ...]:
    """Return the blocks of a summary with runs of equal layers as one.

    Layers are equal if they have the same tensors but for the layer's number: names, dtypes and shapes.
    """
    contents = {block: _content(members) for block, members in _by_block(summary.tensors)}
    runs: list[list[BlockSummary]] = []
    for block in summary.blocks:
        if runs and _continues(runs[-1][-1], block, contents):
            runs[-1].append(block)
        else:
            runs.append([block])
    return tuple(
        FoldedBlocks(
            label=_label(run[0].block, run[-1].block),
            num_blocks=len(run),
            num_tensors=run[0].num_tensors,
            nbytes=run[0].nbytes,
        )
        for run in runs
    )


_Content = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Name without the layer's number, dtype and shape of each tensor of a block."""

_BLOCKS = (
    (re.compile(r"(?:^|\.)layers\.([0-9]+)\."), "layer"),
    (re.compile(r"(?:^|\.)embed_tokens\."), "embed"),
    (re.compile(r"^midlayer\.|^fc\.|^d2t$|^t2d$"), "draft"),
    (re.compile(r"(?:^|\.)lm_head\.|(?:^|\.)norm\."), "head"),
)
_LAYER = _BLOCKS[0][0]


def _by_block(rows: Iterable[TensorSummary]) -> Iterator[tuple[str, tuple[TensorSummary, ...]]]:
    """Yield each block and its tensors; ``rows`` are in the order of blocks."""
    for block, members in groupby(rows, key=lambda row: _block(row.name)):
        yield block, tuple(members)


def _block(name: str) -> str:
    for pattern, block in _BLOCKS:
        match = pattern.search(name)
        if match:
            return f"layer {int(match[1])}" if block == "layer" else block
    return "other"


def _block_key(block: str) -> tuple[int, int]:
    kind, _, number = block.partition(" ")
    return ("embed", "layer", "draft", "head", "other").index(kind), int(number or 0)


def _content(members: tuple[TensorSummary, ...]) -> _Content:
    return tuple((_LAYER.sub(".layers.*.", f".{row.name}"), row.dtype, row.shape) for row in members)


def _continues(last: BlockSummary, block: BlockSummary, contents: Mapping[str, _Content]) -> bool:
    """Return True if ``block`` is the layer after ``last`` and equal to it."""
    rank, number = _block_key(last.block)
    follows = _block_key(block.block) == (rank, number + 1)  # only layers have numbers other than 0
    return follows and contents[block.block] == contents[last.block]


def _label(first: str, last: str) -> str:
    return first if first == last else f"layers {first.removeprefix('layer ')}-{last.removeprefix('layer ')}"
