"""Blocks in the CP-SAT model: where the parts beside the layers are, and how their axes are dealt out over devices."""

from collections.abc import Sequence
from dataclasses import dataclass

from ortools.sat.python import cp_model

from planner.solver.bounds.pieces import least_quanta
from planner.solver.problem import Axis, Problem
from planner.solver.restriction import Choice
from planner.solver.variables import Bool, Builder, Costs, Devices, Linear

FIRST, LAST, TAIL = range(3)
"""Indices of the blocks; there may be no tail."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocks:
    """Variables of the blocks, by block b, choice x of it, axis a and device d."""

    on: tuple[tuple[Bool, ...], ...]
    """on[b][x]: block b is on the option, and divided as the split, of its choice x."""
    on_devices: tuple[dict[Devices, Bool], ...]
    """on_devices[b][devices]: block b is on exactly these devices, whatever its split."""
    shares: tuple[tuple[tuple[cp_model.IntVar, ...], ...], ...]
    """shares[b][a][d]: pieces of axis a of block b on device d that are its own; all 0 where the axis is shared."""
    costs: Costs
    """Time of the blocks, without what they receive, and their bytes."""
    rounding_ns: tuple[Linear, ...]
    """Most by which that time is rounded up, per block."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Block:
    on: tuple[Bool, ...]
    on_devices: dict[Devices, Bool]
    shares: tuple[tuple[cp_model.IntVar, ...], ...]
    read: tuple[tuple[Linear, ...], ...]
    """read[a][d]: pieces of axis a that device d reads: its own, or where the axis is shared those of the owner."""
    costs: Costs
    rounding_ns: Linear


def add_blocks(builder: Builder, problem: Problem, choices: Sequence[Sequence[Choice]]) -> Blocks:
    """Add the blocks one after another; an axis may be shared with a block before its own."""
    blocks: list[_Block] = []
    for number, (block, kept) in enumerate(zip(problem.blocks, choices, strict=True)):
        blocks.append(_add_block(builder, problem, number, block.axes, kept, blocks))
    return Blocks(
        on=tuple(block.on for block in blocks),
        on_devices=tuple(block.on_devices for block in blocks),
        shares=tuple(block.shares for block in blocks),
        costs=Costs(
            time_ns=tuple(term for block in blocks for term in block.costs.time_ns),
            load_bytes=tuple(term for block in blocks for term in block.costs.load_bytes),
        ),
        rounding_ns=tuple(block.rounding_ns for block in blocks),
    )


def _add_block(
    builder: Builder,
    problem: Problem,
    number: int,
    axes: Sequence[Axis],
    choices: Sequence[Choice],
    before: Sequence[_Block],
) -> _Block:
    on = tuple(builder.flag(f"on{number}_{x}") for x in range(len(choices)))
    builder.model.add_exactly_one(on)
    time_ns: list[Linear] = []
    load_bytes: list[tuple[int, Linear]] = []
    # holders[d]: the choices that put the block on device d.
    holders: list[list[Bool]] = [[] for _ in problem.devices]
    same: dict[Devices, list[Bool]] = {}
    of_quantum: dict[int, list[Bool]] = {}
    for variable, choice in zip(on, choices, strict=True):
        same.setdefault(choice.option.devices, []).append(variable)
        of_quantum.setdefault(choice.option.quantum_ns, []).append(variable)
        time_ns.append(choice.split.ns * variable)
        for device, nbytes in zip(choice.option.devices, choice.split.bytes, strict=True):
            load_bytes.append((device, nbytes * variable))
            holders[device].append(variable)
    on_devices = {devices: builder.any_of(variables) for devices, variables in same.items()}
    # quanta_ns[q]: the block is on an option whose times are in quanta of q ns.
    quanta_ns = {q: sum(variables) for q, variables in of_quantum.items()}
    shares, read = [], []
    for a, axis in enumerate(axes):
        own = tuple(
            builder.integer(axis.count if holders[d] else 0, f"share{number}_{a}_{d}") for d in range(len(holders))
        )
        owner = None if axis.shared is None else before[FIRST if axis.shared == "first" else LAST]
        reads = _deal_out(builder, axis, own, holders, on_devices, owner)
        if any(axis.each_ps):
            slowed = _slowed(builder, a, axis, on, choices)
            slowest_ns = builder.slowest_ns(reads, axis.each_ps, axis.count, quanta_ns, slowed)
            builder.model.add(slowest_ns >= sum(n * on_devices[d] for d, n in _least_ns(a, axis, choices).items()))
            time_ns.append(slowest_ns)
        held = own if owner is None else _held(builder, axis, own, owner)
        load_bytes += [(device, axis.each_bytes * count) for device, count in enumerate(held)]
        beside = enumerate(zip(axis.read_bytes, reads, strict=True))
        load_bytes += [(device, nbytes * count) for device, (nbytes, count) in beside if nbytes]
        shares.append(own)
        read.append(reads)
    return _Block(
        on=on,
        on_devices=on_devices,
        shares=tuple(shares),
        read=tuple(read),
        costs=Costs(time_ns=tuple(time_ns), load_bytes=tuple(load_bytes)),
        rounding_ns=len(axes) * sum(q * is_used for q, is_used in quanta_ns.items()),
    )


def _held(builder: Builder, axis: Axis, own: Sequence[cp_model.IntVar], owner: _Block) -> list[Linear]:
    """Return the pieces of each device that take bytes: none of those that are on a device with the owner alone."""
    held: list[Linear] = list(own)
    for devices, alone in owner.on_devices.items():
        if len(devices) == 1:
            (device,) = devices
            held[device] = builder.integer(axis.count, f"held{own[device].index}")
            builder.model.add(held[device] >= own[device] - axis.count * alone)
    return held


def _slowed(
    builder: Builder, a: int, axis: Axis, on: Sequence[Bool], choices: Sequence[Choice]
) -> list[tuple[int, int, Bool]]:
    """Return devices with the time of a piece of axis a that is longer than alone, and a flag: that it is so."""
    flags: dict[tuple[int, int], list[Bool]] = {}
    for variable, choice in zip(on, choices, strict=True):
        for device, piece_ps in zip(choice.option.devices, choice.option.piece_ps(a, axis), strict=True):
            if piece_ps > axis.each_ps[device]:
                flags.setdefault((device, piece_ps), []).append(variable)
    return [(device, piece_ps, builder.any_of(variables)) for (device, piece_ps), variables in flags.items()]


def _least_ns(a: int, axis: Axis, choices: Sequence[Choice]) -> dict[Devices, int]:
    """Return the least time of an axis on each set of devices, memory aside: searches learn it late by themselves."""
    least = {}
    for option in {choice.option.devices: choice.option for choice in choices}.values():
        piece_ps = tuple(sorted(option.piece_ps(a, axis)))
        least[option.devices] = option.quantum_ns * least_quanta((axis.count,), piece_ps, option.quantum_ns)[0]
    return least


def _deal_out(
    builder: Builder,
    axis: Axis,
    own: Sequence[cp_model.IntVar],
    holders: Sequence[Sequence[Bool]],
    on_devices: dict[Devices, Bool],
    owner: _Block | None,
) -> tuple[Linear, ...]:
    """Deal the pieces of an axis out over the devices of its block; return how many each device reads."""
    model = builder.model
    for count, on in zip(own, holders, strict=True):
        # Pieces are only on devices of the block.
        model.add(count <= axis.count * sum(on))
    if owner is None:
        model.add(sum(own) == axis.count)
        return tuple(own)
    # On the owner's devices the axis is the owner's, and no piece of it is dealt out again.
    shared = sum(
        builder.both(on, owner.on_devices[devices]) for devices, on in on_devices.items() if devices in owner.on_devices
    )
    model.add(sum(own) == axis.count * (1 - shared))
    reads = []
    for mine, theirs in zip(own, owner.read[0], strict=True):
        read = builder.integer(axis.count, f"read{mine.index}")
        model.add(read >= mine)
        model.add(read >= theirs - axis.count * (1 - shared))
        reads.append(read)
    return tuple(reads)
