"""Recomputes the time and every capacity of an answer from the Problem alone; never believes the solver."""

from collections.abc import Iterator
from dataclasses import dataclass

from planner.cost import PS_PER_NS, ceil_div
from planner.problem import Answer, Problem, StageAnswer, TailAnswer


@dataclass(frozen=True, kw_only=True, slots=True)
class Certificate:
    """What an answer costs, term by term; ``step_ns`` is their sum."""

    step_ns: int
    stage_ns: tuple[int, ...]
    """Of each stage, with the hop into it."""
    first_ns: int
    last_ns: int
    tail_ns: int
    """Of the tail, with receiving."""
    message_ns: int
    load_bytes: tuple[int, ...]
    """Of each device."""

    def free_bytes(self, problem: Problem, answer: Answer) -> int:
        """The least that a device in use has left."""
        used = devices_in_use(problem, answer)
        return min(problem.capacity_bytes[d] - self.load_bytes[d] for d in used)


def certify(problem: Problem, answer: Answer) -> Certificate:
    """Check every constraint and price every term; a violated one is our bug and an AssertionError."""
    _check_structure(problem, answer)
    load = [0] * len(problem.devices)
    stages = tuple(_stage(problem, answer, position, load) for position in range(len(answer.stages)))
    first_ns, last_ns = _tables(problem, answer, load)
    tail_ns = _tail(problem, answer, answer.tail, load) if answer.tail else 0
    messages = _messages(problem, devices_in_use(problem, answer))
    for device, capacity in enumerate(problem.capacity_bytes):
        assert load[device] <= capacity, f"{problem.devices[device]}: {load[device]} of {capacity} bytes"
    return Certificate(
        step_ns=problem.fixed_ns + sum(stages) + first_ns + last_ns + tail_ns + messages,
        stage_ns=stages,
        first_ns=first_ns,
        last_ns=last_ns,
        tail_ns=tail_ns,
        message_ns=messages,
        load_bytes=tuple(load),
    )


def devices_in_use(problem: Problem, answer: Answer) -> tuple[int, ...]:
    """Devices of the stages and of the tail, in order."""
    groups = [stage.group for stage in answer.stages]
    if answer.tail and problem.tail:
        groups.append(problem.tail.groups[answer.tail.group].group)
    return tuple(sorted({device for group in groups for device in problem.groups[group].devices}))


def _check_structure(problem: Problem, answer: Answer) -> None:
    assert (answer.tail is None) == (problem.tail is None)
    members = [device for stage in answer.stages for device in problem.groups[stage.group].devices]
    assert len(members) == len(set(members)), "a device runs two stages"
    assert sum(sum(stage.layers) for stage in answer.stages) == problem.layers
    assert min(_counts(answer)) >= 0
    for stage in answer.stages:
        assert sum(stage.layers) > 0
        assert sum(stage.units) == problem.units * sum(stage.layers)
    hosts = [problem.groups[stage.group].host for stage in answer.stages]
    visits = [host for position, host in enumerate(hosts) if position == 0 or hosts[position - 1] != host]
    assert len(visits) == len(set(visits)), "a host is entered twice"
    assert sum(answer.first_rows) == problem.first_rows
    assert sum(answer.last_rows) == problem.last_rows


def _counts(answer: Answer) -> Iterator[int]:
    """Every count of layers, units and rows."""
    for stage in answer.stages:
        yield from stage.layers
        yield from stage.units
    yield from (*answer.first_rows, *answer.last_rows)
    if answer.tail is not None:
        yield from (*answer.tail.units, *(answer.tail.first_rows or ()), *(answer.tail.last_rows or ()))


def _slowest(problem: Problem, counts: tuple[int, ...], each_ps: tuple[int, ...], devices: tuple[int, ...]) -> int:
    times = (n * each_ps[device] for n, device in zip(counts, devices, strict=True))
    return problem.quantum_ns * ceil_div(max(times), PS_PER_NS * problem.quantum_ns)


def _stage(problem: Problem, answer: Answer, position: int, load: list[int]) -> int:
    stage: StageAnswer = answer.stages[position]
    group = problem.groups[stage.group]
    for n, column in zip(stage.layers, group.columns, strict=True):
        for j, device in enumerate(group.devices):
            load[device] += n * column.bytes[j]
    for j, device in enumerate(group.devices):
        load[device] += group.stage_bytes[j] + stage.units[j] * problem.unit_bytes
    columns = sum(n * column.ns for n, column in zip(stage.layers, group.columns, strict=True))
    hop = 0
    if position > 0:
        before = problem.groups[answer.stages[position - 1].group]
        hop = group.hop_ns if before.host == group.host else group.network_hop_ns
    return columns + _slowest(problem, stage.units, problem.unit_ps, group.devices) + hop


def _tables(problem: Problem, answer: Answer, load: list[int]) -> tuple[int, int]:
    first, last = (problem.groups[answer.stages[end].group] for end in (0, -1))
    for rows, device in zip(answer.first_rows, first.devices, strict=True):
        load[device] += rows * problem.first_row_bytes
    for j, (rows, device) in enumerate(zip(answer.last_rows, last.devices, strict=True)):
        load[device] += rows * problem.last_row_bytes + last.last_bytes[j]
    return first.first_ns, last.last_ns + _slowest(problem, answer.last_rows, problem.row_ps, last.devices)


def _tail(problem: Problem, answer: Answer, placed: TailAnswer, load: list[int]) -> int:
    tail = problem.tail
    assert tail is not None
    choice = tail.groups[placed.group]
    group = problem.groups[choice.group]
    first, last = answer.stages[0].group, answer.stages[-1].group
    assert placed.first_rows is not None or (tail.shares_first and first == choice.group)
    assert placed.last_rows is not None or (tail.shares_last and last == choice.group)
    assert sum(placed.units) == tail.units
    for rows, count, each in (
        (placed.first_rows, tail.first_rows, tail.first_row_bytes),
        (placed.last_rows, tail.last_rows, tail.last_row_bytes),
    ):
        if rows is not None:
            assert sum(rows) == count
            for n, device in zip(rows, group.devices, strict=True):
                load[device] += n * each
    column = choice.columns[placed.column]
    for j, device in enumerate(group.devices):
        load[device] += column.bytes[j] + placed.units[j] * tail.unit_bytes
    sender = problem.groups[last]
    receive = choice.receive_inside_ns if sender.devices[0] in group.devices else choice.receive_ns
    network = 0 if sender.host == group.host else tail.network_ns
    rows = placed.last_rows if placed.last_rows is not None else answer.last_rows
    rows_ns = _slowest(problem, rows, tail.row_ps, group.devices)
    return column.ns + _slowest(problem, placed.units, tail.unit_ps, group.devices) + rows_ns + receive + network


def _messages(problem: Problem, used: tuple[int, ...]) -> int:
    per_host = [sum(device in used for device in devices) for devices in problem.hosts]
    inside = sum(ns for ns, count in zip(problem.message_ns, per_host, strict=True) if count > 1)
    return inside + problem.network_message_ns * (sum(count > 0 for count in per_host) - 1)
