"""Certificate of an answer: recomputes its time and all loads from the problem alone, and never believes the solver."""

from collections.abc import Iterator
from dataclasses import dataclass

from planner.integers import PS_PER_NS, ceil_div, rounds
from planner.solver.problem import (
    Answer,
    Block,
    BlockAnswer,
    Option,
    Problem,
    Receive,
    RunAnswer,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Certificate:
    """Costs of an answer, term by term; ``step_ns`` is the sum of the times."""

    step_ns: int
    stage_ns: tuple[int, ...]
    """Time per stage, in the order of execution, with what it receives."""
    first_ns: int
    last_ns: int
    """Time of the block ``last``, with what it receives."""
    tail_ns: int
    """Time of the tail, with what it receives; 0 where there is none."""
    message_ns: int
    """Time of telling all devices in use what was accepted."""
    load_bytes: tuple[int, ...]
    """Bytes per device."""


def certify(problem: Problem, answer: Answer) -> Certificate:
    """Check every constraint of an answer and price every term; raise AssertionError for a violated one: our bug."""
    _check_stages(problem, answer)
    load = [0] * len(problem.devices)
    stages = tuple(_stage(problem, answer, position, load) for position in range(len(answer.stages)))
    first_ns = _block(problem, answer, problem.first, answer.first, load)
    last_ns = _block(problem, answer, problem.last, answer.last, load)
    last_ns += _last_receives(problem, answer)
    tail_ns = _tail(problem, answer, load)
    messages = _messages(problem, answer)
    for device, capacity in enumerate(problem.capacity_bytes):
        assert load[device] <= capacity, f"{problem.devices[device]}: {load[device]} of {capacity} bytes"
    return Certificate(
        step_ns=sum(stages) + first_ns + last_ns + tail_ns + messages,
        stage_ns=stages,
        first_ns=first_ns,
        last_ns=last_ns,
        tail_ns=tail_ns,
        message_ns=messages,
        load_bytes=tuple(load),
    )


def devices_in_use(problem: Problem, answer: Answer) -> tuple[int, ...]:
    """Return the devices of all stages and blocks, ascending."""
    used = {device for stage in answer.stages for device in problem.groups[stage.group].devices}
    for block, placed in _blocks(problem, answer):
        used.update(block.options[placed.option].devices)
    return tuple(sorted(used))


def _blocks(problem: Problem, answer: Answer) -> Iterator[tuple[Block, BlockAnswer]]:
    yield problem.first, answer.first
    yield problem.last, answer.last
    assert (problem.tail is None) == (answer.tail is None)
    if problem.tail is not None and answer.tail is not None:
        yield problem.tail, answer.tail


def _check_stages(problem: Problem, answer: Answer) -> None:
    members = [device for stage in answer.stages for device in problem.groups[stage.group].devices]
    assert len(members) == len(set(members)), "a device runs two stages"
    start = 0
    for stage in answer.stages:
        group = problem.groups[stage.group]
        assert stage.num_layers > 0
        kinds = problem.layer_kinds[start : start + stage.num_layers]
        start += stage.num_layers
        for k, (counts, units) in enumerate(zip(stage.layers, stage.units, strict=True)):
            assert min((*counts, *units)) >= 0
            assert len(counts) == len(group.splits[k])
            assert sum(counts) == kinds.count(k), "layers of another place in the sequence"
            assert len(units) == len(group.devices)
            assert sum(units) == problem.kinds[k].units * kinds.count(k)
            if stage.runs is not None:
                _check_runs(stage.runs[k], counts, units, problem.kinds[k].units)
        if problem.counts is not None:
            assert stage.num_layers == problem.counts[stage.group]
    assert start == problem.layers
    sites = [problem.groups[stage.group].site for stage in answer.stages]
    visits = [site for position, site in enumerate(sites) if position == 0 or sites[position - 1] != site]
    assert len(visits) == len(set(visits)), "a site is entered twice"
    order = [stage.group for stage in answer.stages]
    assert not problem.ordered or order == sorted(order)


def _check_runs(runs: tuple[RunAnswer, ...], counts: tuple[int, ...], units: tuple[int, ...], layer_units: int) -> None:
    """Check that runs have all layers of each split, all units of each member, and all units of a layer in each."""
    assert tuple(sum(run.layers for run in runs if run.split == c) for c in range(len(counts))) == counts
    assert tuple(sum(run.layers * run.units[j] for run in runs) for j in range(len(units))) == units
    assert all(run.layers > 0 and min(run.units) >= 0 and sum(run.units) == layer_units for run in runs)


def slowest_ns(counts: tuple[int, ...], member_ps: tuple[int, ...], quantum_ns: int) -> int:
    """Return the time of the slowest share, rounded up to whole quanta."""
    times = (n * ps for n, ps in zip(counts, member_ps, strict=True))
    return quantum_ns * ceil_div(max(times), PS_PER_NS * quantum_ns)


def layer_ps(units: int, rates_ps: tuple[int, ...]) -> int:
    """Return the time of the slowest member under the best division of the units of one layer, by bisection."""
    if not all(rates_ps):
        return 0
    low, high = 0, units * min(rates_ps)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if sum(middle // rate for rate in rates_ps) >= units else (middle, high)
    return high


def received_ns(receive: Receive, devices: tuple[int, ...], source: tuple[int, ...], near: bool) -> int:
    """Return the time in which ``devices`` receive from the leader of ``source``; ``near``: it is in their site."""
    if source == devices:
        return receive.same_ns
    if source[0] in devices:
        return receive.inside_ns
    return receive.near_ns if near else receive.far_ns


def _stage(problem: Problem, answer: Answer, position: int, load: list[int]) -> int:
    stage = answer.stages[position]
    group = problem.groups[stage.group]
    total = 0
    kinds = zip(problem.kinds, group.splits, stage.layers, stage.units, strict=True)
    for k, (kind, splits, counts, units) in enumerate(kinds):
        rates_ps = group.unit_ps(k, kind)
        divided = sum(n * split.ns for n, split in zip(counts, splits, strict=True))
        total += group.quantum_ns * ceil_div(divided, group.quantum_ns)
        for n, split in zip(counts, splits, strict=True):
            for j, device in enumerate(group.devices):
                load[device] += n * split.bytes[j]
        for j, device in enumerate(group.devices):
            load[device] += units[j] * kind.unit_bytes
        in_layers_ps = sum(counts) * layer_ps(kind.units, rates_ps)
        in_layers_ns = group.quantum_ns * ceil_div(in_layers_ps, PS_PER_NS * group.quantum_ns)
        total += max(slowest_ns(units, rates_ps, group.quantum_ns), in_layers_ns)
    for j, device in enumerate(group.devices):
        load[device] += group.stage_bytes[j]
    if position == 0:
        source = problem.first.options[answer.first.option].devices
        return total + received_ns(group.first, group.devices, source, problem.host_of[source[0]] == group.site)
    before = problem.groups[answer.stages[position - 1].group]
    return total + (group.hop_ns if before.site == group.site else group.network_hop_ns)


def _block(problem: Problem, answer: Answer, block: Block, placed: BlockAnswer, load: list[int]) -> int:
    """Return the time of a block, without receiving; add its bytes to the load."""
    option = block.options[placed.option]
    split = option.splits[placed.split]
    total = split.ns
    for j, device in enumerate(option.devices):
        load[device] += split.bytes[j]
    assert len(placed.shares) == len(block.axes)
    for a, (axis, own) in enumerate(zip(block.axes, placed.shares, strict=True)):
        shares, alone = own, None
        if axis.shared is not None:
            owner, theirs = _owner(problem, answer, axis.shared)
            assert (own is None) == (owner.devices == option.devices), "shared on the same devices, and only there"
            shares = theirs if own is None else own
            alone = owner.devices[0] if len(owner.devices) == 1 else None
        assert shares is not None
        assert len(shares) == len(option.devices)
        assert min(shares) >= 0
        assert sum(shares) == axis.count
        total += slowest_ns(shares, option.piece_ps(a, axis), option.quantum_ns)
        for n, device in zip(shares, option.devices, strict=True):
            own_bytes = 0 if own is None or device == alone else axis.each_bytes
            load[device] += n * (own_bytes + axis.read_bytes[device])
    return total


def _owner(problem: Problem, answer: Answer, name: str) -> tuple[Option, tuple[int, ...] | None]:
    """Return the option of a block that others may share with, and how its axis is dealt out there."""
    first = problem.first.options[answer.first.option]
    if name == "first":
        return first, answer.first.shares[0]
    (shares,) = answer.last.shares
    return problem.last.options[answer.last.option], answer.first.shares[0] if shares is None else shares


def _last_receives(problem: Problem, answer: Answer) -> int:
    option = problem.last.options[answer.last.option]
    source = problem.groups[answer.stages[-1].group].devices
    return received_ns(option.receive, option.devices, source, problem.host_of[source[0]] in option.sites)


def _tail(problem: Problem, answer: Answer, load: list[int]) -> int:
    if problem.tail is None or answer.tail is None:
        return 0
    option = problem.tail.options[answer.tail.option]
    source = problem.last.options[answer.last.option].devices
    received = received_ns(option.receive, option.devices, source, problem.host_of[source[0]] in option.sites)
    return _block(problem, answer, problem.tail, answer.tail, load) + received


def _messages(problem: Problem, answer: Answer) -> int:
    used, blocks = devices_in_use(problem, answer), [b.options[own.option] for b, own in _blocks(problem, answer)]
    awake = set(used) <= set(blocks[-1].devices)
    per_host = [sum(device in used for device in devices) for devices in problem.hosts]
    inside = 0
    hosts = zip(per_host, problem.message_ns, problem.awake_ns, problem.waits_ns, strict=True)
    for count, ns, awake_ns, waits_ns in hosts:
        asleep_ns = ns + waits_ns[count - 1] if waits_ns and count else ns
        inside += ns * rounds(count) if awake_ns is None else (awake_ns if awake else asleep_ns) * (count > 1)
    return inside + problem.network_message_ns * (sum(count > 0 for count in per_host) - 1)
