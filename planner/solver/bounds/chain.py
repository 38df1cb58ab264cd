"""Bounds of answers by what they use, and what the links of the chain receive from one another on top of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.solver.bounds.stage import Curve
from planner.solver.problem import Group, Option, Problem


@dataclass(frozen=True, kw_only=True, slots=True)
class Excess:
    """How much more than ``least`` an answer takes at least that uses a group, or has a block so placed.

    What is not listed is in no answer.
    """

    least: float
    groups: dict[int, float]
    received: dict[int, float]
    """Of each group: what is counted already for the block ``first``, and for receiving from it, when the group runs
    the first stage."""
    choices: tuple[dict[tuple[int, int], float], ...]
    """Of each block, of each pair of an option and a split of it."""

    @property
    def raised(self) -> float:
        """A bound of every answer: one group at least is used, and each block is somewhere."""
        cheapest = [min(self.groups.values(), default=math.inf)]
        cheapest += [min(each.values(), default=math.inf) for each in self.choices]
        return self.least + max(cheapest)

    def within(self, limit: float) -> "Excess":
        """Without what is in no answer that takes at most ``limit``."""
        room = limit - self.least
        return Excess(
            least=self.least,
            groups={g: excess for g, excess in self.groups.items() if excess <= room},
            received=self.received,
            choices=tuple({key: excess for key, excess in each.items() if excess <= room} for each in self.choices),
        )

    def only(self, other: "Excess") -> "Excess":
        """Without what another has not."""
        return Excess(
            least=self.least,
            groups={g: excess for g, excess in self.groups.items() if g in other.groups},
            received=self.received,
            choices=tuple(
                {key: excess for key, excess in mine.items() if key in theirs}
                for mine, theirs in zip(self.choices, other.choices, strict=True)
            ),
        )


class _Names(dict[tuple[int, ...], int]):
    """Numbers of sets of devices."""

    def __missing__(self, devices: tuple[int, ...]) -> int:
        self[devices] = len(self)
        return self[devices]


class _Link:
    """A link of the chain: all that may be it, as a sender and as a receiver.

    Several candidates may be on one set of devices, and receive alike: ``of`` is which of them a candidate has.
    """

    def __init__(self, problem: Problem, of: Sequence[int], receivers: Sequence[Option | Group], names: _Names) -> None:
        self.of = np.array(of, dtype=np.int64)
        self.devices = np.array([names[each.devices] for each in receivers], dtype=np.int64)
        self.leader = np.array([each.devices[0] for each in receivers], dtype=np.int64)
        self.more = _more_ns(problem, receivers)

    def least(self, costs: Curve) -> Curve:
        """Of candidates with the same devices the least."""
        found = np.full(len(self.leader), math.inf)
        np.minimum.at(found, self.of, costs)
        return found


def _more_ns(problem: Problem, targets: Sequence[Option | Group]) -> Curve:
    """[target, device]: what is received from the device as leader, beyond ``same_ns``, which is counted already."""
    receives = [target.first if isinstance(target, Group) else target.receive for target in targets]
    same = np.array([each.same_ns for each in receives], dtype=np.float64)
    far, near, inside = (
        np.array(ns, dtype=np.float64)[:, None] - same[:, None]
        for ns in zip(*((each.far_ns, each.near_ns, each.inside_ns) for each in receives), strict=True)
    )
    host_of = np.zeros(len(problem.devices), dtype=np.int64)
    for host, devices in enumerate(problem.hosts):
        host_of[list(devices)] = host
    reached = np.zeros((len(targets), len(problem.hosts) + 1), dtype=bool)  # the last: sites over several hosts
    member = np.zeros((len(targets), len(problem.devices)), dtype=bool)
    for number, target in enumerate(targets):
        sites = (min(target.site, len(problem.hosts)),) if isinstance(target, Group) else target.sites
        reached[number, list(sites)] = True
        member[number, list(target.devices)] = True
    found: Curve = np.where(member, inside, np.where(reached[:, host_of], near, far))
    return found


class Chain:
    """Shortest ways through the chain of block, stages, block and block, by what each receives from the one before."""

    def __init__(self, problem: Problem, bounds: Excess) -> None:
        self.problem = problem
        self.bounds = bounds
        self.groups = list(bounds.groups)
        self.keys = [list(known) for known in bounds.choices]

    def excess(self) -> Excess:
        """Of groups and choices: the least that an answer with them takes more than ``least``."""
        if not self.groups or not all(self.keys):
            return Excess(least=self.bounds.least, groups={}, received={}, choices=tuple({} for _ in self.keys))
        names = _Names()
        problem = self.problem
        stages = _Link(problem, range(len(self.groups)), [problem.groups[g] for g in self.groups], names)
        blocks = [
            _Link(problem, [o for o, _ in keys], block.options, names)
            for block, keys in zip(problem.blocks, self.keys, strict=True)
        ]
        own = [
            np.array([known[key] for key in keys]) for known, keys in zip(self.bounds.choices, self.keys, strict=True)
        ]
        stage = np.array([self.bounds.groups[g] for g in self.groups])
        received = np.array([self.bounds.received[g] for g in self.groups])
        to_first = _after(own[0], blocks[0], stages) - received
        to_last = _through(to_first, stage)
        to_head = _after(to_last, stages, blocks[1]) + own[1]
        after_head = np.zeros(len(own[1]))
        if len(blocks) > 2:
            after_head = _before(own[2], blocks[2], blocks[1])
        after_last = _before(own[1] + after_head, blocks[1], stages)
        after_first = _through(after_last, stage)
        found = [own[0] + _before(after_first - received, stages, blocks[0]), to_head + after_head]
        if len(blocks) > 2:
            found.append(own[2] + _after(to_head, blocks[1], blocks[2]))
        ways = float(to_first.min() + after_last.min())
        return Excess(
            least=self.bounds.least,
            groups=dict(zip(self.groups, (stage + ways).tolist(), strict=True)),
            received=self.bounds.received,
            choices=tuple(
                dict(zip(keys, each.tolist(), strict=True)) for keys, each in zip(self.keys, found, strict=True)
            ),
        )


def received(problem: Problem, first: dict[tuple[int, int], float]) -> list[float]:
    """Of each group: what its best choice of the block ``first`` takes, and to receive from it beyond ``same_ns``."""
    names = _Names()
    stages = _Link(problem, range(len(problem.groups)), problem.groups, names)
    block = _Link(problem, [o for o, _ in first], problem.first.options, names)
    least = _after(np.array(list(first.values())), block, stages)
    found: list[float] = (np.floor(1024 * least) / 1024).tolist()  # what only rounding tells apart is equal
    return found


def _through(ends: Curve, stage: Curve) -> Curve:
    """From one end of the stages to the other: they take what the dearer of the two ends takes, at least."""
    order = np.argsort(stage, kind="stable")
    cheaper = np.minimum.accumulate(ends[order]) + stage[order]
    dearer = np.minimum.accumulate((ends + stage)[order][::-1])[::-1]
    found = np.empty(len(stage))
    found[order] = np.minimum(cheaper, dearer)
    return found


def _after(costs: Curve, sources: _Link, targets: _Link) -> Curve:
    """The least with which each target is reached."""
    least = sources.least(costs)
    by_leader = np.full(targets.more.shape[1], math.inf)
    np.minimum.at(by_leader, sources.leader, least)
    same = np.full(max(sources.devices.max(), targets.devices.max()) + 1, math.inf)
    np.minimum.at(same, sources.devices, least)
    found: Curve = np.minimum((targets.more + by_leader).min(1), same[targets.devices])[targets.of]
    return found


def _before(costs: Curve, targets: _Link, sources: _Link) -> Curve:
    """The least that comes after each source."""
    least = targets.least(costs)
    by_leader = (targets.more + least[:, None]).min(0)
    same = np.full(max(sources.devices.max(), targets.devices.max()) + 1, math.inf)
    np.minimum.at(same, targets.devices, least)
    found: Curve = np.minimum(by_leader[sources.leader], same[sources.devices])[sources.of]
    return found
