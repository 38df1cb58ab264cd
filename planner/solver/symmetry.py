"""Hosts and devices that a problem does not tell apart: of answers that are equal but for names, one is enough."""

from collections.abc import Sequence

from planner.solver.problem import Block, Group, Option, Problem


def twins(problem: Problem) -> tuple[tuple[int, int], ...]:
    """Pairs of hosts, each the next of its like, that may change places without any change to the problem.

    What is over several hosts is left where it is: where it is in use, they may unless it would be :func:`moved`.
    """
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


def exchanged(problem: Problem, one: int, other: int) -> list[int]:
    """Of each device, which one takes its place when two hosts change places."""
    found = list(range(len(problem.devices)))
    for a, b in zip(problem.hosts[one], problem.hosts[other], strict=True):
        found[a], found[b] = b, a
    return found


def moved(each: Group | Option, to: Sequence[int]) -> bool:
    """Whether an exchange makes another one of it: of other devices, led by another, or divided otherwise."""
    of = {device: member for member, device in enumerate(each.devices)}
    if to[each.devices[0]] != each.devices[0] or any(to[device] not in of for device in each.devices):
        return True
    members = [of[to[device]] for device in each.devices]
    splits = [split for listed in each.splits for split in listed] if isinstance(each, Group) else each.splits
    taken = [split.bytes for split in splits] + ([each.stage_bytes] if isinstance(each, Group) else [])
    return any(nbytes[a] != nbytes[b] for nbytes in taken for a, b in enumerate(members))


def _exchangeable(problem: Problem, one: int, other: int) -> bool:
    here, there = problem.hosts[one], problem.hosts[other]
    if len(here) != len(there) or problem.message_ns[one] != problem.message_ns[other]:
        return False
    to = exchanged(problem, one, other)
    rates = [kind.unit_ps for kind in problem.kinds]
    rates += [axis.each_ps for block in problem.blocks for axis in block.axes]
    if any(each[d] != each[to[d]] for each in (problem.capacity_bytes, *rates) for d in here):
        return False
    groups = [group for group in problem.groups if group.site in (one, other)]
    known = {_group(group, range(len(to))) for group in groups}
    if any(_group(group, to) not in known for group in groups):
        return False
    return all(_same_options(block, (one, other), to) for block in problem.blocks)


def _group(group: Group, to: Sequence[int]) -> tuple[object, ...]:
    """A group, with its devices exchanged; its place is where they are."""
    devices = tuple(to[d] for d in group.devices)
    return devices, group.splits, group.hop_ns, group.network_hop_ns, group.first, group.stage_bytes


def _same_options(block: Block, hosts: tuple[int, int], to: Sequence[int]) -> bool:
    options = [option for option in block.options if option.sites in ((hosts[0],), (hosts[1],))]
    known = {(option.devices, option.splits, option.receive) for option in options}
    return all((tuple(to[d] for d in option.devices), option.splits, option.receive) in known for option in options)
