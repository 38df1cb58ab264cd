"""Every answer of a tiny Problem, priced in the plainest way: what the solver and the certificate are held against.

Nothing here knows of the solver or of :mod:`planner.certify`. A part of an answer (a stage, the rows, the tail) is a
cost and a load of each device; parts are combined by adding both, and of two with one load the cheaper is enough.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise, permutations

import numpy as np

from planner.problem import Problem, Tail, TailGroup

Load = tuple[int, ...]
Front = dict[Load, int]
"""The least cost of every load worth having."""


def best(problem: Problem) -> tuple[int, int] | None:
    """The least (step time, number of stages) of any feasible answer; None where there is none."""
    found: tuple[int, int] | None = None
    for sequence in sequences(problem):
        for cost in _costs(problem, sequence):
            candidate = (cost, len(sequence))
            if found is None or candidate < found:
                found = candidate
    return found


def sequences(problem: Problem) -> Iterator[tuple[int, ...]]:
    """Every order of disjoint groups, a layer for each at least, that enters no host twice."""
    for count in range(1, min(len(problem.devices), problem.layers) + 1):
        for sequence in permutations(range(len(problem.groups)), count):
            members = [device for index in sequence for device in problem.groups[index].devices]
            hosts = [problem.groups[index].host for index in sequence]
            visits = [host for i, host in enumerate(hosts) if i == 0 or host != hosts[i - 1]]
            if len(set(members)) == len(members) and len(set(visits)) == len(visits):
                yield sequence


def splits(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Every way to write ``total`` as ``parts`` numbers, zeros allowed."""
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in splits(total - first, parts - 1):
            yield (first, *rest)


def _costs(problem: Problem, sequence: tuple[int, ...]) -> Iterator[int]:
    """Least costs of the answers with these stages in this order, one for each place of the tail."""
    stages = _stages(problem, tuple(sorted(sequence)))
    first, last = (problem.groups[sequence[end]] for end in (0, -1))
    stages = _both(problem, stages, _rows(problem, first.devices, problem.first_rows, problem.first_row_bytes, ()))
    stages = _both(problem, stages, _once(problem, last.devices, last.last_bytes, 0))
    fixed = problem.fixed_ns + first.first_ns + last.last_ns + _hops(problem, sequence)
    used = {device for index in sequence for device in problem.groups[index].devices}
    if problem.tail is None:
        rows = _rows(problem, last.devices, problem.last_rows, problem.last_row_bytes, (problem.row_ps,))
        whole = _cheapest(problem, stages, rows)
        if whole is not None:
            yield fixed + whole + _messages(problem, used)
        return
    for choice in problem.tail.groups:
        members = problem.groups[choice.group].devices
        others = fixed + _receive(problem, problem.tail, choice, sequence[-1]) + _messages(problem, used | set(members))
        for share_last in (False, True) if problem.tail.shares_last and choice.group == sequence[-1] else (False,):
            read = (problem.row_ps, problem.tail.row_ps) if share_last else (problem.row_ps,)
            rows = _rows(problem, last.devices, problem.last_rows, problem.last_row_bytes, read)
            base = _both(problem, stages, rows)
            for share_first in (False, True) if problem.tail.shares_first and choice.group == sequence[0] else (False,):
                whole = _cheapest(problem, base, _tail(problem, problem.tail, choice, share_first, share_last))
                if whole is not None:
                    yield others + whole


@lru_cache(maxsize=64)
def _stages(problem: Problem, sequence: tuple[int, ...]) -> Front:
    """Every division of the layers over these stages, in whatever order."""
    fronts: dict[int, Front] = {0: {(0,) * len(problem.devices): 0}}
    for index in sequence:
        grown: dict[int, Front] = {}
        for before, front in fronts.items():
            for layers in range(1, problem.layers - before + 1):
                for load, cost in _both(problem, front, _stage(problem, index, layers)).items():
                    _keep(grown.setdefault(before + layers, {}), load, cost)
        fronts = {layers: _undominated(front) for layers, front in grown.items()}
    return fronts.get(problem.layers, {})


@lru_cache(maxsize=256)
def _stage(problem: Problem, index: int, layers: int) -> Front:
    """So many layers on one group: every mixture of columns, every division of units."""
    group = problem.groups[index]
    front: Front = {}
    for counts in splits(layers, len(group.columns)):
        chosen = [column for column, count in zip(group.columns, counts, strict=True) for _ in range(count)]
        cost = sum(column.ns for column in chosen)
        for units in splits(layers * problem.units, len(group.devices)):
            load = [0] * len(problem.devices)
            for j, device in enumerate(group.devices):
                load[device] = group.stage_bytes[j] + units[j] * problem.unit_bytes
                load[device] += sum(column.bytes[j] for column in chosen)
            _keep(front, tuple(load), cost + _slowest_ns(problem, units, group.devices, problem.unit_ps))
    return _fitting(problem, front)


def _rows(
    problem: Problem, devices: Sequence[int], rows: int, row_bytes: int, read: Iterable[tuple[int, ...]]
) -> Front:
    """Every division of a table, which costs the time of its slowest share once for each entry of ``read``."""
    front: Front = {}
    rates = tuple(read)
    for shares in splits(rows, len(devices)):
        load = [0] * len(problem.devices)
        for device, count in zip(devices, shares, strict=True):
            load[device] = count * row_bytes
        _keep(front, tuple(load), sum(_slowest_ns(problem, shares, devices, each) for each in rates))
    return front


@lru_cache(maxsize=256)
def _tail(problem: Problem, tail: Tail, choice: TailGroup, share_first: bool, share_last: bool) -> Front:
    members = problem.groups[choice.group].devices
    front = _union(_once(problem, members, column.bytes, column.ns) for column in choice.columns)
    front = _both(problem, front, _rows(problem, members, tail.units, tail.unit_bytes, (tail.unit_ps,)))
    if not share_first:
        front = _both(problem, front, _rows(problem, members, tail.first_rows, tail.first_row_bytes, ()))
    if not share_last:
        front = _both(problem, front, _rows(problem, members, tail.last_rows, tail.last_row_bytes, (tail.row_ps,)))
    return front


def _once(problem: Problem, devices: Sequence[int], nbytes: Sequence[int], cost: int) -> Front:
    load = [0] * len(problem.devices)
    for device, each in zip(devices, nbytes, strict=True):
        load[device] = each
    return {tuple(load): cost}


def _hops(problem: Problem, sequence: tuple[int, ...]) -> int:
    total = 0
    for before, index in pairwise(sequence):
        here = problem.groups[index]
        total += here.hop_ns if problem.groups[before].host == here.host else here.network_hop_ns
    return total


def _receive(problem: Problem, tail: Tail, choice: TailGroup, last: int) -> int:
    sender, receivers = problem.groups[last], problem.groups[choice.group]
    near = choice.receive_inside_ns if sender.devices[0] in receivers.devices else choice.receive_ns
    return near + (tail.network_ns if sender.host != receivers.host else 0)


def _messages(problem: Problem, used: set[int]) -> int:
    counts = [len(used & set(devices)) for devices in problem.hosts]
    told = sum(each for each, count in zip(problem.message_ns, counts, strict=True) if count >= 2)
    return told + (len([count for count in counts if count]) - 1) * problem.network_message_ns


def _slowest_ns(problem: Problem, counts: Sequence[int], devices: Sequence[int], each_ps: Sequence[int]) -> int:
    """The longest of the shares, each rounded up to whole quanta."""
    quantum_ps = problem.quantum_ns * 1000
    times = [count * each_ps[device] for count, device in zip(counts, devices, strict=True)]
    return problem.quantum_ns * max(time // quantum_ps + (time % quantum_ps > 0) for time in times)


# ---- fronts ----


def _keep(front: Front, load: Load, cost: int) -> None:
    if cost < front.get(load, cost + 1):
        front[load] = cost


def _both(problem: Problem, one: Front, other: Front) -> Front:
    """One part of each, where the two fit together."""
    front: Front = {}
    for load_a, cost_a in one.items():
        for load_b, cost_b in other.items():
            load = tuple(map(sum, zip(load_a, load_b, strict=True)))
            _keep(front, load, cost_a + cost_b)
    return _fitting(problem, front)


def _union(fronts: Iterable[Front]) -> Front:
    joined: Front = {}
    for front in fronts:
        for load, cost in front.items():
            _keep(joined, load, cost)
    return joined


def _fitting(problem: Problem, front: Front) -> Front:
    capacity = problem.capacity_bytes
    fits = {load: cost for load, cost in front.items() if all(map(int.__le__, load, capacity))}
    return _undominated(fits)


def _undominated(front: Front) -> Front:
    """Without the loads for which another is as small on every device and as cheap."""
    ordered = sorted(front.items(), key=lambda item: (item[1], item[0]))
    loads = np.array([load for load, _ in ordered])
    kept: list[int] = []
    for position in range(len(ordered)):
        if not (loads[kept] <= loads[position]).all(axis=1).any():
            kept.append(position)
    return dict(ordered[position] for position in kept)


def _cheapest(problem: Problem, one: Front, other: Front) -> int | None:
    """The least cost of one part of each that fit together; None where none do."""
    if not one or not other:
        return None
    loads, costs = np.array(list(other)), np.array(list(other.values()))
    least = None
    for load, cost in one.items():
        fits = (loads + np.array(load) <= np.array(problem.capacity_bytes)).all(axis=1)
        if fits.any() and (least is None or cost + costs[fits].min() < least):
            least = int(cost + costs[fits].min())
    return least
