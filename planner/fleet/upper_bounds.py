"""Upper bounds of the speed of templates by costs alone, and of any division at all."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

from planner.costs.rounding import RAISED
from planner.families import within
from planner.fleet.bound import any_division, most_rates
from planner.fleet.divide import Template
from planner.fleet.parts import Part, restricted
from planner.fleet.templates import Templates
from planner.problem.machine import canonical_machine
from planner.speculation.step_bound import Region, StepBound, regions_of
from plans.fleet import NS_PER_S
from plans.schema import Inventory


@dataclass(frozen=True, kw_only=True)
class UpperBounds:
    """Upper bounds of the templates of a fleet."""

    templates: Templates

    def bounds(self, batch: int, fewest: int | None = None) -> list[tuple[int, StepBound]]:
        """Return expected tokens of a step and the bound of its time, for each tree that a replica may have.

        ``fewest``: trees that it may have with so many sequences.
        """
        draft = self.templates.given.draft.draft if self.templates.given.draft else None
        model = within(self.templates.given.base.model, self.templates.request.options.context)
        return [
            (
                self.templates.expected(tree),
                StepBound(model=model, draft=draft if tree else None, options=self.templates.options(batch, tree)),
            )
            for tree in self.templates.trees(fewest or batch)
        ]

    def speeds(self) -> dict[Template, int]:
        """Return an upper bound of the speed of every template."""
        inventory = self.templates.inventory
        speeds: dict[Template, int] = {}
        for batch in self.templates.batches:
            for number, part in enumerate(self.templates.parts):
                devices = [inventory.devices[device] for device in part.devices]
                if sum(device.capacity_bytes for device in devices) >= self.templates.needed_bytes[batch]:
                    speeds[Template(part=number, batch=batch)] = self._speed(part, batch)
        return speeds

    def _speed(self, part: Part, batch: int) -> int:
        own, regions = restricted(self.templates.inventory, part.devices), self.regions(part)
        most = 0.0
        for any_speed, acceptance_ppm, bound, draft_ns in self.fastest_first(self.templates.least_places(part, batch)):
            if any_speed <= most:
                break
            most = max(most, acceptance_ppm / bound.least_ns(own, draft_ns if part.is_wide else None, regions))
        return int(most * NS_PER_S) + 1

    @cached_property
    def fastest_first(self) -> Callable[[int], list[tuple[float, int, StepBound, int]]]:
        """Return trees of so many sequences: speed on all devices, tokens, bound, and that of the drafter.

        No part is faster than that, and the fastest are first, so that most trees need not be bounded on a part.
        """

        def listed(count: int) -> list[tuple[float, int, StepBound, int]]:
            few = self._few_hosts
            trees = []
            for acceptance_ppm, bound in self.bounds(count):
                draft_ns = bound.draft_ns(few)
                trees.append((acceptance_ppm / bound.least_ns(few, draft_ns), acceptance_ppm, bound, draft_ns))
            return sorted(trees, key=lambda tree: -tree[0])

        return cache(listed)

    @cached_property
    def regions(self) -> Callable[[Part], tuple[Region, ...] | None]:
        """Return the regions of a part over several hosts, of others None."""
        inventory = self.templates.inventory
        return cache(
            lambda part: regions_of(canonical_machine(restricted(inventory, part.devices))) if part.is_wide else None
        )

    @cached_property
    def _few_hosts(self) -> Inventory:
        """The machine with as many hosts of each class as a replica has at most."""
        machine = self.templates.machine_parts
        most = max([1, *(sum(part.hosts) for part in self.templates.parts)])
        hosts = [host for equal in machine.classes for host in equal[:most]]
        devices = [device for host in hosts for device in machine.machine.modules[host].devices]
        return restricted(self.templates.inventory, devices)

    def any_speed(self) -> int:
        """Return what no division at all exceeds (:mod:`planner.fleet.bound`), in millionths of a token per second."""
        inventory = self.templates.inventory
        batches = {}
        for batch, least in self.templates.needed_bytes.items():
            fewest = self.templates.fewest(batch)
            rates = most_rates(self.bounds(batch, fewest), inventory, least)
            # all devices together do no less with more sequences, but each of these is slower
            few = rates if fewest == batch else most_rates(self.bounds(fewest), inventory, least)
            batches[batch] = dataclasses.replace(rates, sequence=few.sequence)
        return int(any_division(batches, self.templates.request.clients) * NS_PER_S * RAISED) + 1
