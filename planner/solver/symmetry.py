"""Equal hosts: of placements that are equal but for the names of such hosts, the model keeps one.

29 November 2026, CPU time of ``solve`` with and without it: 0.25 and 0.83 s on ``bench_planner speed --only 3x4``,
three equal hosts; 8.6 and 15.6 s with the same model on six equal hosts of 2 x RTX 3090 and an L4. On machines
without equal hosts it adds nothing. An order of equal devices, for strategies that place whole layers, did not pay.
"""

from collections.abc import Iterable, Iterator, Sequence

from planner.solver.model import Model
from planner.solver.problem import Block, Group, Option, Problem
from planner.solver.variables import Bool

Pair = tuple[int, int]
"""Two hosts, the first before the second."""


def equal_hosts(problem: Problem) -> tuple[Pair, ...]:
    """Return pairs of hosts, each the next of its like, whose exchange does not change the problem.

    Groups and options over several hosts are left out of the comparison: where one is in use, the two hosts may be
    exchanged unless that would make another one of it (:func:`moved`).
    """
    if problem.ordered or problem.counts is not None or problem.goal != "time":
        return ()
    pairs: list[Pair] = []
    paired: set[int] = set()
    for first in range(len(problem.hosts)):
        for second in range(first + 1, len(problem.hosts)):
            if first not in paired and _exchangeable(problem, first, second):
                pairs.append((first, second))
                paired.add(first)
    return tuple(pairs)


def order_equal_hosts(model: Model, pairs: Iterable[Pair]) -> None:
    """Add that of two equal hosts the first runs at least as many layers.

    Any answer becomes such a one by exchanging the two, unless something over several hosts is in use that the
    exchange would change; then nothing is demanded.
    """
    sizes = {site: sum(model.stages.size[i] for i in groups) for site, groups in model.order.groups_of.items()}
    for one, other in pairs:
        to = exchanged(model.problem, one, other)
        fixed = sum([*_moved_groups(model, to), *_moved_choices(model, to)])
        model.model.add(sizes.get(one, 0) + model.problem.layers * fixed >= sizes.get(other, 0))


def _moved_groups(model: Model, to: Sequence[int]) -> Iterator[Bool]:
    """Yield the flags of groups over several hosts that an exchange makes others of."""
    groups, hosts = model.problem.groups, len(model.problem.hosts)
    for runs, group in zip(model.stages.runs, groups, strict=True):
        if group.site >= hosts and moved(group, to):
            yield runs


def _moved_choices(model: Model, to: Sequence[int]) -> Iterator[Bool]:
    """Yield the flags of choices over several hosts that an exchange makes others of."""
    for variables, choices in zip(model.blocks.on, model.restricted.choices, strict=True):
        for on, choice in zip(variables, choices, strict=True):
            if len(choice.option.sites) > 1 and moved(choice.option, to):
                yield on


def exchanged(problem: Problem, one: int, other: int) -> list[int]:
    """Return, per device, the one that takes its place when two hosts are exchanged."""
    to = list(range(len(problem.devices)))
    for a, b in zip(problem.hosts[one], problem.hosts[other], strict=True):
        to[a], to[b] = b, a
    return to


def moved(target: Group | Option, to: Sequence[int]) -> bool:
    """Tell whether an exchange makes another one of it: on other devices, led by another, or divided otherwise."""
    of = {device: member for member, device in enumerate(target.devices)}
    if to[target.devices[0]] != target.devices[0] or any(to[device] not in of for device in target.devices):
        return True
    members = [of[to[device]] for device in target.devices]
    if isinstance(target, Group):
        loads = [target.stage_bytes, *(split.bytes for splits in target.splits for split in splits)]
    else:
        loads = [split.bytes for split in target.splits]
    return any(nbytes[a] != nbytes[b] for nbytes in loads for a, b in enumerate(members))


def _exchangeable(problem: Problem, one: int, other: int) -> bool:
    here, there = problem.hosts[one], problem.hosts[other]
    if len(here) != len(there) or any(
        ns[one] != ns[other] for ns in (problem.message_ns, problem.awake_ns, problem.waits_ns)
    ):
        return False
    to = exchanged(problem, one, other)
    figures = [problem.capacity_bytes, *(kind.unit_ps for kind in problem.kinds)]
    figures += [own for block in problem.blocks for axis in block.axes for own in (axis.each_ps, axis.read_bytes)]
    if any(per_device[d] != per_device[to[d]] for per_device in figures for d in here):
        return False
    groups = [group for group in problem.groups if group.site in (one, other)]
    known = {_exchanged_group(group, range(len(to))) for group in groups}
    if any(_exchanged_group(group, to) not in known for group in groups):
        return False
    return all(_same_options(block, (one, other), to) for block in problem.blocks)


def _exchanged_group(group: Group, to: Sequence[int]) -> tuple[object, ...]:
    """Return all of a group but its site, which follows from its devices, with these exchanged."""
    devices = tuple(to[d] for d in group.devices)
    times = group.hop_ns, group.network_hop_ns, group.first, group.quantum_ns, group.slowed_ps
    return devices, group.splits, group.stage_bytes, *times


def _same_options(block: Block, hosts: Pair, to: Sequence[int]) -> bool:
    options = [option for option in block.options if option.sites in ((hosts[0],), (hosts[1],))]
    known = {(o.devices, o.splits, o.receive, o.quantum_ns, o.slowed_ps) for o in options}
    return all(
        (tuple(to[d] for d in o.devices), o.splits, o.receive, o.quantum_ns, o.slowed_ps) in known for o in options
    )
