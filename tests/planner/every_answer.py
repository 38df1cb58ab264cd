"""Enumerate every Answer of the tiniest Problems and price each one by the field definitions of Problem.

The reference for :mod:`tests.planner.brute_force`; the two price answers with separate code, so that one mistake cannot
hide in both.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import Literal

from planner.solver.problem import Answer, Axis, Block, BlockAnswer, Group, Option, Problem, Receive, StageAnswer
from tests.planner.brute_force import divisions, member_ps


def every_answer(problem: Problem) -> Iterator[Answer]:
    """Yield every answer, also those that exceed a capacity."""
    for first, last in product(_placed(problem.first), _placed(problem.last)):
        for tail in [None] if problem.tail is None else _placed(problem.tail):
            blocks = _share(problem, [first, last] if tail is None else [first, last, tail])
            if blocks is not None:
                for stages in _stages(problem, (), 0):
                    yield Answer(stages=stages, first=blocks[0], last=blocks[1], tail=blocks[2] if tail else None)


def _placed(block: Block) -> Iterator[BlockAnswer]:
    for o, option in enumerate(block.options):
        for c in range(len(option.splits)):
            for shares in product(*(list(divisions(axis.count, len(option.devices))) for axis in block.axes)):
                yield BlockAnswer(option=o, split=c, shares=shares)


def _share(problem: Problem, blocks: list[BlockAnswer]) -> list[BlockAnswer] | None:
    """Return the blocks with shared axes as None, or None for duplicates.

    A shared axis takes its division from another block. Of its own divisions only the one with all pieces on the first
    device counts, so that each answer is enumerated once.
    """
    devices = [block.options[placed.option].devices for block, placed in zip(problem.blocks, blocks, strict=True)]
    shared_blocks = []
    for block, placed, members in zip(problem.blocks, blocks, devices, strict=True):
        shares: list[tuple[int, ...] | None] = []
        for axis, dealt in zip(block.axes, placed.shares, strict=True):
            shared = axis.shared is not None and devices[("first", "last").index(axis.shared)] == members
            if shared and dealt is not None and dealt[0] != axis.count:
                return None
            shares.append(None if shared else dealt)
        shared_blocks.append(dataclasses.replace(placed, shares=tuple(shares)))
    return shared_blocks


def _stages(problem: Problem, before: tuple[int, ...], start: int) -> Iterator[tuple[StageAnswer, ...]]:
    kinds = [kind for kind, count in problem.sequence for _ in range(count)]
    if start == len(kinds):
        yield ()
        return
    for g, group in enumerate(problem.groups):
        earlier = [problem.groups[other] for other in before]
        again = any(device in other.devices for other in earlier for device in group.devices)
        back = group.site in [other.site for other in earlier] and group.site != earlier[-1].site
        if again or back or (problem.ordered and g < max(before, default=-1)):
            continue
        for end in range(start + 1, len(kinds) + 1):
            if problem.counts is not None and problem.counts[g] != end - start:
                continue
            of_kind = [kinds[start:end].count(k) for k in range(len(problem.kinds))]
            if any(n and not splits for n, splits in zip(of_kind, group.splits, strict=True)):
                continue
            mixtures = [list(divisions(n, len(c))) if c else [()] for n, c in zip(of_kind, group.splits, strict=True)]
            units = [
                list(divisions(n * k.units, len(group.devices))) for n, k in zip(of_kind, problem.kinds, strict=True)
            ]
            for rest in _stages(problem, (*before, g), end):
                for layers, dealt in product(product(*mixtures), product(*units)):
                    yield (StageAnswer(group=g, layers=layers, units=dealt), *rest)


def value(problem: Problem, answer: Answer) -> tuple[int, ...] | None:
    """Return (goal values, step time, number of stages), or None if a device exceeds its capacity."""
    load = load_bytes(problem, answer)
    if any(capacity < nbytes for capacity, nbytes in zip(problem.capacity_bytes, load, strict=True)):
        return None
    return (*_goal(problem, answer, load), step_ns(problem, answer), len(answer.stages))


def step_ns(problem: Problem, answer: Answer) -> int:
    stages = sum(_stage_ns(problem, stage) for stage in answer.stages)
    blocks = sum(_block_ns(problem, answer, number) for number in range(len(_blocks(answer))))
    return stages + _hops_ns(problem, answer) + blocks + _links_ns(problem, answer) + _messages_ns(problem, answer)


def load_bytes(problem: Problem, answer: Answer) -> list[int]:
    load = [0] * len(problem.devices)
    for stage in answer.stages:
        group = problem.groups[stage.group]
        for member, device in enumerate(group.devices):
            load[device] += group.stage_bytes[member]
            for kind, splits, counts, units in zip(problem.kinds, group.splits, stage.layers, stage.units, strict=True):
                load[device] += kind.unit_bytes * units[member]
                load[device] += sum(n * split.bytes[member] for n, split in zip(counts, splits, strict=True))
    for block, placed, option in zip(problem.blocks, _blocks(answer), _options(problem, answer), strict=True):
        for member, device in enumerate(option.devices):
            load[device] += option.splits[placed.split].bytes[member]
            for axis, shares in zip(block.axes, placed.shares, strict=True):
                held = shares is not None and not _has_alone(problem, answer, axis.shared, device)
                load[device] += axis.each_bytes * shares[member] if shares is not None and held else 0
                load[device] += axis.read_bytes[device] * _read(answer, axis, shares)[member]
    return load


def _has_alone(problem: Problem, answer: Answer, name: Literal["first", "last"] | None, device: int) -> bool:
    """Return whether a block is on this device alone."""
    first, last, *_ = _options(problem, answer)
    return name is not None and (first if name == "first" else last).devices == (device,)


def _read(answer: Answer, axis: Axis, shares: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the pieces of an axis that each member reads: its own, or those of the block that holds them."""
    lender = {"first": answer.first, "last": answer.last, None: None}[axis.shared]
    while shares is None:
        assert lender is not None
        shares, lender = lender.shares[0], answer.first
    return shares


def _goal(problem: Problem, answer: Answer, load: Sequence[int]) -> list[int]:
    if problem.goal == "time":
        return []
    if problem.goal == "fill":
        return [
            -sum(stage.num_layers for stage in answer.stages if stage.group == group)
            for group in range(len(problem.groups))
        ]
    granule = 1
    while 4096 * granule <= max(problem.capacity_bytes):
        granule *= 2
    free = [problem.capacity_bytes[d] - load[d] for d in range(len(load)) if d != problem.spare]
    balance = -(min(free) // granule)
    return [balance] if problem.spare is None else [(load[problem.spare] + granule - 1) // granule, balance]


def _blocks(answer: Answer) -> list[BlockAnswer]:
    return [answer.first, answer.last] + ([answer.tail] if answer.tail else [])


def _options(problem: Problem, answer: Answer) -> list[Option]:
    return [block.options[placed.option] for block, placed in zip(problem.blocks, _blocks(answer), strict=True)]


def _slowest_ns(over: Group | Option, counts: Sequence[int], member_ps: Sequence[int]) -> int:
    quantum_ps = 1000 * over.quantum_ns
    times = [count * ps for ps, count in zip(member_ps, counts, strict=True)]
    return max((time + quantum_ps - 1) // quantum_ps for time in times) * over.quantum_ns


def _stage_ns(problem: Problem, stage: StageAnswer) -> int:
    group = problem.groups[stage.group]
    ns = 0
    kinds = zip(problem.kinds, group.splits, stage.layers, stage.units, strict=True)
    for k, (kind, splits, counts, units) in enumerate(kinds):
        rates = member_ps(group, k, kind.unit_ps)
        divided = sum(count * split.ns for split, count in zip(splits, counts, strict=True))
        ns += (divided + group.quantum_ns - 1) // group.quantum_ns * group.quantum_ns
        ns += max(_slowest_ns(group, units, rates), _in_layers_ns(group, kind.units, rates, sum(counts)))
    return ns


def _in_layers_ns(group: Group, units: int, rates: Sequence[int], layers: int) -> int:
    """Return the time of the units of so many layers, each of them divided as well as whole units can be."""
    slowest = [
        max(n * ps for n, ps in zip(dealt, rates, strict=True)) for dealt in divisions(units, len(group.devices))
    ]
    quantum_ps = 1000 * group.quantum_ns
    return (layers * min(slowest) + quantum_ps - 1) // quantum_ps * group.quantum_ns


def _hops_ns(problem: Problem, answer: Answer) -> int:
    groups = [problem.groups[stage.group] for stage in answer.stages]
    return sum(
        after.hop_ns if before.site == after.site else after.network_hop_ns for before, after in pairwise(groups)
    )


def _block_ns(problem: Problem, answer: Answer, number: int) -> int:
    block, placed, option = list(problem.blocks)[number], _blocks(answer)[number], _options(problem, answer)[number]
    ns = option.splits[placed.split].ns
    for a, (axis, shares) in enumerate(zip(block.axes, placed.shares, strict=True)):
        ns += _slowest_ns(option, _read(answer, axis, shares), member_ps(option, a, axis.each_ps))
    return ns


def _links_ns(problem: Problem, answer: Answer) -> int:
    first, last, *tail = _options(problem, answer)
    start, end = (problem.groups[answer.stages[at].group] for at in (0, -1))
    ns = _receive_ns(problem, first.devices, start.devices, [start.site], start.first)
    ns += _receive_ns(problem, end.devices, last.devices, last.sites, last.receive)
    return ns + sum(_receive_ns(problem, last.devices, option.devices, option.sites, option.receive) for option in tail)


def _receive_ns(
    problem: Problem, sender: tuple[int, ...], devices: tuple[int, ...], sites: Sequence[int], cost: Receive
) -> int:
    leader = sender[0]
    (host,) = [h for h, members in enumerate(problem.hosts) if leader in members]
    if sender == devices:
        return cost.same_ns
    if leader in devices:
        return cost.inside_ns
    return cost.near_ns if host in sites else cost.far_ns


def _messages_ns(problem: Problem, answer: Answer) -> int:
    used = {device for stage in answer.stages for device in problem.groups[stage.group].devices}
    used |= {device for option in _options(problem, answer) for device in option.devices}
    in_use = [len(used.intersection(host)) for host in problem.hosts]
    inside, end = 0, set(_options(problem, answer)[-1].devices)
    for count, ns, awake_ns, waits_ns in zip(
        in_use, problem.message_ns, problem.awake_ns, problem.waits_ns, strict=True
    ):
        if count > 1:
            asleep_ns = ns + sum(waits_ns[count - 1 : count])
            told_ns = asleep_ns if awake_ns is None or not used.issubset(end) else awake_ns
            inside += ns * math.ceil(math.log2(count)) if awake_ns is None else told_ns
    return inside + problem.network_message_ns * (sum(count > 0 for count in in_use) - 1)
