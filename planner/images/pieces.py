"""Resolve an image into the pieces that are appended to it, each found in its checkpoint and checked once."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from planner.checkpoints.checkpoint import Checkpoint
from planner.checkpoints.header import TensorFile, TensorInfo
from planner.errors import CheckpointError
from planner.images.casts import castable
from planner.images.layout import Part, Slot
from planner.quantized import Part as CodedPart
from planner.quantized import Stored
from plans.dtypes import HEADER_BYTES
from plans.ranges import Ranges

Checkpoints = Mapping[str, Checkpoint]
"""Checkpoints by ``Part.source``: ``base`` and ``draft``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Copied:
    """One part of a slot, with the tensor that its bytes come from."""

    slot: Slot
    number: int
    """Index among the parts of the slot."""
    part: Part
    tensor: TensorInfo

    @property
    def key(self) -> tuple[str, int, Ranges | None]:
        """Slot and part: images that have a share of it want rows of the same tensor, at the same point of the walk.

        Where columns of a share are sorted, images want other rows.
        """
        return self.slot.name, self.number, None if self.part.stored is None else self.part.stored.share

    @property
    def tensor_key(self) -> tuple[str, str]:
        """Checkpoint and name of the tensor."""
        return self.part.source, self.part.tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Literal:
    """A slot whose bytes come from no checkpoint: rotary frequencies, or a filler of zeros."""

    data: bytes


Piece = Copied | Literal


def resolve(slots: Sequence[Slot], checkpoints: Checkpoints) -> tuple[Piece, ...]:
    """Return the pieces of an image in the order of its file; raise CheckpointError for a dtype that cannot be cast."""
    return tuple(_pieces(slots, checkpoints))


def files_of(piece: Copied, checkpoints: Checkpoints) -> tuple[TensorFile, ...]:
    """Return the files of a checkpoint that the bytes of a piece come from."""
    checkpoint, part = checkpoints[piece.part.source], piece.part
    tensors = checkpoint.tensors or {}
    named = {piece.tensor.file} if part.stored is None else {tensors[tensor.name].file for tensor in part.stored.read}
    if part.sorted_as is not None:
        named.add(tensors[part.sorted_as.tensors["order"].name].file)
    return tuple(checkpoint.files[name] for name in sorted(named))


def row_width(tensor: TensorInfo) -> int:
    """Return the number of elements of one row; a vector has rows of one, and packed matrices are stacked rows."""
    return tensor.shape[-1] if len(tensor.shape) > 1 else 1


def row_count(tensor: TensorInfo) -> int:
    """Return the number of rows of a tensor."""
    return prod(tensor.shape[:-1] if len(tensor.shape) > 1 else tensor.shape)


def _pieces(slots: Sequence[Slot], checkpoints: Checkpoints) -> Iterator[Piece]:
    for slot in slots:
        if not slot.parts:
            assert slot.literal is not None, f"{slot.name}: neither parts nor literal bytes"
            yield Literal(data=slot.literal)
        for number, part in enumerate(slot.parts):
            tensors = checkpoints[part.source].tensors
            assert tensors is not None, "a checkpoint without weights is refused before"
            tensor = tensors[part.tensor] if part.stored is None else _as_tensor(part.stored, part.kind)
            if len(slot.shape) == 1 and part.columns is None:  # the tensor may have dimensions of 1 before its own
                tensor = replace(tensor, shape=tensor.shape[-1:])
            piece = Copied(slot=slot, number=number, part=part, tensor=tensor)
            _check(piece)
            yield piece


def _as_tensor(stored: Stored, kind: CodedPart) -> TensorInfo:
    """Return a part of a quantized layer as if a file had it."""
    shape, dtype = stored.shape(kind), stored.dtype(kind)
    return TensorInfo(file="", dtype=dtype, shape=shape, offset=0, nbytes=prod(shape) * HEADER_BYTES[dtype])


def _check(piece: Copied) -> None:
    slot, part, tensor = piece.slot, piece.part, piece.tensor
    rows, width = row_count(tensor) - (part.first or 0), row_width(tensor)
    if (turned := part.columns) is not None:
        rows, width = len(range(turned.first, width, turned.step)), min(turned.width, rows)
    columns = part.cols or ((0, width),)
    inside = _are_inside(part.rows, rows) and _are_inside(columns, width)
    assert inside, f"{slot.name}: rows {part.rows} and columns {columns} of {part.tensor}, of shape {tensor.shape}"
    if not castable(tensor.dtype, slot.dtype):
        raise CheckpointError(f"{part.tensor}: dtype {tensor.dtype} cannot become {slot.dtype}")


def _are_inside(ranges: Ranges, length: int) -> bool:
    """Return True if the ranges are ascending and disjoint, from 0 to ``length``."""
    edges = [0, *(edge for span in ranges for edge in span), length]
    return all(a <= b for a, b in itertools.pairwise(edges))
