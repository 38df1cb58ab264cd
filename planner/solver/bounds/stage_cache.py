"""Bounds of the stages of all groups of a problem, each different one computed once."""

from planner.solver.bounds.pieces import Floats
from planner.solver.bounds.stage import StageBound
from planner.solver.problem import Group, Problem, Split


class StageCache:
    """Stage bounds at given prices of memory, shared by groups on devices that nothing tells apart."""

    def __init__(self, problem: Problem, prices: Floats) -> None:
        """``prices``: ns per byte on each device."""
        self.problem = problem
        self.prices = prices
        self._number_of_splits: dict[tuple[Split, ...], int] = {}
        self._number_of_id: dict[int, int] = {}
        self._device_class = self._device_classes()
        self._bounds: dict[tuple[object, ...], StageBound] = {}

    def _device_classes(self) -> list[int]:
        """Number the devices such that those of equal capacity, speed and price have the same number."""
        numbers: dict[tuple[float, ...], int] = {}
        rates_ps = [kind.unit_ps for kind in self.problem.kinds]
        looks = zip(self.problem.capacity_bytes, self.prices.tolist(), *rates_ps, strict=True)
        return [numbers.setdefault(look, len(numbers)) for look in looks]

    def key(self, group: Group) -> tuple[object, ...]:
        """Return all that the bound of a stage depends on."""
        classes = [self._device_class[device] for device in group.devices]
        return self.splits_numbers(group), group.stage_bytes, group.quantum_ns, group.slowed_ps, *classes

    def bound(self, group: Group) -> StageBound:
        """Return the bound of a stage on ``group``."""
        key = self.key(group)
        if key not in self._bounds:
            self._bounds[key] = StageBound(self.problem, group, self.prices)
        return self._bounds[key]

    def splits_numbers(self, group: Group) -> tuple[int, ...]:
        """Return a number that equal splits share, per kind."""
        return tuple(map(self._splits_number, group.splits))

    def _splits_number(self, splits: tuple[Split, ...]) -> int:
        """Return a number that equal splits share.

        Splits are long to compare, and most groups with equal splits have the same object: it is looked up by identity.
        """
        if id(splits) not in self._number_of_id:
            number = self._number_of_splits.setdefault(splits, len(self._number_of_splits))
            self._number_of_id[id(splits)] = number
        return self._number_of_id[id(splits)]
