"""Stages in the CP-SAT model: which groups run one, how many layers each has, and what these take."""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

from ortools.sat.python import cp_model

from planner.integers import PS_PER_NS
from planner.solver.bounds.pieces import least_slowest_ps
from planner.solver.problem import Problem
from planner.solver.variables import Bool, Builder, Costs, Linear


@dataclass(frozen=True, kw_only=True, slots=True)
class Stages:
    """Variables of the stages, by group G, layer kind k, split c of that kind and member j of the group."""

    runs: tuple[Bool, ...]
    """runs[G]: group G runs a stage."""
    layers: tuple[tuple[tuple[cp_model.IntVar, ...], ...], ...]
    """layers[G][k][c]: layers of kind k that G runs divided as split c; ``none`` where that is left out."""
    none: cp_model.IntVar
    """The constant 0."""
    units: tuple[tuple[tuple[cp_model.IntVar, ...], ...], ...]
    """units[G][k][j]: units of member j, summed over the layers of kind k that G runs."""
    units_ns: tuple[tuple[Linear, ...], ...]
    """units_ns[G][k]: time of the member with most to do in units of kind k; part of ``costs``."""
    size: tuple[Linear, ...]
    """size[G]: layers of G's stage, 0 where it runs none."""
    costs: Costs
    """Time of the layers, without what stages receive; bytes of layers and stages."""
    rounding_ns: tuple[Linear, ...]
    """Most by which that time is rounded up, per group."""


def add_stages(builder: Builder, problem: Problem, left_out: Container[tuple[int, int, int]] = ()) -> Stages:
    """Add the stages: their variables, what every placement of layers satisfies, and their costs.

    ``left_out``: splits (group, kind, split) by which no layer is divided.
    """
    none = builder.model.new_constant(0)
    groups = list(enumerate(problem.groups))
    runs = tuple(builder.flag(f"runs{i}") for i, _ in groups)
    layers = tuple(
        tuple(
            tuple(
                none if (i, k, c) in left_out else builder.integer(problem.layers_of(k), f"n{i}_{k}_{c}")
                for c in range(len(splits))
            )
            for k, splits in enumerate(group.splits)
        )
        for i, group in groups
    )
    units = tuple(
        tuple(
            tuple(builder.integer(kind.units * problem.layers_of(k), f"u{i}_{k}_{j}") for j in range(members))
            for k, kind in enumerate(problem.kinds)
        )
        for i, members in enumerate(len(group.devices) for group in problem.groups)
    )
    size: tuple[Linear, ...] = tuple(sum(n for counts in kinds for n in counts if n is not none) for kinds in layers)
    _assign_layers(builder, problem, runs, layers, units, size)
    units_ns = _units_ns(builder, problem, layers, units)
    time_ns = [
        _splits_ns(
            builder,
            problem,
            [layers[i][k][c] for c in _in_use(layers[i][k], none)],
            [splits[c].ns for c in _in_use(layers[i][k], none)],
            group.quantum_ns,
        )
        for i, group in groups
        for k, splits in enumerate(group.splits)
    ]
    time_ns += [ns for kinds in units_ns for ns in kinds]
    load_bytes = _load(problem, runs, layers, units, none)
    costs = Costs(time_ns=tuple(time_ns), load_bytes=tuple(load_bytes))
    # Per kind, the time of the splits and the time of the units are rounded up, each by less than a quantum.
    rounding_ns = tuple(
        2 * len(problem.kinds) * group.quantum_ns * running for group, running in zip(problem.groups, runs, strict=True)
    )
    return Stages(
        runs=runs,
        layers=layers,
        none=none,
        units=units,
        units_ns=units_ns,
        size=size,
        costs=costs,
        rounding_ns=rounding_ns,
    )


def _units_ns(
    builder: Builder,
    problem: Problem,
    layers: Sequence[Sequence[Sequence[cp_model.IntVar]]],
    units: Sequence[Sequence[Sequence[cp_model.IntVar]]],
) -> tuple[tuple[Linear, ...], ...]:
    """Return ``Stages.units_ns``, with bounds of it."""
    groups = list(enumerate(problem.groups))
    units_ns = tuple(
        tuple(
            builder.slowest_ns(
                units[i][k],
                group.unit_ps(k, kind),
                problem.layers_of(k) * kind.units,
                {group.quantum_ns: 1},
            )
            for k, kind in enumerate(problem.kinds)
        )
        for i, group in groups
    )
    for i, group in groups:
        for k, kind in enumerate(problem.kinds):
            # In every layer the group waits for its slowest member, and only whole units of it can be divided.
            layer_ps = least_slowest_ps(kind.units, tuple(sorted(group.unit_ps(k, kind))))
            builder.model.add(PS_PER_NS * units_ns[i][k] >= layer_ps * sum(layers[i][k]))
    return units_ns


def containing(problem: Problem, device: int) -> list[int]:
    """Return the groups that a device is a member of."""
    return [index for index, group in enumerate(problem.groups) if device in group.devices]


def _assign_layers(
    builder: Builder,
    problem: Problem,
    runs: Sequence[Bool],
    layers: Sequence[Sequence[Sequence[cp_model.IntVar]]],
    units: Sequence[Sequence[Sequence[cp_model.IntVar]]],
    size: Sequence[Linear],
) -> None:
    model = builder.model
    for k in range(len(problem.kinds)):
        # Every layer runs in exactly one stage.
        model.add(sum(n for kinds in layers for n in kinds[k]) == problem.layers_of(k))
    for i, kinds in enumerate(layers):
        for k, counts in enumerate(kinds):
            # Only a group that runs a stage has layers, and all units of these are dealt out over its members.
            model.add(sum(counts) <= problem.layers_of(k) * runs[i])
            model.add(sum(units[i][k]) == problem.kinds[k].units * sum(counts))
        # A stage has a layer at least: an empty one would cost its hop and weigh in the number of stages.
        model.add(size[i] >= runs[i])
        if problem.counts is not None:
            model.add(size[i] == problem.counts[i])
    for device in range(len(problem.devices)):
        # A device is in one stage at most.
        model.add_at_most_one(runs[index] for index in containing(problem, device))


def _splits_ns(
    builder: Builder, problem: Problem, counts: Sequence[Linear], split_ns: Sequence[int], quantum_ns: int
) -> Linear:
    """Return sum(count * ns) over the splits, rounded up to whole quanta."""
    if not split_ns:
        return 0
    time_ns = sum(count * ns for count, ns in zip(counts, split_ns, strict=True))
    if quantum_ns == 1:
        return time_ns
    quanta = builder.integer(problem.layers * max(split_ns) // quantum_ns + 1, "quanta")
    builder.model.add(quantum_ns * quanta >= time_ns)
    return quantum_ns * quanta


def _load(
    problem: Problem,
    runs: Sequence[Bool],
    layers: Sequence[Sequence[Sequence[cp_model.IntVar]]],
    units: Sequence[Sequence[Sequence[cp_model.IntVar]]],
    none: cp_model.IntVar,
) -> Iterator[tuple[int, Linear]]:
    """Yield the bytes on each member: once per stage, per layer of each split, and per unit."""
    for i, group in enumerate(problem.groups):
        in_use = [_in_use(counts, none) for counts in layers[i]]
        for j, device in enumerate(group.devices):
            yield device, group.stage_bytes[j] * runs[i]
            for k, kind in enumerate(problem.kinds):
                yield device, kind.unit_bytes * units[i][k][j]
                for c in in_use[k]:
                    yield device, group.splits[k][c].bytes[j] * layers[i][k][c]


def _in_use(counts: Sequence[cp_model.IntVar], none: cp_model.IntVar) -> list[int]:
    """Return the splits that are not left out."""
    return [c for c, count in enumerate(counts) if count is not none]
