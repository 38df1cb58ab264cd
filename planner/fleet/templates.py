"""Replicas that a fleet may have: the parts of the machine, the batches, and the options of each."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from planner.costs.acceptance import expected_ppm
from planner.enough_hosts import needed_bytes
from planner.families import BaseInput, DraftInput
from planner.fleet.parts import Form, Part, Parts
from planner.formulations import Formulations
from planner.integers import ceil_div
from planner.problem.formulate import Formulation
from planner.problem.machine import canonical_machine
from planner.problem.usable import usable_inventory
from planner.solver.division import HostClass
from planner.speculation.grid import trees_of, undominated
from plans.acceptance import PPM, Profile
from plans.check_inputs import MOST_MASK_VALUES, mask_values
from plans.fleet import FleetRequest
from plans.places import padded
from plans.schema import Inventory, Options, Tree


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetInput:
    """A model, its drafter and the inventory that is to be divided."""

    base: BaseInput
    draft: DraftInput | None
    profile: Profile | None
    """Acceptance profile of the drafter; None without one."""
    inventory: Inventory


@dataclass(frozen=True, kw_only=True)
class Templates:
    """The input that is divided, and the replicas that it may be divided into."""

    given: FleetInput
    request: FleetRequest

    @cached_property
    def machine_parts(self) -> Parts:
        """The usable part of the inventory, in canonical form."""
        return Parts(machine=canonical_machine(usable_inventory(self.given.inventory, self.options(self.least_batch))))

    @property
    def inventory(self) -> Inventory:
        """The usable part of the inventory, in canonical order."""
        return self.machine_parts.machine.inventory

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Parts that have the memory of a replica, by the sum of bytes alone."""
        machine, least = self.machine_parts, self.needed_bytes[self.least_batch]
        devices = machine.machine.inventory.devices
        hosts = [
            sum(devices[device].capacity_bytes for device in machine.machine.modules[equal[0]].devices)
            for equal in machine.classes
        ]
        needed = [ceil_div(least, max(1, nbytes)) for nbytes in hosts]
        few = self.request.clients is not None or self.request.replicas is not None
        fits = sum(device.capacity_bytes for device in devices) >= least  # else no choice of hosts has the memory
        parts = (*machine.of_hosts(), *(machine.over_hosts(needed, at_least=1 + few) if fits else ()))
        most = self.request.options.max_devices
        return tuple(
            part
            for part in parts
            if sum(devices[device].capacity_bytes for device in part.devices) >= least
            and (most is None or len(part.devices) <= most)
        )

    @cached_property
    def numbers(self) -> dict[Form, int]:
        """Numbers of the parts of single hosts, by form."""
        return {part.form: number for number, part in enumerate(self.parts) if not part.is_wide}

    @cached_property
    def classes(self) -> tuple[HostClass, ...]:
        """Classes of equal hosts with the ways to divide them."""
        return tuple(map(self._host_class, self.machine_parts.classes))

    def _host_class(self, hosts: tuple[int, ...]) -> HostClass:
        counted = self.machine_parts.counted(hosts, self.numbers) if len(hosts) == 1 else None
        if counted is not None:
            devices, parts = counted
            return HostClass(hosts=1, patterns=(), devices=devices, parts=parts)
        return HostClass(hosts=len(hosts), patterns=self.machine_parts.patterns(hosts, self.numbers.get))

    @property
    def least_batch(self) -> int:
        """The fewest places of a replica."""
        return self.request.batches[0]

    def options(self, batch: int, tree: Tree | None = None) -> Options:
        """Return the options of a replica with so many places, and with a tree where trees are chosen."""
        own = self.request.options
        return dataclasses.replace(own, batch=batch, tree=tree if self.request.tree_chosen else own.tree)

    def trees(self, batch: int) -> Sequence[Tree | None]:
        """Return the trees that a replica may have; None is plain decoding."""
        if self.given.draft is None or not self.request.tree_chosen:
            return (self.request.options.tree,)
        trees = trees_of(self.given.draft.draft, batch)
        return (None, *undominated(list(trees), self.expected))

    def expected(self, tree: Tree | None) -> int:
        """Return the expected tokens of a step, in parts per million."""
        if tree is None:
            return PPM
        assert self.given.profile is not None
        return expected_ppm(self.given.profile, tree)

    @cached_property
    def batches(self) -> tuple[int, ...]:
        """Batches of which the tree asked for can have masks."""
        tree = None if self.request.tree_chosen else self.request.options.tree
        return tuple(b for b in self.request.batches if tree is None or mask_values(tree, b) <= MOST_MASK_VALUES)

    def fewest(self, batch: int) -> int:
        """Return the least number of running sequences of a replica with so many places.

        With clients it has more than the next smaller one has places for; without, one in each.
        """
        return batch if self.request.clients is None else 1 + max((b for b in self.batches if b < batch), default=0)

    def least_places(self, part: Part, batch: int) -> int:
        """Return the fewest places that a step of a replica computes, whatever runs on it."""
        fewest, devices = self.fewest(batch), self.inventory.devices
        return fewest if any(devices[device].kind == "cpu" for device in part.devices) else padded(fewest, batch)

    @cached_property
    def needed_bytes(self) -> dict[int, int]:
        """Bytes that every plan takes of all its devices together, by batch: without a drafter where it may do so.

        Those of the largest power of two that is no larger, or of the least batch: a larger one does not take fewer.
        """

        @cache
        def needed(batch: int) -> int:
            return needed_bytes(self.on_all(batch))

        return {batch: needed(max(self.least_batch, 1 << (batch.bit_length() - 1))) for batch in self.batches}

    def on_all(self, batch: int) -> Formulation:
        """Return the formulation of a replica on the whole machine, with a drafter where none may do without it."""
        draft = None if self.request.tree_chosen else self.given.draft
        return Formulations().of(self.given.base, draft, self.given.inventory, self.options(batch))
