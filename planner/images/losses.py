"""Sum the errors of rounded weights, by image and slot: rows come in blocks, in an order that differs by the images."""

from itertools import groupby
from math import fsum, sqrt

from planner.images.casts import Array
from plans.artifact import RoundingErrors


class RoundingLosses:
    """Of each row that is rounded the sum of the squared errors, and that of the squared weights."""

    def __init__(self) -> None:
        self._rows: dict[int, dict[str, list[Array]]] = {}

    def add(self, image: int, slot: str, rows: Array) -> None:
        """Add rows [n, 2] of a slot of an image."""
        self._rows.setdefault(image, {}).setdefault(slot, []).append(rows)

    def of(self, image: int) -> tuple[RoundingErrors, ...] | None:
        """Return the errors of the layers of an image, in order; None where no weight was rounded."""
        slots = self._rows.get(image, {})
        layers = groupby(slots, lambda name: int(name.split(".")[1]))  # layers.3.qkv.weight
        errors = tuple(
            RoundingErrors(layer=layer, errors_ppm=tuple(_error_ppm(slots[name]) for name in names))
            for layer, names in layers
        )
        return errors or None


def _error_ppm(blocks: list[Array]) -> int:
    # exact sums, which do not depend on how the rows were cut into blocks
    errors, weights = (fsum(value for block in blocks for value in block[:, i].tolist()) for i in (0, 1))
    return round(sqrt(errors / weights) * 10**6) if weights else 0
