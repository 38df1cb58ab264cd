"""Lower bounds of the time and memory price of every choice of a block by itself.

For an option and a split at prices λ of memory

    receive.same_ns + split.ns + λ·split.bytes + Σ_axes count · least_cost(r, piece_bytes λ)

where the division of each axis is fractional; without prices it is exact, in whole pieces and whole quanta. Pieces of a
shared axis have no price but for what is read beside them, since they may be another block's.
"""

import numpy as np

from planner.solver import limits
from planner.solver.bounds.pieces import Floats, least_cost, least_quanta, rates_ns
from planner.solver.problem import Axis, Block, Option


def choices_ns(block: Block, prices: Floats) -> dict[tuple[int, int], float]:
    """Return the bound in ns of each option and split, by their indices; equal ones are computed once.

    ``prices``: ns per byte on each device of the problem.
    """
    figures = (own for axis in block.axes for own in (axis.each_ps, axis.read_bytes))
    looks = list(zip(prices.tolist(), *figures, strict=True))
    priced = prices if prices.any() else None
    number = {look: index for index, look in enumerate(dict.fromkeys(looks))}
    look_of = [number[look] for look in looks]
    known: dict[tuple[object, ...], list[float]] = {}
    bounds = {}
    for o, option in enumerate(block.options):
        splits = option.splits[0] if len(option.splits) == 1 else id(option.splits)  # long ones are shared objects
        times = option.receive.same_ns, option.quantum_ns, option.slowed_ps
        key = (splits, times, *[look_of[device] for device in option.devices])
        if key not in known:
            known[key] = _splits_ns(block, option, priced)
        for c, ns in enumerate(known[key]):
            bounds[o, c] = ns
    return bounds


def _splits_ns(block: Block, option: Option, prices: Floats | None) -> list[float]:
    """Return the bound in ns of each split of an option; ``prices``: None where memory has none."""
    devices = list(option.devices)
    split_prices = np.zeros(len(option.splits))
    if prices is not None:
        split_prices = np.array([split.bytes for split in option.splits], dtype=np.float64) @ prices[devices]
    common = float(option.receive.same_ns) + sum(
        _axis_ns(axis, option, option.piece_ps(a, axis), prices) for a, axis in enumerate(block.axes)
    )
    splits_ns = split_prices + [split.ns for split in option.splits]
    return [(ns + common) * (1 - limits.MARGIN) for ns in splits_ns.tolist()]


def _axis_ns(axis: Axis, option: Option, piece_ps: tuple[int, ...], prices: Floats | None) -> float:
    if prices is None:
        quantum_ns = option.quantum_ns
        return float(quantum_ns * least_quanta((axis.count,), tuple(sorted(piece_ps)), quantum_ns)[0])
    devices = list(option.devices)
    piece_prices = ((0 if axis.shared else axis.each_bytes) + np.array(axis.read_bytes)[devices]) * prices[devices]
    return axis.count * (least_cost(rates_ns(piece_ps), piece_prices) if any(piece_ps) else float(piece_prices.min()))
