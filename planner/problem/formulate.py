"""Formulates a model, its drafter, options and an inventory as the integers of a Problem.

The parts are made elsewhere: device sets in :mod:`planner.problem.device_sets`, groups for stages in
:mod:`planner.problem.stage_groups`, the tables in :mod:`planner.problem.vocab_blocks`, the drafter in
:mod:`planner.problem.draft_block`. A share is counted by :mod:`planner.costs.shares`, a message by
:mod:`planner.problem.links`. Devices and hosts that differ only in names are priced once.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import ClassVar

from planner.costs.fixed_work import CAPTURED, Kernels
from planner.costs.shares import BaseShares, DraftShares, sequence_of
from planner.costs.topology import Fabric
from planner.problem.device_sets import Candidates, DeviceSet, Known
from planner.problem.draft_block import DraftBlock, Splits
from planner.problem.equal_hosts import with_few_hosts
from planner.problem.kv_splits import Subgroup, Variant
from planner.problem.links import Links
from planner.problem.machine import Machine, canonical_machine, listed_machine
from planner.problem.magnitude import refuse_immense
from planner.problem.pinned import PinnedChain, pinned_chain
from planner.problem.quantum import Quanta
from planner.problem.stage_groups import StageGroups, refuse_axis
from planner.problem.usable import usable_inventory
from planner.problem.vocab_blocks import embed_block, lm_head_block, row_unit
from planner.problem.wider import Wider, best_machines
from planner.solver.bounds.in_use import InUse, WiderGroups, in_use
from planner.solver.problem import Goal, Group, Kind, Problem
from plans import step
from plans.check_inputs import ROUNDING_PPM
from plans.kv import KvDivision
from plans.schema import Device, Draft, Inventory, Model, Options
from plans.shared_memory import most_outbox_bytes

GOALS: dict[str, Goal] = {
    "latency": "time",
    "balanced": "balance",
    "balanced_low_0": "balance",
    "sequential": "fill",
    "custom": "time",
}
"""First objective of each strategy."""

WHOLE_LAYERS = ("balanced", "balanced_low_0", "sequential")
"""Strategies named after those of device maps, which place every layer whole on one device."""

LISTED_ORDER = ("balanced_low_0", "sequential", "custom")
"""Strategies that follow the order of the inventory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """Prices that are the same whatever number of equal hosts is searched."""

    variants: Known[tuple[Variant, ...]] = field(default_factory=dict)
    subgroups: Known[Subgroup] = field(default_factory=dict)
    draft_splits: Known[Splits] = field(default_factory=dict)
    draft_subgroups: Known[Subgroup] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Formulation:
    """The inputs of a plan, and the problem that the solver is given for them.

    What cannot be planned raises InputError when ``problem`` is first read.
    """

    stage_groups_type: ClassVar[type[StageGroups]] = StageGroups
    draft_block_type: ClassVar[type[DraftBlock]] = DraftBlock

    model: Model
    draft: Draft | None
    options: Options
    inventory: Inventory
    """As listed: the plan records all of it."""
    most_hosts: int | None = None
    """Most equal hosts that are searched; None: all."""
    named_hosts: frozenset[str] = frozenset()
    """Hosts that are searched in any case: something depends on their names."""
    listed: tuple[str, ...] = ()
    """Ids in the order in which groups list their devices, where an earlier plan has one; else that of the machine."""
    whole: "Formulation | None" = field(default=None, compare=False, repr=False)
    """With ``most_hosts``: the formulation on all hosts, which keeps what does not depend on their number."""

    def __post_init__(self) -> None:
        alike = self.whole is None or replace(self, most_hosts=None, whole=None) == self.whole
        assert alike, "a formulation on few hosts differs from the one on all of them in their number alone"

    @cached_property
    def usable(self) -> Inventory:
        """The part of the inventory that can run models; nothing else has any part in the problem."""
        return usable_inventory(self.inventory, self.options) if self.whole is None else self.whole.usable

    @property
    def searched(self) -> Inventory:
        """The part of the inventory that the problem is about, in the order in which it numbers hosts and devices."""
        return self.machine.inventory

    @cached_property
    def on_few_hosts(self) -> Callable[[int], "Formulation"]:
        """Return the formulation with so many of equal hosts."""
        assert self.whole is None, "a formulation on few hosts is made of the one on all of them"
        return cache(lambda most: replace(self, most_hosts=most, whole=self))

    @cached_property
    def in_use(self) -> InUse:
        """The bound of all answers on the usable inventory by the hosts and devices that they use."""
        return in_use(self.problem, self.wider_groups)

    @cached_property
    def base_in_use(self) -> InUse:
        """The same of the base's part of a step, as if the drafter took no time."""
        wider = (group for wider in self._wider for group in wider.base_groups(self._most_searched))
        return in_use(self._base_problem, list(wider))

    @cached_property
    def wider_groups(self) -> list[WiderGroups]:
        """Bounds of the groups and options over more hosts than are searched of equal ones."""
        return [group for wider in self._wider for group in wider.groups(self._most_searched)]

    @property
    def _most_searched(self) -> int:
        """Most hosts of a class of equal ones that are searched."""
        return self.most_hosts or len(self.searched.hosts)

    @cached_property
    def _wider(self) -> tuple[Wider, ...]:
        if self.whole is not None:
            return self.whole._wider
        draft, row_unit = self._draft_shares, self.row_unit
        return tuple(
            Wider(base=self._shares, draft=draft, row_unit=row_unit, machine=machine)
            for machine in best_machines(self.usable)
        )

    @cached_property
    def problem(self) -> Problem:
        """The integers of the placement; raise InputError for what cannot be placed or counted."""
        block = None if self._draft_block is None else self._draft_block.block
        problem = replace(self._base_problem, tail=block)
        refuse_immense(problem)
        return problem

    @cached_property
    def _base_problem(self) -> Problem:
        """The problem without its block for the drafter."""
        refuse_axis(self.options, self.searched, [layers.attention for layers in self._shares.kinds])
        devices, chain = self.searched.devices, self._chain
        tables = self._shares, self._links, self._quanta
        message_bytes, walks = step.message_bytes(self.options), self.options.tree is not None
        gpus = (index for index, device in enumerate(devices) if device.kind == "cuda")
        return Problem(
            devices=tuple(device.id for device in devices),
            capacity_bytes=tuple(map(self._room_bytes, devices)),
            hosts=self._fabric.of_host,
            alike=self.candidates.alike,
            kinds=tuple(map(self._kind, range(len(self._shares.kinds)))),
            sequence=sequence_of(self.model),
            groups=tuple(group for group, _ in self.groups),
            ordered=self.options.strategy in ("sequential", "custom"),
            counts=None if chain is None else tuple(count for _, count in chain.runs),
            first=embed_block(*tables, self._sets(chain.embed if chain else None), self.row_unit),
            last=lm_head_block(*tables, self._sets(chain.head if chain else None), self.row_unit),
            tail=None,
            message_ns=tuple(self._links.round_ns(members, message_bytes) for members in self._fabric.of_host),
            awake_ns=tuple(self._links.awake_ns(members, message_bytes) for members in self._fabric.of_host),
            waits_ns=tuple(self._links.waits_ns(members, walks=walks) for members in self._fabric.of_host),
            network_message_ns=self._links.network_ns(message_bytes),
            goal=GOALS[self.options.strategy],
            most_devices=self.options.max_devices,
            simplify_ppm=self.options.simplify_ppm,
            tie_ppm=ROUNDING_PPM,
            spare=next(gpus, 0) if self.options.strategy == "balanced_low_0" else None,
        )

    @cached_property
    def kv_divisions(self) -> tuple[KvDivision, ...]:
        """Division of the KV cache of every group of the problem."""
        return tuple(division for _, division in self.groups)

    @property
    def draft_kv_divisions(self) -> tuple[tuple[KvDivision, ...], ...]:
        """Division of the drafter's KV cache of every split of every option of ``tail``."""
        return () if self._draft_block is None else self._draft_block.kv_divisions

    @property
    def row_unit(self) -> int:
        """Vocabulary rows of one bundle: rows are dealt out in bundles."""
        return row_unit(self.model, self.draft)

    @cached_property
    def groups(self) -> tuple[tuple[Group, KvDivision], ...]:
        """Groups that may run a stage, with the division of the KV cache of each."""
        return self.stage_groups_type(
            shares=self._shares,
            candidates=self.candidates,
            links=self._links,
            quanta=self._quanta,
            sets=self.stage_sets,
            variants=self._known.variants,
            subgroups=self._known.subgroups,
        ).groups

    @cached_property
    def stage_sets(self) -> tuple[DeviceSet, ...]:
        """Device sets that may run a stage; those of a device map in the order of its layers."""
        if self._chain is None:
            return self.block_sets
        return tuple(device_set for device, _ in self._chain.runs for device_set in self._sets(device))

    @cached_property
    def block_sets(self) -> tuple[DeviceSet, ...]:
        """Device sets that may hold a block which no device map pins, of no more devices than may be in use."""
        sets = self.candidates.singles if self.options.strategy in WHOLE_LAYERS else self.candidates.sets
        most = len(self.searched.devices) if self.options.max_devices is None else self.options.max_devices
        return tuple(device_set for device_set in sets if len(device_set.devices) <= most)

    @cached_property
    def candidates(self) -> Candidates:
        """Device sets that the strategies which divide layers choose from."""
        return Candidates(machine=self.machine, listed=self.listed)

    @cached_property
    def machine(self) -> Machine:
        """Devices and links that the problem is about: all, or those of a few of many equal hosts."""
        machine_of = listed_machine if self.options.strategy in LISTED_ORDER else canonical_machine
        machine = machine_of(self.usable)
        if self.most_hosts is None:
            return machine
        return machine_of(with_few_hosts(machine.inventory, self.most_hosts, self.named_hosts))

    @cached_property
    def _known(self) -> "_Known":
        return _Known() if self.whole is None else self.whole._known

    @property
    def _fabric(self) -> Fabric:
        return self.candidates.fabric

    @cached_property
    def _links(self) -> Links:
        return Links(fabric=self._fabric)

    @cached_property
    def kernels(self) -> Kernels:
        """Kernels by which a step on GPUs is priced."""
        return CAPTURED

    @cached_property
    def _shares(self) -> BaseShares:
        if self.whole is not None:
            return self.whole._shares
        return BaseShares(model=self.model, draft=self.draft, options=self.options, kernels=self.kernels)

    @cached_property
    def _draft_shares(self) -> DraftShares | None:
        if self.whole is not None:
            return self.whole._draft_shares
        if self.draft is None:
            return None
        return DraftShares(model=self.model, draft=self.draft, options=self.options, kernels=self.kernels)

    @cached_property
    def _quanta(self) -> Quanta:
        return Quanta(self._shares, self.searched.devices)

    @cached_property
    def _chain(self) -> PinnedChain | None:
        return None if self.options.custom is None else pinned_chain(self.model, self.options, self._fabric)

    def _sets(self, pinned: int | None) -> tuple[DeviceSet, ...]:
        """Return the device that a device map pins, else all sets that may hold a block."""
        if pinned is None:
            return self.block_sets
        return (DeviceSet(devices=(pinned,), hosts=(self._fabric.host_of[pinned],)),)

    @cached_property
    def _draft_block(self) -> DraftBlock | None:
        if self._draft_shares is None:
            return None
        return self.draft_block_type(
            shares=self._draft_shares,
            candidates=self.candidates,
            links=self._links,
            quanta=self._quanta,
            sets=self._sets(self._chain.draft if self._chain else None),
            bundle_rows=self.row_unit,
            splits=self._known.draft_splits,
            subgroups=self._known.draft_subgroups,
        )

    def _room_bytes(self, device: Device) -> int:
        """Return the bytes of a device for its shares: without an outbox, whose size depends on who else is in use."""
        outbox = most_outbox_bytes(self.searched) if device.kind == "cpu" else 0
        return max(0, device.capacity_bytes - outbox)

    def _kind(self, kind: int) -> Kind:
        """Return the fine axis of a layer kind: its MLP units, and the time of one on each device."""
        return Kind(
            units=self._shares.kinds[kind].mlp.units,
            unit_bytes=self._shares.unit_bytes(kind),
            unit_ps=self._links.each(self._shares.unit(kind).ps),
        )
