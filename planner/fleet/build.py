"""Builds a fleet: request -> parts, templates and their bounds -> division -> record; and the same from a directory."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property

from planner.build import plan, plan_chosen, with_stall_timeout
from planner.costs.acceptance import expected_ppm
from planner.costs.rounding import RAISED
from planner.costs.topology import all_at_once
from planner.enough_hosts import infeasible_on_all, needed_bytes
from planner.errors import InfeasibleError, InputError, NotProvenError
from planner.families import BaseInput, DraftInput, inputs_of, within
from planner.fleet.bound import any_division, most_rates
from planner.fleet.divide import Running, Search, Template, Unproven, require
from planner.fleet.parts import Form, Part, Parts, restricted
from planner.fleet.record import Planned, neutral, replicas_of, template_names, templates_of
from planner.formulations import Formulations
from planner.integers import ceil_div
from planner.problem.formulate import Formulation
from planner.problem.machine import canonical_machine, look_of
from planner.problem.placed import step_ns
from planner.problem.usable import usable_inventory
from planner.solver.division import Answer, HostClass, Load
from planner.solver.minimise import Settings
from planner.solver.solve import takes_longer
from planner.speculation.compare import Question
from planner.speculation.grid import trees_of, undominated
from planner.speculation.step_bound import Region, StepBound, regions_of
from plans.acceptance import PPM, Profile
from plans.check_inputs import MOST_MASK_VALUES, is_slice, mask_values
from plans.fleet import (
    FLEET_MAJOR,
    FLEET_MINOR,
    MOST_MICROTOKENS,
    NS_PER_S,
    Fleet,
    FleetProof,
    FleetRequest,
    Replica,
    microtokens_per_s,
)
from plans.places import padded, places
from plans.schema import Inventory, Options, Plan, Tree
from plans.step import step_options, tree_for


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetInput:
    """A model, its drafter and the inventory that is to be divided."""

    base: BaseInput
    draft: DraftInput | None
    profile: Profile | None
    """Acceptance profile of the drafter; None without one."""
    inventory: Inventory


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltFleet:
    """A fleet with its plans by template."""

    fleet: Fleet
    plans: dict[str, Plan]


def build_fleet(given: FleetInput, request: FleetRequest, settings: Settings) -> BuiltFleet:
    """Return the fleet of a request; raise InputError, InfeasibleError or NotProvenError.

    Replicas compute at the same time, on the same cores where they are of one machine: CPUs have the rates with all of
    the machine computing, in the fleet's inventory and in the plans. That is exact where all are in use at once, and
    where some sleep, as all but one stage of a pipeline do, steps are no longer than predicted.
    """
    given = dataclasses.replace(given, inventory=all_at_once(given.inventory))
    _refuse_parts_of_devices(given.inventory)
    return _Build(given=given, request=request, settings=settings).fleet()


def _refuse_parts_of_devices(inventory: Inventory) -> None:
    """Raise InputError for accelerators of which a device is a part, and for unlike types of the same figures."""
    seen: dict[tuple[str, int], str] = {}
    names: dict[tuple[object, ...], tuple[str, str, str]] = {}
    for device in inventory.devices:
        if device.kind == "cuda" and (
            is_slice(device.uuid) or seen.setdefault((device.host, device.ordinal), device.id) != device.id
        ):
            raise InputError(f"--replicas: device {device.id}: is a part of an accelerator, expected whole ones")
        first = names.setdefault(look_of(device), (device.id, device.type, device.reported_name))
        if first[1:] != (device.type, device.reported_name):
            raise InputError(
                f"--replicas: devices {first[0]} and {device.id}: have the figures of each other, and other types: "
                "replicas could not be told apart: give them one type, or their own figures"
            )


@dataclass(kw_only=True)
class _Build:
    """One division, with what was computed for it so far."""

    given: FleetInput
    request: FleetRequest
    settings: Settings
    planned: dict[Template, Planned] = field(default_factory=dict)

    def fleet(self) -> BuiltFleet:
        search = Search(
            classes=self.classes,
            parts=self.parts,
            least_speed=self.request.min_microtokens_per_s,
            fewest={batch: self.fewest(batch) for batch in self.batches},
            solve=self.solve,
            is_slower=self.is_slower,
            speeds=self.upper_speeds(),
            simplify_ppm=self.request.options.simplify_ppm,
        )
        load = Load(clients=self.request.clients, replicas=self.request.replicas)
        if not search.speeds:
            raise self._nothing_fits()
        found = require(search.best(load, self.settings), search, load, self.settings, self.request.gap_ppm)
        answer, running = found.answer, found.running
        used = dict.fromkeys(own.template for own, count in zip(running, answer.replicas, strict=True) if count)
        names = template_names(tuple(used), self.planned)
        replicas = self._replicas(answer, running, names)
        any_speed = self.any_speed()
        assert any_speed >= answer.speed, (any_speed, answer)
        bound = min(found.bound, any_speed)
        taken = {device for replica in replicas for device in replica.devices}
        fleet = Fleet(
            fleet=f"{FLEET_MAJOR}.{FLEET_MINOR}",
            inputs=inputs_of(self.given.base, self.given.draft),
            draft=self.given.draft.draft if self.given.draft else None,
            request=self.request,
            inventory=self.given.inventory,
            templates=templates_of(names, self.planned),
            replicas=replicas,
            unused=tuple(device.id for device in self.given.inventory.devices if device.id not in taken),
            proof=FleetProof(
                microtokens_per_s=answer.speed,
                bound_microtokens_per_s=bound,
                any_microtokens_per_s=any_speed,
                most_hosts=max([1, *(sum(part.hosts) for part in self.parts)]),
                parts=len(self.parts),
                solved=len(self.planned),
            ),
        )
        return BuiltFleet(fleet=fleet, plans={name: self.planned[template].plan for template, name in names.items()})

    # ---- the machine ----

    @cached_property
    def machine_parts(self) -> Parts:
        """The usable part of the inventory, in canonical form."""
        return Parts(machine=canonical_machine(usable_inventory(self.given.inventory, self.options(self._least))))

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Parts that have the memory of a replica, by the sum of bytes alone."""
        machine, least = self.machine_parts, self.needed_bytes[self._least]
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

    # ---- templates ----

    @property
    def _least(self) -> int:
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
        fewest, devices = self.fewest(batch), self.machine_parts.machine.inventory.devices
        return fewest if any(devices[device].kind == "cpu" for device in part.devices) else padded(fewest, batch)

    def solve(self, template: Template) -> tuple[int, ...] | Unproven | None:
        """Return the speeds of a template by its best plan and by running sequences, None where it does not fit."""
        part = self.parts[template.part]
        inventory = neutral(self.machine_parts.machine.inventory, part.devices)
        try:
            planned = self._planned(inventory, template.batch)
        except InfeasibleError:
            return None
        except NotProvenError as error:
            # where trees are chosen the bound is of one of them, and all places are taken
            full = self.least_places(part, template.batch) == template.batch
            bound_ns = error.bound_ns if full and not self.request.tree_chosen else None
            tree = self.options(template.batch).tree
            return Unproven(speed=microtokens_per_s(self.expected(tree), bound_ns) if bound_ns else MOST_MICROTOKENS)
        stall_s = self.request.stall_timeout_s
        planned = dataclasses.replace(planned, plan=with_stall_timeout(planned.plan, stall_s))
        self.planned[template] = planned
        return tuple(self._speed(planned, count) for count in range(self.fewest(template.batch), template.batch + 1))

    def _speed(self, planned: Planned, sequences: int) -> int:
        """Return the speed of so many running sequences on a plan: by the tree and the places of their step."""
        plan = planned.plan
        count, tree = places(plan, sequences), tree_for(plan.options, sequences)
        if (count, tree) == (plan.options.batch, tree_for(plan.options, plan.options.batch)):
            return planned.speed
        return microtokens_per_s(self.expected(tree), step_ns(plan, step_options(plan.options, count, tree)))

    def is_slower(self, template: Template, speed: int) -> bool:
        """Tell whether no plan of a template, with any of its trees, is faster than a speed, by proof."""
        part = self.parts[template.part]
        own, regions = restricted(self.machine_parts.machine.inventory, part.devices), self._regions(part)
        inventory = neutral(self.machine_parts.machine.inventory, part.devices)
        for _, acceptance_ppm, bound, draft_ns in self._fastest_first(self.least_places(part, template.batch)):
            most_ns = acceptance_ppm * NS_PER_S // (speed + 1)
            if bound.least_ns(own, draft_ns if part.is_wide else None, regions) > most_ns:
                continue
            draft = self.given.draft if bound.draft else None
            formulation = Formulations().of(self.given.base, draft, inventory, bound.options)
            try:
                if not takes_longer(formulation.problem, most_ns, self.settings):
                    return False
            except NotProvenError:
                return False
        return True

    def _planned(self, inventory: Inventory, batch: int) -> Planned:
        base, draft, profile = self.given.base, self.given.draft, self.given.profile
        options = self.options(batch)
        if draft is not None and self.request.tree_chosen:
            assert profile is not None
            question = Question(
                base=base,
                draft=draft,
                options=options,
                inventory=inventory,
                profile=profile,
                schedule=self.request.schedule,
                keep_draft=self.request.keep_draft,
            )
            chosen = plan_chosen(question, self.settings, Formulations(), None).plan
            assert chosen.speculation is not None
            return Planned(plan=chosen, acceptance_ppm=chosen.speculation.acceptance_ppm)
        formulation = Formulations().of(base, draft, inventory, options)
        own = plan(formulation, inputs_of(base, draft), self.settings).plan
        return Planned(plan=own, acceptance_ppm=self.expected(options.tree))

    # ---- bounds ----

    @cached_property
    def needed_bytes(self) -> dict[int, int]:
        """Bytes that every plan takes of all its devices together, by batch: without a drafter where it may do so.

        Those of the largest power of two that is no larger, or of the least batch: a larger one does not take fewer.
        """

        @cache
        def needed(batch: int) -> int:
            return needed_bytes(self._on_all(batch))

        return {batch: needed(max(self._least, 1 << (batch.bit_length() - 1))) for batch in self.batches}

    def bounds(self, batch: int, fewest: int | None = None) -> list[tuple[int, StepBound]]:
        """Return expected tokens of a step and the bound of its time, for each tree that a replica may have.

        ``fewest``: trees that it may have with so many sequences.
        """
        draft = self.given.draft.draft if self.given.draft else None
        model = within(self.given.base.model, self.request.options.context)
        return [
            (
                self.expected(tree),
                StepBound(model=model, draft=draft if tree else None, options=self.options(batch, tree)),
            )
            for tree in self.trees(fewest or batch)
        ]

    def upper_speeds(self) -> dict[Template, int]:
        """Return an upper bound of the speed of every template."""
        inventory = self.machine_parts.machine.inventory
        speeds: dict[Template, int] = {}
        for batch in self.batches:
            for number, part in enumerate(self.parts):
                devices = [inventory.devices[device] for device in part.devices]
                if sum(device.capacity_bytes for device in devices) >= self.needed_bytes[batch]:
                    speeds[Template(part=number, batch=batch)] = self._upper_speed(part, batch)
        return speeds

    def _upper_speed(self, part: Part, batch: int) -> int:
        own, regions = restricted(self.machine_parts.machine.inventory, part.devices), self._regions(part)
        most = 0.0
        for any_speed, acceptance_ppm, bound, draft_ns in self._fastest_first(self.least_places(part, batch)):
            if any_speed <= most:
                break
            most = max(most, acceptance_ppm / bound.least_ns(own, draft_ns if part.is_wide else None, regions))
        return int(most * NS_PER_S) + 1

    @cached_property
    def _fastest_first(self) -> Callable[[int], list[tuple[float, int, StepBound, int]]]:
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
    def _regions(self) -> Callable[[Part], tuple[Region, ...] | None]:
        """Return the regions of a part over several hosts, of others None."""
        inventory = self.machine_parts.machine.inventory
        return cache(
            lambda part: regions_of(canonical_machine(restricted(inventory, part.devices))) if part.is_wide else None
        )

    @cached_property
    def _few_hosts(self) -> Inventory:
        """The machine with as many hosts of each class as a replica has at most."""
        machine = self.machine_parts
        most = max([1, *(sum(part.hosts) for part in self.parts)])
        hosts = [host for equal in machine.classes for host in equal[:most]]
        devices = [device for host in hosts for device in machine.machine.modules[host].devices]
        return restricted(machine.machine.inventory, devices)

    def any_speed(self) -> int:
        """Return what no division at all exceeds (:mod:`planner.fleet.bound`), in millionths of a token per second."""
        inventory = self.machine_parts.machine.inventory
        batches = {}
        for batch, least in self.needed_bytes.items():
            fewest = self.fewest(batch)
            rates = most_rates(self.bounds(batch, fewest), inventory, least)
            # all devices together do no less with more sequences, but each of these is slower
            few = rates if fewest == batch else most_rates(self.bounds(fewest), inventory, least)
            batches[batch] = dataclasses.replace(rates, sequence=few.sequence)
        return int(any_division(batches, self.request.clients) * NS_PER_S * RAISED) + 1

    # ---- results ----

    def _replicas(self, answer: Answer, running: Sequence[Running], names: dict[Template, str]) -> tuple[Replica, ...]:
        """Return the replicas in the order of templates, then of their devices in the inventory."""
        place = {device.id: number for number, device in enumerate(self.given.inventory.devices)}
        replicas = replicas_of(
            self.machine_parts,
            self.numbers,
            answer,
            running,
            {number: part.hosts for number, part in enumerate(self.parts) if part.is_wide},
            names,
            {template: self.planned[template].speed for template in names},
        )
        return tuple(sorted(replicas, key=lambda replica: (replica.template, min(place[d] for d in replica.devices))))

    def _nothing_fits(self) -> InfeasibleError:
        """Return the refusal where no part of the machine has the memory of a replica."""
        return infeasible_on_all(self._on_all(self._least), self.settings)

    def _on_all(self, batch: int) -> Formulation:
        """Return the formulation of a replica on the whole machine, with a drafter where none may do without it."""
        draft = None if self.request.tree_chosen else self.given.draft
        return Formulations().of(self.given.base, draft, self.given.inventory, self.options(batch))
