"""Estimates beside the changes of a refused request: what another checkpoint would do, by the sums of bytes.

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

FEWER_BITS = (8, 4)
METHODS = {8: "FP8, or compressed-tensors of 8 bits", 4: "AWQ, GPTQ, or compressed-tensors of 4 bits"}
"""Methods of quantization that are read, by their bits."""
GROUP = 128
"""Weights that share a scale of 16 bits, as published checkpoints of 8 and 4 bits have them."""
_WHOLE = ("embed.", "head.")
"""Roles of matrices that such checkpoints keep in 16 bits; routers too."""


def estimates(request: Request, formulation: Formulation) -> Iterator[str]:
    """Yield what fewer bits per weight would take, and the size of a model that would fit, in words."""
    if any(source.stored is not None for source in request.base.roles.values()):
        return  # weights of a checkpoint that has few bits already
    capacity = sum(device.capacity_bytes for device in formulation.usable.devices)
    width = DTYPE_BYTES[formulation.options.dtype]
    weights, matrices = _weights(request.base)
    beside = needed_bytes(formulation) - weights * width
    if beside >= capacity:
        return
    for bits in FEWER_BITS:
        quantized = (weights - matrices) * width + matrices * (bits * GROUP + 16) // (8 * GROUP)
        if bits < 8 * width and beside + quantized <= capacity:
            yield (
                f"weights of {bits} bits would take about {format_bytes(quantized)} instead of "
                f"{format_bytes(weights * width)}, with all else {format_bytes(beside + quantized)} of "
                f"{format_bytes(capacity)}: give a checkpoint that is quantized so ({METHODS[bits]})"
            )
            break
    billions = (capacity - beside) / width / 1e9
    yield (
        f"a smaller model: beside this one's KV cache and buffers there is room for about "
        f"{format_bytes(capacity - beside)} of weights, {billions:.3g} billion of {formulation.options.dtype}"
    )


def _weights(base: BaseInput) -> tuple[int, int]:
    """Return the number of weights of a model, each tensor once, and of those in matrices that get fewer bits."""
    shapes = {source.name: (role, source.shape) for role, source in reversed(base.roles.items())}
    sizes = [(role, len(shape), math.prod(shape)) for role, shape in shapes.values()]
    quantized = (
        size for role, rank, size in sizes if rank > 1 and not role.startswith(_WHOLE) and "router" not in role
    )
    return sum(size for _, _, size in sizes), sum(quantized)
