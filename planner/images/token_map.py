"""Check the one tensor of a checkpoint whose values are indices: ``d2t``, which maps drafted tokens to the base's."""

from collections.abc import Iterable

import numpy as np

from planner.errors import CheckpointError
from planner.images.casts import STORAGE
from planner.images.pieces import Copied, Piece
from planner.images.reader import Reader
from plans.slots import TOKEN_MAP


def check_token_map(pieces: Iterable[Piece], reader: Reader, vocabulary: int) -> None:
    """Raise CheckpointError where an image has the slot of ``d2t``, and a drafted token is none of the base's.

    ``vocabulary``: number of tokens of the base model.
    """
    piece = next((piece for piece in pieces if isinstance(piece, Copied) and piece.slot.name == TOKEN_MAP), None)
    if piece is None:
        return
    tensor, file = piece.tensor, reader.open(piece.part.source, piece.tensor.file)
    offsets = np.frombuffer(reader.keep(file, tensor.offset, tensor.nbytes), STORAGE[tensor.dtype])
    tokens = offsets + np.arange(len(offsets))
    wrong = np.flatnonzero((tokens < 0) | (tokens >= vocabulary))
    if len(wrong):
        number = int(wrong[0])
        raise CheckpointError(
            f"{file.original}: {piece.part.tensor}[{number}]: found {offsets[number]}, which makes drafted token "
            f"{number} token {number + int(offsets[number])} of the model, expected one of 0 to {vocabulary - 1}"
        )
