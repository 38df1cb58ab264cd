"""Hosts and devices that a problem does not tell apart: of answers that are equal but for names, one is enough."""

from dataclasses import replace

from planner.problem import Block, Group, Option, Problem


def twins(problem: Problem) -> tuple[tuple[int, int], ...]:
    """Pairs of hosts, each the next of its like, that may change places without any change to the problem."""
    if problem.ordered or problem.counts is not None or problem.goal != "time":
        return ()
    found: list[tuple[int, int]] = []
    paired: set[int] = set()
    for first in range(len(problem.hosts)):
        for second in range(first + 1, len(problem.hosts)):
            if first not in paired and _exchangeable(problem, first, second):
                found.append((first, second))
                paired.add(first)
    return tuple(found)


def _exchangeable(problem: Problem, one: int, other: int) -> bool:
    here, there = problem.hosts[one], problem.hosts[other]
    if len(here) != len(there) or problem.message_ns[one] != problem.message_ns[other]:
        return False
    exchanged = list(range(len(problem.devices)))
    for a, b in zip(here, there, strict=True):
        exchanged[a], exchanged[b] = b, a
    rates = [kind.unit_ps for kind in problem.kinds]
    rates += [axis.each_ps for block in problem.blocks for axis in block.axes]
    if any(each[d] != each[exchanged[d]] for each in (problem.capacity_bytes, *rates) for d in here):
        return False
    groups = {_group(problem, group, None) for group in problem.groups}
    if any(_group(problem, group, exchanged) not in groups for group in problem.groups):
        return False
    return all(_same_options(problem, block, exchanged) for block in problem.blocks)


def _group(problem: Problem, group: Group, exchanged: list[int] | None) -> tuple[object, ...]:
    """A group, with its devices exchanged; its place is where they are, and one over several hosts is a place alone."""
    devices = group.devices if exchanged is None else tuple(exchanged[d] for d in group.devices)
    wide = group.place >= len(problem.hosts)
    return devices, wide, group.columns, group.hop_ns, group.network_hop_ns, group.first, group.stage_bytes


def _same_options(problem: Problem, block: Block, exchanged: list[int]) -> bool:
    def key(option: Option, devices: tuple[int, ...]) -> tuple[object, ...]:
        several = len(option.places) > 1
        return devices, several, option.columns, option.receive

    known = {key(option, option.devices) for option in block.options}
    return all(key(option, tuple(exchanged[d] for d in option.devices)) in known for option in block.options)


def alike_alone(problem: Problem) -> tuple[tuple[int, int], ...]:
    """Pairs of devices, each the next of its like, that may change places where all is on single devices.

    What is on the first then never comes later in the lists of groups and options than if it were on the second.
    """
    if problem.ordered or problem.counts is not None or problem.goal == "fill":
        return ()
    placed = [[group.devices for group in problem.groups]]
    placed += [[option.devices for option in block.options] for block in problem.blocks]
    if any(len(devices) > 1 for sets in placed for devices in sets) or any(
        len(each) > len(set(each)) for each in placed
    ):
        return ()
    last: dict[int, int] = {}
    found = []
    for device, number in enumerate(problem.alike):
        if device != problem.spare:
            if number in last and _same_alone(problem, last[number], device):
                found.append((last[number], device))
            last[number] = device
    return tuple(found)


def _same_alone(problem: Problem, one: int, other: int) -> bool:
    rates = [kind.unit_ps for kind in problem.kinds]
    rates += [axis.each_ps for block in problem.blocks for axis in block.axes]
    if any(each[one] != each[other] for each in (problem.capacity_bytes, *rates)):
        return False
    if any((one in devices) != (other in devices) for devices in problem.hosts):
        return False
    listed: list[dict[int, tuple[int, object]]] = [
        {g.devices[0]: (i, replace(g, devices=())) for i, g in enumerate(problem.groups)}
    ]
    for block in problem.blocks:
        listed.append({o.devices[0]: (i, replace(o, devices=())) for i, o in enumerate(block.options)})
    return all(
        (one in each) == (other in each)
        and (one not in each or (each[one][0] < each[other][0] and each[one][1] == each[other][1]))
        for each in listed
    )
