"""Estimates beside the changes of a refused request: what another model would do, by the sums of bytes.

Unlike the changes they are not solved for: only that the bytes of all devices together suffice.
"""

import math
from collections.abc import Iterator

from planner.enough_hosts import needed_bytes
from planner.families import BaseInput
from planner.problem.formulate import Formulation
from planner.request import Request
from plans.dtypes import DTYPE_BYTES
from plans.format import format_bytes


def estimates(request: Request, formulation: Formulation) -> Iterator[str]:
    """Yield the size of a model of plain weights that would fit, in words."""
    if any(source.stored is not None for source in request.base.roles.values()):
        return
    capacity = sum(device.capacity_bytes for device in formulation.usable.devices)
    width = DTYPE_BYTES[formulation.options.dtype]
    beside = needed_bytes(formulation) - _weights(request.base) * width
    if beside >= capacity:
        return
    billions = (capacity - beside) / width / 1e9
    yield (
        f"a smaller model: beside this one's KV cache and buffers there is room for about "
        f"{format_bytes(capacity - beside)} of weights, {billions:.3g} billion of {formulation.options.dtype}"
    )


def _weights(base: BaseInput) -> int:
    """Return the number of weights of a model, each tensor once."""
    shapes = {source.name: source.shape for source in base.roles.values()}
    return sum(math.prod(shape) for shape in shapes.values())
