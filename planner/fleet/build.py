"""Builds a fleet: request -> parts, templates and their bounds -> division -> record; and the same from a directory."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from planner.build import plan, plan_chosen, with_stall_timeout
from planner.costs.topology import all_at_once
from planner.enough_hosts import infeasible_on_all
from planner.errors import InfeasibleError, InputError, NotProvenError
from planner.families import inputs_of
from planner.fleet.divide import Running, Search, Template, Unproven, require
from planner.fleet.parts import restricted
from planner.fleet.record import Planned, neutral, replicas_of, template_names, templates_of
from planner.fleet.templates import FleetInput, Templates
from planner.fleet.upper_bounds import UpperBounds
from planner.formulations import Formulations
from planner.problem.machine import look_of
from planner.problem.placed import step_ns
from planner.solver.division import Answer, Load
from planner.solver.minimise import Settings
from planner.solver.solve import takes_longer
from planner.speculation.compare import Question
from plans.check_inputs import is_slice
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
from plans.places import places
from plans.schema import Inventory, Plan
from plans.step import step_options, tree_for


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
    templates = Templates(given=given, request=request)
    return _Build(templates=templates, upper=UpperBounds(templates=templates), settings=settings).fleet()


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

    templates: Templates
    upper: UpperBounds
    settings: Settings
    planned: dict[Template, Planned] = field(default_factory=dict)

    @property
    def given(self) -> FleetInput:
        """The model, its drafter and the inventory."""
        return self.templates.given

    @property
    def request(self) -> FleetRequest:
        """The request of the fleet."""
        return self.templates.request

    def fleet(self) -> BuiltFleet:
        search = Search(
            classes=self.templates.classes,
            parts=self.templates.parts,
            least_speed=self.request.min_microtokens_per_s,
            fewest={batch: self.templates.fewest(batch) for batch in self.templates.batches},
            solve=self.solve,
            is_slower=self.is_slower,
            speeds=self.upper.speeds(),
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
        any_speed = self.upper.any_speed()
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
                most_hosts=max([1, *(sum(part.hosts) for part in self.templates.parts)]),
                parts=len(self.templates.parts),
                solved=len(self.planned),
            ),
        )
        return BuiltFleet(fleet=fleet, plans={name: self.planned[template].plan for template, name in names.items()})

    def solve(self, template: Template) -> tuple[int, ...] | Unproven | None:
        """Return the speeds of a template by its best plan and by running sequences, None where it does not fit."""
        part = self.templates.parts[template.part]
        inventory = neutral(self.templates.inventory, part.devices)
        try:
            planned = self._planned(inventory, template.batch)
        except InfeasibleError:
            return None
        except NotProvenError as error:
            # where trees are chosen the bound is of one of them, and all places are taken
            full = self.templates.least_places(part, template.batch) == template.batch
            bound_ns = error.bound_ns if full and not self.request.tree_chosen else None
            tree = self.templates.options(template.batch).tree
            return Unproven(
                speed=microtokens_per_s(self.templates.expected(tree), bound_ns) if bound_ns else MOST_MICROTOKENS
            )
        stall_s = self.request.stall_timeout_s
        planned = dataclasses.replace(planned, plan=with_stall_timeout(planned.plan, stall_s))
        self.planned[template] = planned
        return tuple(
            self._speed(planned, count) for count in range(self.templates.fewest(template.batch), template.batch + 1)
        )

    def _speed(self, planned: Planned, sequences: int) -> int:
        """Return the speed of so many running sequences on a plan: by the tree and the places of their step."""
        plan = planned.plan
        count, tree = places(plan, sequences), tree_for(plan.options, sequences)
        if (count, tree) == (plan.options.batch, tree_for(plan.options, plan.options.batch)):
            return planned.speed
        return microtokens_per_s(self.templates.expected(tree), step_ns(plan, step_options(plan.options, count, tree)))

    def is_slower(self, template: Template, speed: int) -> bool:
        """Tell whether no plan of a template, with any of its trees, is faster than a speed, by proof."""
        part = self.templates.parts[template.part]
        own, regions = restricted(self.templates.inventory, part.devices), self.upper.regions(part)
        inventory = neutral(self.templates.inventory, part.devices)
        count = self.templates.least_places(part, template.batch)
        for _, acceptance_ppm, bound, draft_ns in self.upper.fastest_first(count):
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
        options = self.templates.options(batch)
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
        return Planned(plan=own, acceptance_ppm=self.templates.expected(options.tree))

    def _replicas(self, answer: Answer, running: Sequence[Running], names: dict[Template, str]) -> tuple[Replica, ...]:
        """Return the replicas in the order of templates, then of their devices in the inventory."""
        place = {device.id: number for number, device in enumerate(self.given.inventory.devices)}
        replicas = replicas_of(
            self.templates.machine_parts,
            self.templates.numbers,
            answer,
            running,
            {number: part.hosts for number, part in enumerate(self.templates.parts) if part.is_wide},
            names,
            {template: self.planned[template].speed for template in names},
        )
        return tuple(sorted(replicas, key=lambda replica: (replica.template, min(place[d] for d in replica.devices))))

    def _nothing_fits(self) -> InfeasibleError:
        """Return the refusal where no part of the machine has the memory of a replica."""
        return infeasible_on_all(self.templates.on_all(self.templates.least_batch), self.settings)
