"""Sum the errors of rounded weights, by image and slot: rows come in blocks, in an order that differs by the images."""

from itertools import groupby
from math import fsum, sqrt

from planner.images.casts import Array
from plans.artifact import RoundingErrors


class RoundingLosses:
    """Of each row that is rounded the sum of the squared errors, and that of the squared weights.

    The rows of a slot are added one after the other; those of one slot for each image are kept.
    """

    def __init__(self) -> None:
        self._rows: dict[int, tuple[str, list[Array]]] = {}
        self._errors_ppm: dict[int, dict[str, int]] = {}

    def add(self, image: int, slot: str, rows: Array) -> None:
        """Add rows [n, 2] of a slot of an image."""
        if self._rows.get(image, ("", []))[0] != slot:
            self._close(image)
            self._rows[image] = slot, []
        self._rows[image][1].append(rows)

    def of(self, image: int) -> tuple[RoundingErrors, ...] | None:
        """Return the errors of the layers of an image, in order; None where no weight was rounded."""
        self._close(image)
        slots = self._errors_ppm.get(image, {})
        layers = groupby(sorted(slots, key=_is_table), _layer)  # tables behind the layers, each in order
        errors = tuple(
            RoundingErrors(layer=layer, errors_ppm=tuple(slots[name] for name in names)) for layer, names in layers
        )
        return errors or None

    def _close(self, image: int) -> None:
        """Sum up the rows of the slot that was added last."""
        if image in self._rows:
            slot, blocks = self._rows.pop(image)
            self._errors_ppm.setdefault(image, {})[slot] = _error_ppm(blocks)


def _is_table(slot: str) -> bool:
    """Return True of embed.weight, head.weight, draft.head.weight, …: no slot of layers.3.qkv.weight."""
    return not slot.startswith("layers.")


def _layer(slot: str) -> int | None:
    return None if _is_table(slot) else int(slot.split(".")[1])


def _error_ppm(blocks: list[Array]) -> int:
    # exact sums, which do not depend on how the rows were cut into blocks
    errors, weights = (fsum(value for block in blocks for value in block[:, i].tolist()) for i in (0, 1))
    return round(sqrt(errors / weights) * 10**6) if weights else 0
