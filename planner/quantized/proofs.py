"""Tensors of which images have nothing, and whose values must be as the config says: else the weights mean others."""

import numpy as np

from planner.errors import ValuesError
from planner.quantized.codes import Read
from planner.quantized.column_order import require_neighbours
from planner.quantized.records import Expected, Stored


def require_proofs(stored: Stored, read: Read) -> None:
    """Raise ValuesError for a value of such a tensor that is another."""
    for kind, tensor in stored.proofs.items():
        match kind:
            case "no_bias":
                _require_no_bias(tensor, stored.out, read)
            case "neighbours":
                require_neighbours(stored, tensor, read)
            case "shape":
                _require_shape(tensor, (stored.out, stored.columns), read)


def _require_no_bias(tensor: Expected, out: int, read: Read) -> None:
    found = read(tensor.name, (0, out)).reshape(-1)
    wrong = np.flatnonzero(found & 0x7FFF if found.dtype == np.uint16 else found)  # bfloat16 is its bits
    if len(wrong):
        raise ValuesError(
            f"{tensor.name}[{wrong[0]}]: found another value than 0, expected none: by config.json the layer "
            "has no bias"
        )


def _require_shape(tensor: Expected, shape: tuple[int, int], read: Read) -> None:
    found = [int(size) for size in read(tensor.name, (0, 2)).reshape(-1)]
    if found != list(shape):
        raise ValuesError(f"{tensor.name}: found {found}, expected {list(shape)} by config.json")
