"""Rotary tables of layers, and the order that the rows of q and k have in an image.

In an image channel j of a head and channel j + D / 2 are a pair, whatever the checkpoint pairs: queries and keys are
stored in one order, so their products are the same. Channels that are not rotated have the frequency 0.
"""

from plans.schema import Model, Rotary

Order = tuple[int, ...]
"""Row j of a head in an image is row ``order[j]`` of the head in the checkpoint."""


def table_of(model: Model, layer: int) -> int:
    """Return the number of a layer's rotary table."""
    if model.rotary is None:
        return 0
    return next(number for number, table in enumerate(model.rotary) if layer in table.layers)


def tables(model: Model) -> tuple[Rotary | None, ...]:
    """Return all rotary tables; None is a plain one."""
    return (None,) if model.rotary is None else model.rotary


def head_order(rotary: Rotary | None, head_dim: int) -> Order | None:
    """Return the order of a head's channels in an image; None: that of the checkpoint."""
    if rotary is None:
        return None
    channels, rest = rotary.channels, (head_dim - rotary.channels) // 2
    if rotary.interleaved:
        first, second = range(0, channels, 2), range(1, channels, 2)
    else:
        first, second = range(channels // 2), range(channels // 2, channels)
    passed = range(channels, head_dim)
    order = (*first, *passed[:rest], *second, *passed[rest:])
    return None if order == tuple(range(head_dim)) else order
