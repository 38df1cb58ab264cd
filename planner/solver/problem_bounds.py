"""Bounds of a problem's quantities: the largest time and bytes, the least bytes, and the problem without time."""

from dataclasses import replace

from planner.solver.problem import Block, Problem, Receive, Split


def most_ps(problem: Problem) -> int:
    """Return a step time that no answer exceeds, in ps, but for the hops and messages of a thousand stages and more."""
    groups = problem.groups
    fixed = [ns for g in groups for ns in (g.hop_ns, g.network_hop_ns, g.first.far_ns)]
    fixed += [
        option.receive.far_ns + split.ns for b in problem.blocks for option in b.options for split in option.splits
    ]
    splits = problem.layers * max(split.ns for g in groups for splits in g.splits for split in splits)
    times = 1000 * (splits + 1000 * max(fixed))
    for k, kind in enumerate(problem.kinds):
        slowed = (ps for group in groups if group.slowed_ps is not None for ps in group.slowed_ps[k])
        times += problem.layers_of(k) * kind.units * max(*kind.unit_ps, *slowed, 0)
    for block in problem.blocks:
        for a, axis in enumerate(block.axes):
            slowed = (ps for option in block.options if option.slowed_ps is not None for ps in option.slowed_ps[a])
            times += axis.count * max(*axis.each_ps, *slowed, 0)
    return times


def most_bytes(problem: Problem) -> int:
    """Return bytes that no answer exceeds on one device."""
    groups = problem.groups
    most = problem.layers * max(n for g in groups for splits in g.splits for split in splits for n in split.bytes)
    most += sum(problem.layers_of(k) * kind.units * kind.unit_bytes for k, kind in enumerate(problem.kinds))
    most += max(max(group.stage_bytes) for group in groups)
    for block in problem.blocks:
        most += max(nbytes for option in block.options for split in option.splits for nbytes in split.bytes)
        most += sum(axis.count * (axis.each_bytes + max(axis.read_bytes)) for axis in block.axes)
    return most


def least_bytes(problem: Problem) -> int:
    """Return bytes that every answer takes of all devices together: more than they have is infeasible."""
    least = min(sum(group.stage_bytes) for group in problem.groups) + least_layer_bytes(problem)
    for block in problem.blocks:
        least += min(sum(split.bytes) for option in block.options for split in option.splits)
        least += sum(axis.count * axis.each_bytes for axis in block.axes if axis.shared is None)
        least += sum(axis.count * min(axis.read_bytes) for axis in block.axes)
    return least


def least_layer_bytes(problem: Problem) -> int:
    """Return bytes that all layers take of all devices together, in every answer."""
    least = 0
    for number, kind in enumerate(problem.kinds):
        splits = [split for group in problem.groups for split in group.splits[number]]
        layer = min((sum(split.bytes) for split in splits), default=0) + kind.units * kind.unit_bytes
        least += problem.layers_of(number) * layer
    return least


def room_bytes(problem: Problem) -> int:
    """Return the memory of as many devices as may be in use, the largest ones."""
    return sum(sorted(problem.capacity_bytes, reverse=True)[: problem.most_devices])


def timeless(problem: Problem) -> Problem:
    """Return the problem with all times 0: its answers are all that fits."""
    nothing = Receive(same_ns=0, inside_ns=0, near_ns=0, far_ns=0)
    none = (0,) * len(problem.devices)
    known: dict[int, tuple[Split, ...]] = {}

    def untimed(splits: tuple[Split, ...]) -> tuple[Split, ...]:
        if id(splits) not in known:  # most groups of equal devices have the same object
            known[id(splits)] = tuple(replace(split, ns=0) for split in splits)
        return known[id(splits)]

    def without_time(block: Block) -> Block:
        options = (replace(o, splits=untimed(o.splits), receive=nothing, slowed_ps=None) for o in block.options)
        return Block(options=tuple(options), axes=tuple(replace(axis, each_ps=none) for axis in block.axes))

    return replace(
        problem,
        kinds=tuple(replace(kind, unit_ps=none) for kind in problem.kinds),
        groups=tuple(
            replace(
                group,
                splits=tuple(map(untimed, group.splits)),
                hop_ns=0,
                network_hop_ns=0,
                first=nothing,
                slowed_ps=None,
            )
            for group in problem.groups
        ),
        first=without_time(problem.first),
        last=without_time(problem.last),
        tail=without_time(problem.tail) if problem.tail else None,
        message_ns=(0,) * len(problem.hosts),
        awake_ns=(None,) * len(problem.hosts),
        waits_ns=((),) * len(problem.hosts),
        network_message_ns=0,
    )
