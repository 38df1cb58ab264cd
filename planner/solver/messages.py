"""Messages in the CP-SAT model: what each link of the chain receives, and what all devices in use are told."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from planner.integers import rounds
from planner.solver.blocks import FIRST, LAST, TAIL, Blocks
from planner.solver.order import Order
from planner.solver.problem import Problem, Receive
from planner.solver.restriction import Restricted
from planner.solver.stages import Stages, containing
from planner.solver.variables import Bool, Builder, Devices, Linear


@dataclass(frozen=True, kw_only=True, slots=True)
class _Candidate:
    """A possible sender or receiver of one link of the chain."""

    on: Bool
    """It is the one."""
    devices: Devices


def receive_ns(builder: Builder, restricted: Restricted, order: Order, blocks: Blocks) -> Iterator[Linear]:
    """Yield the terms of receiving: the first stage from ``first``, ``last`` from the last stage, the tail from it."""
    problem = restricted.problem
    chain = _Chain(builder=builder, host_of=problem.host_of)
    placed = [
        [_Candidate(on=on, devices=devices) for devices, on in on_devices.items()] for on_devices in blocks.on_devices
    ]
    for on, group in zip(order.first, problem.groups, strict=True):
        target = _Candidate(on=on, devices=group.devices)
        yield from chain.receive(target, group.first, {group.site}, placed[FIRST])
    ends = [_Candidate(on=on, devices=group.devices) for on, group in zip(order.last, problem.groups, strict=True)]
    for b, sources in ((LAST, ends), (TAIL, placed[LAST]))[: len(placed) - 1]:
        options = {choice.option.devices: choice.option for choice in restricted.choices[b]}
        for target in placed[b]:
            option = options[target.devices]
            yield from chain.receive(target, option.receive, option.sites, sources)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Chain:
    builder: Builder
    host_of: Sequence[int]

    def receive(
        self, target: _Candidate, receive: Receive, sites: Collection[int], sources: Sequence[_Candidate]
    ) -> Iterator[Linear]:
        """Yield the cost from afar where the target is on, and what nearer senders save of it, one after another.

        Exactly one source is on. A sender on the same devices is inside too, and one inside is near, so the savings
        far - near, near - inside and inside - same add up.
        """

        def senders(test: Callable[[_Candidate], bool]) -> list[Bool]:
            return [source.on for source in sources if test(source)]

        same = senders(lambda source: source.devices == target.devices)
        inside = senders(lambda source: source.devices[0] in target.devices)
        near = senders(lambda source: source.devices[0] in target.devices or self.host_of[source.devices[0]] in sites)
        model = self.builder.model
        costs = (receive.far_ns, receive.near_ns, receive.inside_ns, receive.same_ns)
        yield receive.far_ns * target.on
        for more, less, nearer in zip(costs[:-1], costs[1:], (near, inside, same), strict=True):
            if more == less or not nearer:
                continue
            if len(nearer) == len(sources):
                yield (less - more) * target.on
                continue
            saved = self.builder.flag("saved")  # the target is on, and one of the nearer senders is
            model.add_implication(saved, target.on)
            model.add(saved <= sum(nearer))
            model.add(saved >= target.on + sum(nearer) - 1)
            yield (less - more) * saved


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """Devices in use, and the time of telling them what was accepted."""

    used: tuple[Bool, ...]
    """used[d]: device d runs a stage or has a block."""
    time_ns: tuple[Linear, ...]


def add_use(builder: Builder, problem: Problem, stages: Stages, blocks: Blocks) -> Use:
    """Add the devices in use: each is told what was accepted, once per host over the network, then inside the host.

    There the devices that know it double with each round: round r is needed by more than 2^(r - 1) devices in use.
    Where devices that are awake are told faster, all have the message at once: there is one round, for those that sleep
    a longer one, the longer the more they are.
    """
    model = builder.model
    used = tuple(builder.flag(f"used{d}") for d in range(len(problem.devices)))
    # reached[h]: a device of host h is in use.
    reached = [builder.flag(f"reached{h}") for h in range(len(problem.hosts))]
    for device, variable in enumerate(used):
        users = [stages.runs[index] for index in containing(problem, device)]
        for on_devices in blocks.on_devices:
            users += [on for devices, on in on_devices.items() if device in devices]
        model.add_max_equality(variable, users) if users else model.add(variable == 0)
    time_ns: list[Linear] = []
    asleep = None if problem.awake_ns.count(None) == len(problem.hosts) else _asleep(builder, used, blocks)
    for host, devices in enumerate(problem.hosts):
        awake_ns = problem.awake_ns[host]
        several = rounds(len(devices)) if awake_ns is None else min(1, len(devices) - 1)
        for number in range(several if problem.message_ns[host] else 0):
            known = 1 << number
            needed = builder.flag(f"round{host}_{number}")  # more devices of the host are in use than know it before
            model.add(sum(used[d] for d in devices) <= known + (len(devices) - known) * needed)
            if asleep is None or awake_ns is None:
                time_ns.append(problem.message_ns[host] * needed)
                continue
            roused = builder.flag(f"roused{host}")  # several devices of the host are told, who sleep
            model.add(roused >= needed + asleep - 1)
            time_ns += awake_ns * needed, (problem.message_ns[host] - awake_ns) * roused
        if asleep is not None and awake_ns is not None:
            time_ns += _waiting(builder, problem.waits_ns[host], [used[d] for d in devices], asleep)
        for device in devices:
            model.add_implication(used[device], reached[host])
    time_ns.append(problem.network_message_ns * (sum(reached) - 1))
    return Use(used=used, time_ns=tuple(time_ns))


def _waiting(builder: Builder, waits_ns: Sequence[int], used: Sequence[Bool], asleep: Bool) -> Iterator[Linear]:
    """Yield by how much later the devices in use of a host are told, of which some sleep, with each one more."""
    for count, (before, ns) in enumerate(pairwise(waits_ns), 1):
        if ns > before:
            crowded = builder.flag("crowded")  # more than ``count`` devices of the host are told, and some sleep
            builder.model.add(sum(used) <= count + (len(used) - count) * (crowded + 1 - asleep))
            yield (ns - before) * crowded


def _asleep(builder: Builder, used: Sequence[Bool], blocks: Blocks) -> Bool:
    """Return whether a device in use is not on the last link of the chain."""
    asleep = builder.flag("asleep")
    for device, variable in enumerate(used):
        ends = [on for devices, on in blocks.on_devices[-1].items() if device in devices]
        builder.model.add(variable <= sum(ends) + asleep)
    return asleep
