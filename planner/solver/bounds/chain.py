"""Bounds with what the links of the chain receive from one another: a shortest path over the answer's chain.

Bounds of the parts of an answer (:class:`PartBounds`) count of every message only the cheapest case, ``same_ns``. What
a receiver takes beyond that depends on the leader of the sender alone, so the least of an answer is a shortest path

    first block -> first stage ~> last stage -> last block -> tail block

whose nodes are choices and groups, whose edges are the receiver's ns beyond ``same_ns``, and in which the stages from g
to h take max(groups[g], groups[h]) beyond the least. Forward and backward shortest paths give, for each node, the least
answer through it. With n groups and choices on D devices it is O(n D + n log n). It is exact for the messages of the
chain; for everything else it is as good as the bounds of the parts.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from planner.solver import limits
from planner.solver.bounds.excess import Excess, no_answer
from planner.solver.bounds.pieces import Floats
from planner.solver.problem import Group, Option, Problem


@dataclass(frozen=True, kw_only=True, slots=True)
class PartBounds:
    """Bounds of the parts of an answer, which add up.

    An answer that uses group g and has choice x_b of each block b takes at least

        excess.least + excess.groups[g] + Σ_b excess.choices[b][x_b]      ns
    """

    excess: Excess
    first_ns: Sequence[float]
    """For each group of the problem: the ns, in its excess, of the block ``first`` and of receiving from it when the
    group runs the first stage."""
    beyond_ns: Sequence[Sequence[Floats]]
    """Per group of the problem, kind and split: ns that a layer which is divided so adds to the bound of the group."""
    reach: float
    """ns beyond the least up to which it does: at most those of an answer with groups that were bounded otherwise."""

    def kept_by(self, other: Excess) -> "PartBounds":
        """Drop groups and choices that ``other`` does not list."""
        return replace(self, excess=self.excess.kept_by(other))

    def left_out(self, bounds: Excess, limit: float) -> Iterator[tuple[int, int, int]]:
        """Yield the splits (group, kind, split) that are in no answer of at most ``limit`` ns.

        ``bounds``: these bounds with the messages of the chain.
        """
        if limit >= self.excess.least + self.reach:
            return
        for g, ns in bounds.groups.items():
            room = limit - bounds.least - ns + limits.SPLIT_MARGIN_NS
            for k, beyond in enumerate(self.beyond_ns[g]):
                yield from ((g, k, c) for c in np.flatnonzero(beyond > room).tolist())


@dataclass(frozen=True, kw_only=True)
class Receivers:
    """ns of receiving from each device as leader, beyond ``same_ns``, of all groups and options; computed once."""

    problem: Problem

    @cached_property
    def groups_ns(self) -> Floats:
        """[group, device], of the groups as first stages."""
        return _extra_ns(self.problem, self.problem.groups)

    @cached_property
    def options_ns(self) -> tuple[Floats, ...]:
        """For each block [option, device]."""
        return tuple(_extra_ns(self.problem, block.options) for block in self.problem.blocks)


def chained(receivers: Receivers, parts: PartBounds) -> Excess:
    """Return the bounds of groups and choices with all messages of the chain."""
    problem, excess = receivers.problem, parts.excess
    if not excess.groups or not all(excess.choices):
        return no_answer(problem)
    groups, keys = list(excess.groups), [list(known) for known in excess.choices]
    device_sets = _DeviceSets()
    stages = _Link(range(len(groups)), [problem.groups[g] for g in groups], receivers.groups_ns[groups], device_sets)
    blocks = [_block_link(receivers, b, choices, device_sets) for b, choices in enumerate(keys)]
    stage_ns = np.array([excess.groups[g] for g in groups])
    first_ns = np.array([parts.first_ns[g] for g in groups])
    block_ns = [np.array([known[key] for key in choices]) for known, choices in zip(excess.choices, keys, strict=True)]
    path = _Path(stages, blocks, stage_ns, block_ns, first_ns)
    return Excess(
        least=excess.least,
        groups=dict(zip(groups, path.through_groups().tolist(), strict=True)),
        choices=tuple(
            dict(zip(choices, ns.tolist(), strict=True))
            for choices, ns in zip(keys, path.through_choices(), strict=True)
        ),
    )


def first_stage_ns(receivers: Receivers, first: dict[tuple[int, int], float]) -> list[float]:
    """Return for each group, as the first stage, the ns of the best choice of the block ``first`` and of receiving from
    it beyond ``same_ns``.

    ``first``: ns of each choice of that block. Results are rounded down to 1/1024 ns, so that groups that differ by
    rounding errors alone are equal.
    """
    device_sets, groups = _DeviceSets(), receivers.problem.groups
    stages = _Link(range(len(groups)), groups, receivers.groups_ns, device_sets)
    block = _block_link(receivers, 0, list(first), device_sets)
    least = _into(np.array(list(first.values())), block, stages)
    rounded: list[float] = (np.floor(1024 * least) / 1024).tolist()
    return rounded


# ---- links ----


class _DeviceSets(dict[tuple[int, ...], int]):
    """Consecutive numbers of sets of devices, given out on first use."""

    def __missing__(self, devices: tuple[int, ...]) -> int:
        self[devices] = len(self)
        return self[devices]


class _Link:
    """All candidates of one link of the chain, as senders and as receivers.

    Candidates that are divided differently on the same devices receive alike: they share a *target*.
    """

    def __init__(
        self, target_of: Sequence[int], targets: Sequence[Option | Group], extra_ns: Floats, device_sets: _DeviceSets
    ) -> None:
        """``extra_ns``: [target, device], of receiving from the device as leader, beyond ``same_ns``."""
        self.target_of = np.array(target_of, dtype=np.int64)
        """Index of each candidate's target."""
        self.device_set = np.array([device_sets[target.devices] for target in targets], dtype=np.int64)
        self.leader = np.array([target.devices[0] for target in targets], dtype=np.int64)
        self.extra_ns = extra_ns

    def least(self, costs: Floats) -> Floats:
        """Return the least of the candidates' costs for each target."""
        least = np.full(len(self.leader), math.inf)
        np.minimum.at(least, self.target_of, costs)
        return least


def _block_link(receivers: Receivers, b: int, choices: Sequence[tuple[int, int]], device_sets: _DeviceSets) -> _Link:
    options = list(receivers.problem.blocks)[b].options
    return _Link([option for option, _ in choices], options, receivers.options_ns[b], device_sets)


def _extra_ns(problem: Problem, targets: Sequence[Option | Group]) -> Floats:
    """Return [target, device]: ns of receiving from the device as leader, beyond ``same_ns``."""
    receives = [target.first if isinstance(target, Group) else target.receive for target in targets]
    same = np.array([receive.same_ns for receive in receives], dtype=np.float64)
    far, near, inside = (
        np.array(ns, dtype=np.float64)[:, None] - same[:, None]
        for ns in zip(*((receive.far_ns, receive.near_ns, receive.inside_ns) for receive in receives), strict=True)
    )
    host_of = np.zeros(len(problem.devices), dtype=np.int64)
    for host, devices in enumerate(problem.hosts):
        host_of[list(devices)] = host
    in_site = np.zeros((len(targets), len(problem.hosts) + 1), dtype=bool)  # last column: sites over several hosts
    is_member = np.zeros((len(targets), len(problem.devices)), dtype=bool)
    for number, target in enumerate(targets):
        sites = (min(target.site, len(problem.hosts)),) if isinstance(target, Group) else target.sites
        in_site[number, list(sites)] = True
        is_member[number, list(target.devices)] = True
    extra: Floats = np.where(is_member, inside, np.where(in_site[:, host_of], near, far))
    return extra


# ---- shortest paths ----


class _Path:
    """Least ns beyond the bound of all answers: from the start of the chain to each link, and from there to its end."""

    def __init__(
        self,
        stages: _Link,
        blocks: Sequence[_Link],
        stage_ns: Floats,
        block_ns: Sequence[Floats],
        first_ns: Floats,
    ) -> None:
        """``stage_ns``, ``block_ns``: excess of each group and choice; ``first_ns``: the part of ``stage_ns`` that a
        group has only as the first stage, which the edge into it replaces."""
        self.stages = stages
        self.blocks = blocks
        self.stage_ns = stage_ns
        self.block_ns = block_ns
        self.first_ns = first_ns
        self.to_first = _into(block_ns[0], blocks[0], stages) - first_ns
        self.to_last_block = _into(_across_stages(self.to_first, stage_ns), stages, blocks[1]) + block_ns[1]
        self.after_last_block = np.zeros(len(block_ns[1]))
        if len(blocks) > 2:
            self.after_last_block = _out_of(block_ns[2], blocks[2], blocks[1])
        self.after_last_stage = _out_of(block_ns[1] + self.after_last_block, blocks[1], stages)

    def through_groups(self) -> Floats:
        """Return the least answer with each group: anywhere between the cheapest ends."""
        return self.stage_ns + float(self.to_first.min() + self.after_last_stage.min())

    def through_choices(self) -> list[Floats]:
        """Return the least answer with each choice of each block."""
        after_first_block = _across_stages(self.after_last_stage, self.stage_ns) - self.first_ns
        through = [
            self.block_ns[0] + _out_of(after_first_block, self.stages, self.blocks[0]),
            self.to_last_block + self.after_last_block,
        ]
        if len(self.blocks) > 2:
            through.append(self.block_ns[2] + _into(self.to_last_block, self.blocks[1], self.blocks[2]))
        return through


def _across_stages(ends: Floats, stage_ns: Floats) -> Floats:
    """Return for each group h: min over g of ends[g] + max(stage_ns[g], stage_ns[h])."""
    order = np.argsort(stage_ns, kind="stable")
    cheaper = np.minimum.accumulate(ends[order]) + stage_ns[order]
    dearer = np.minimum.accumulate((ends + stage_ns)[order][::-1])[::-1]
    across = np.empty(len(stage_ns))
    across[order] = np.minimum(cheaper, dearer)
    return across


def _into(costs: Floats, sources: _Link, targets: _Link) -> Floats:
    """Return for each candidate of ``targets`` the least cost of a source plus the edge from it."""
    least = sources.least(costs)
    by_leader = np.full(targets.extra_ns.shape[1], math.inf)
    np.minimum.at(by_leader, sources.leader, least)
    same = np.full(max(sources.device_set.max(), targets.device_set.max()) + 1, math.inf)
    np.minimum.at(same, sources.device_set, least)
    reached: Floats = np.minimum((targets.extra_ns + by_leader).min(1), same[targets.device_set])
    return reached[targets.target_of]


def _out_of(costs: Floats, targets: _Link, sources: _Link) -> Floats:
    """Return for each candidate of ``sources`` the least edge from it plus the cost of its target."""
    least = targets.least(costs)
    by_leader = (targets.extra_ns + least[:, None]).min(0)
    same = np.full(max(sources.device_set.max(), targets.device_set.max()) + 1, math.inf)
    np.minimum.at(same, targets.device_set, least)
    left: Floats = np.minimum(by_leader[sources.leader], same[sources.device_set])
    return left[sources.target_of]
