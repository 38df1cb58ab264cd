"""Order of the stages in the CP-SAT model: which is first and last, where each site is entered, and what hops take.

The stages of a site follow one another, so a site is entered once. Three encodings of that, by what the problem asks:

* all layers alike: only the stage that enters each site, and the first and the last one, make a difference;
* groups in a given order (``Problem.ordered``): stages run in the order of their groups;
* layers of several kinds, or stages that are compared with an earlier answer: stages are intervals of the sequence.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations

from ortools.sat.python import cp_model

from planner.solver.problem import Problem
from planner.solver.stages import Stages
from planner.solver.variables import Bool, Builder, Linear


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """Variables of the order, by group G."""

    enters: tuple[Bool, ...]
    """enters[G]: G runs the first of the stages of its site."""
    first: tuple[Bool, ...]
    """first[G]: G runs the first stage of all."""
    last: tuple[Bool, ...]
    """last[G]: G runs the last stage of all."""
    start: tuple[cp_model.IntVar, ...]
    """start[G]: layers before G's stage, 0 where it runs none; empty unless stages are intervals."""
    groups_of: Mapping[int, tuple[int, ...]]
    """Groups of each site, ascending."""
    time_ns: tuple[Linear, ...]
    """Hops, each counted where it arrives."""


def add_order(builder: Builder, problem: Problem, stages: Stages, *, placed: bool) -> Order:
    """Add the order of the stages; ``placed``: as intervals of the sequence, whatever the problem."""
    groups = range(len(problem.groups))
    enters, first, last = (tuple(builder.flag(f"{name}{i}") for i in groups) for name in ("enters", "first", "last"))
    builder.model.add_exactly_one(first)
    builder.model.add_exactly_one(last)
    for i in groups:
        # The first stage of all is the first of its site; and a group is in the order only where it runs a stage.
        builder.model.add_implication(enters[i], stages.runs[i])
        builder.model.add_implication(first[i], enters[i])
        builder.model.add_implication(last[i], stages.runs[i])
    sites = sorted({group.site for group in problem.groups})
    groups_of = {site: tuple(i for i, group in enumerate(problem.groups) if group.site == site) for site in sites}
    # visited[site]: a group of the site runs a stage. Exactly one of them then enters it.
    visited = {site: builder.flag(f"site{site}") for site in sites}
    for site, members in groups_of.items():
        builder.model.add(sum(enters[i] for i in members) == visited[site])
        for i in members:
            builder.model.add_implication(stages.runs[i], visited[site])
    encoding = _Encoding(
        builder=builder,
        problem=problem,
        stages=stages,
        enters=enters,
        first=first,
        last=last,
        groups_of=groups_of,
        visited=visited,
    )
    start: tuple[cp_model.IntVar, ...] = ()
    if placed or len(problem.sequence) > 1:
        start = encoding.intervals()
    elif problem.ordered:
        encoding.listed()
    else:
        encoding.alike()
    return Order(
        enters=enters,
        first=first,
        last=last,
        start=start,
        groups_of=groups_of,
        time_ns=tuple(_hops_ns(problem, stages, enters, first)),
    )


def _hops_ns(problem: Problem, stages: Stages, enters: Sequence[Bool], first: Sequence[Bool]) -> Iterator[Linear]:
    """Yield the hop to each stage: inside its site, or from another one where it enters; none to the first of all."""
    for i, group in enumerate(problem.groups):
        yield group.hop_ns * (stages.runs[i] - enters[i])
        yield group.network_hop_ns * (enters[i] - first[i])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Encoding:
    """Constraints that make ``enters``, ``first`` and ``last`` those of an order in which no site is entered twice."""

    builder: Builder
    problem: Problem
    stages: Stages
    enters: Sequence[Bool]
    first: Sequence[Bool]
    last: Sequence[Bool]
    groups_of: Mapping[int, Sequence[int]]
    visited: Mapping[int, Bool]

    def alike(self) -> None:
        """Constrain stages of layers that are all alike: they can be put in order, those of a site together."""
        model, runs = self.builder.model, self.stages.runs
        for members in self.groups_of.values():
            for i in members:
                # The stage that enters a site is its last only when it is its only one.
                slack = len(self.problem.devices) * (2 - self.enters[i] - self.last[i])
                model.add(sum(runs[other] for other in members) <= 1 + slack)
            # A site that has the first and the last stage is the only one.
            ends = sum(self.first[i] + self.last[i] for i in members)
            model.add(sum(self.visited.values()) <= 1 + len(self.groups_of) * (2 - ends))

    def listed(self) -> None:
        """Constrain stages in the order of their groups: none runs before the first one or after the last one."""
        model, runs, groups = self.builder.model, self.stages.runs, self.problem.groups
        for i, j in combinations(range(len(runs)), 2):
            model.add_implication(self.first[j], runs[i].negated())
            model.add_implication(self.last[i], runs[j].negated())
            if groups[i].site == groups[j].site:
                model.add_implication(self.enters[j], runs[i].negated())
                for between in range(i + 1, j):
                    if groups[between].site != groups[i].site:
                        # No stage of another site is between two of one site.
                        model.add_bool_or([runs[g].negated() for g in (i, between, j)])

    def intervals(self) -> tuple[cp_model.IntVar, ...]:
        """Make stages disjoint intervals of the sequence; return their starts."""
        model, problem, most = self.builder.model, self.problem, self.problem.layers
        # prefix[k][n]: layers of kind k among the first n. A stage's layers of a kind are a difference of two of them.
        prefix = [[0, *accumulate(int(kind == k) for kind in problem.layer_kinds)] for k in range(len(problem.kinds))]
        starts = tuple(self.builder.integer(most, f"start{i}") for i in range(len(self.stages.runs)))
        intervals = []
        for i, start in enumerate(starts):
            size, end = self.builder.integer(most, f"size{i}"), self.builder.integer(most, f"end{i}")
            model.add(size == self.stages.size[i])
            model.add(end == start + size)
            intervals.append(model.new_optional_interval_var(start, size, end, self.stages.runs[i], f"stage{i}"))
            model.add(start <= most * self.stages.runs[i])
            model.add(start <= most * (1 - self.first[i]))
            model.add(end >= most * self.last[i])
            for k in range(len(problem.kinds)) if len(problem.kinds) > 1 else ():
                before, after = (self.builder.integer(most, f"{name}{i}_{k}") for name in ("before", "after"))
                model.add_element(start, prefix[k], before)
                model.add_element(end, prefix[k], after)
                model.add(sum(self.stages.layers[i][k]) == after - before)
        model.add_no_overlap(intervals)
        self._site_intervals(starts)
        if problem.ordered:
            for i, j in combinations(range(len(starts)), 2):
                both = [self.stages.runs[i], self.stages.runs[j]]
                model.add(starts[i] + self.stages.size[i] <= starts[j]).only_enforce_if(both)
        return starts

    def _site_intervals(self, starts: Sequence[cp_model.IntVar]) -> None:
        """Make sites disjoint intervals that hold their stages and nothing else; the one at their start enters."""
        model, most = self.builder.model, self.problem.layers
        runs, sizes = self.stages.runs, self.stages.size
        intervals = []
        for site, members in self.groups_of.items():
            start, size, end = (self.builder.integer(most, f"site_{name}{site}") for name in ("start", "size", "end"))
            model.add(size == sum(sizes[i] for i in members))
            model.add(end == start + size)
            intervals.append(model.new_optional_interval_var(start, size, end, self.visited[site], f"site{site}"))
            for i in members:
                model.add(start <= starts[i]).only_enforce_if(runs[i])
                model.add(starts[i] + sizes[i] <= end).only_enforce_if(runs[i])
                model.add(starts[i] <= start).only_enforce_if(self.enters[i])
        model.add_no_overlap(intervals)
