"""Runs of equal layers in the CP-SAT model: layers of a kind in a stage that have one split and one division of units.

Without them a stage has its layers per split and the units of each member in sum, and the plan deals these out over
single layers as evenly as can be. With them every layer belongs to a run, and units are dealt out as evenly:

    units of a layer of run s on member j  =  base[j] + more[s, j]        more is 0 or 1
    units of member j in sum               =  layers · base[j] + Σ_s layers[s] · more[s, j]
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from ortools.sat.python import cp_model

from planner.integers import PS_PER_NS
from planner.solver.problem import Problem
from planner.solver.stages import Stages
from planner.solver.variables import Bool, Linear


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSlot:
    """A run that a stage may have, of one kind of layers."""

    used: Bool
    layers: cp_model.IntVar
    split: tuple[Bool, ...]
    """split[c]: its layers are divided as split c."""
    units: tuple[cp_model.IntVar, ...]
    """Units of one layer, per member; 0 where the slot is not used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Runs:
    """Slots of runs, by group, kind and number."""

    slots: tuple[tuple[tuple[RunSlot, ...], ...], ...]


def least_runs(problem: Problem, stages: int) -> int:
    """Return runs that an answer of at least so many stages has at least: a kind of layers is in some stage."""
    return max(stages, len(problem.kinds))


def add_runs(model: cp_model.CpModel, problem: Problem, stages: Stages, most: int, least: int) -> Runs:
    """Add that all stages together have at most ``most`` runs; ``least``: no answer has less."""
    adder = _Adder(model=model, problem=problem, stages=stages)
    slots = tuple(
        tuple(adder.add(i, k, most - least + 1) for k in range(len(problem.kinds))) for i in range(len(problem.groups))
    )
    model.add(sum(slot.used for kinds in slots for listed in kinds for slot in listed) <= most)
    return Runs(slots=slots)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Adder:
    model: cp_model.CpModel
    problem: Problem
    stages: Stages

    def add(self, i: int, k: int, count: int) -> tuple[RunSlot, ...]:
        """Add ``count`` slots for layers of kind k in the stage of group i; they have all of its layers and units."""
        model, layers, units = self.model, self.stages.layers[i][k], self.stages.units[i][k]
        if not layers:
            return ()
        slots = [self._slot(i, k) for _ in range(count)]
        in_use = [c for c, of_split in enumerate(layers) if of_split is not self.stages.none]
        for c in in_use:
            model.add(layers[c] == sum(self._if(slot.layers, slot.split[c], len(in_use)) for slot in slots))
        if count == 1:
            (slot,) = slots
            for of_member, of_layer in zip(units, slot.units, strict=True):
                model.add_multiplication_equality(of_member, [slot.layers, of_layer])
            if len(self.problem.groups) == len(self.problem.kinds) == 1:
                self._bound_splits(slot)
            return (slot,)
        for one, other in pairwise(slots):
            model.add(one.layers >= other.layers)  # any order of the slots is as good
        size = model.new_int_var(0, self.problem.layers_of(k), "size")
        model.add(size == sum(layers))
        for j, of_member in enumerate(units):
            self._deal_out(size, of_member, [(slot, slot.units[j]) for slot in slots], self.problem.kinds[k].units)
        return tuple(slots)

    def _bound_splits(self, slot: RunSlot) -> None:
        """Bound the time of units for each split, where one group has all layers and each of them the same units."""
        problem, (group,), (kind,) = self.problem, self.problem.groups, self.problem.kinds
        room = [problem.capacity_bytes[d] - n for d, n in zip(group.devices, group.stage_bytes, strict=True)]
        split_bytes = np.array([split.bytes for split in group.splits[0]], dtype=np.int64)
        most = (np.array(room, dtype=np.int64) - problem.layers * split_bytes) // (problem.layers * kind.unit_bytes)
        rates_ps = np.array(group.unit_ps(0, kind), dtype=np.int64)
        least_ps = capped_slowest_ps(kind.units, rates_ps, most)
        terms = []
        for flag, layer_ps in zip(slot.split, least_ps, strict=True):
            if flag is self.stages.none:
                continue
            if layer_ps is None:
                self.model.add(flag == 0)
            else:
                terms.append(problem.layers * layer_ps * flag)
        self.model.add(PS_PER_NS * self.stages.units_ns[0][0] >= sum(terms))

    def _slot(self, i: int, k: int) -> RunSlot:
        model, most, kind = self.model, self.problem.layers_of(k), self.problem.kinds[k]
        used = model.new_bool_var("used")
        layers = model.new_int_var(0, most, "run_layers")
        none = self.stages.none
        split = tuple(
            none if of_split is none else model.new_bool_var(f"run_split{c}")
            for c, of_split in enumerate(self.stages.layers[i][k])
        )
        units = tuple(model.new_int_var(0, kind.units, "run_units") for _ in self.problem.groups[i].devices)
        model.add(layers >= used)
        model.add(layers <= most * used)
        model.add(sum(split) == used)
        model.add(sum(units) == kind.units * used)
        return RunSlot(used=used, layers=layers, split=split, units=units)

    def _deal_out(
        self, size: cp_model.IntVar, total: cp_model.IntVar, slots: list[tuple[RunSlot, cp_model.IntVar]], most: int
    ) -> None:
        """Deal the units of a member, ``total`` in ``size`` layers, out over its layers as evenly as can be."""
        model = self.model
        base = model.new_int_var(0, most, "base")
        all_base = model.new_int_var(0, max(total.proto.domain), "all_base")
        model.add_multiplication_equality(all_base, [size, base])
        extra: Linear = 0
        for slot, units in slots:
            more = model.new_bool_var("more")
            model.add(units == base + more).only_enforce_if(slot.used)
            extra += self._if(slot.layers, more, 2)
        model.add(total == all_base + extra)

    def _if(self, value: cp_model.IntVar, flag: Bool, splits: int) -> Linear:
        """Return the value where the flag is 1, else 0."""
        if splits == 1:
            return value  # the slot is used exactly where the flag is 1
        most = max(value.proto.domain)
        result = self.model.new_int_var(0, most, "if")
        self.model.add(result <= most * flag)
        self.model.add(result <= value)
        self.model.add(result >= value - most * (1 - flag))
        return result


def capped_slowest_ps(units: int, rates_ps: NDArray[np.int64], most: NDArray[np.int64]) -> list[int | None]:
    """Return for each row of ``most`` the least time of the slowest member of a division of so many whole units.

    ``most``: [row, member], the units that a member has room for; None for a row without room for all. By bisection.
    """
    most = np.maximum(most, 0)
    low = np.zeros(len(most), dtype=np.int64)
    high = np.full(len(most), units * int(rates_ps.max()), dtype=np.int64)
    rates_ps = np.maximum(rates_ps, 1)
    while (high - low > 1).any():
        middle = (low + high) // 2
        is_enough = np.minimum(most, middle[:, None] // rates_ps).sum(axis=1) >= units
        low, high = np.where(is_enough, low, middle), np.where(is_enough, middle, high)
    has_room = most.sum(axis=1) >= units
    return [int(slowest_ps) if has else None for slowest_ps, has in zip(high, has_room, strict=True)]


def used_splits(model: cp_model.CpModel, stages: Stages) -> Linear:
    """Return the number of splits in use, over all stages and kinds: no more than there are runs."""
    used: list[Bool] = []
    for kinds in stages.layers:
        for counts in kinds:
            used += [_is_positive(model, count) for count in counts if count is not stages.none]
    return sum(used)


def _is_positive(model: cp_model.CpModel, count: cp_model.IntVar) -> Bool:
    flag = model.new_bool_var("")
    model.add(count <= max(count.proto.domain) * flag)
    return flag
