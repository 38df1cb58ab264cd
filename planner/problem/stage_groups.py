"""Groups that may run a stage: every candidate device set, once for each division of the KV cache worth offering."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property

from planner.costs.shares import BaseShares
from planner.errors import InputError
from planner.problem.device_sets import Candidates, DeviceSet, Known
from planner.problem.kv_splits import (
    Subgroup,
    Variant,
    allows,
    bundles,
    divided,
    dominates,
    kv_divisions,
    parts_of,
    rotary_pairs,
    sizes_of,
)
from planner.problem.links import Links, later
from planner.problem.quantum import Quanta
from planner.solver.problem import Group, Split
from plans import cpu_times, step
from plans.kv import KvDivision, KvShare
from plans.quantized import head_unit
from plans.schema import Attention, Inventory, KvAxis, Options


@dataclass(frozen=True, kw_only=True)
class StageGroups:
    """The groups of a problem with the division of the KV cache of each."""

    shares: BaseShares
    candidates: Candidates
    links: Links
    quanta: Quanta
    sets: tuple[DeviceSet, ...]
    """Device sets that may run a stage, in the order of the groups."""
    variants: Known[tuple[Variant, ...]] = field(default_factory=dict)
    """Variants of sets that were priced before, also of a machine with fewer hosts."""
    subgroups: Known[Subgroup] = field(default_factory=dict)
    """Subgroups likewise."""

    @cached_property
    def groups(self) -> tuple[tuple[Group, KvDivision], ...]:
        """Groups with their divisions; a set over several hosts is a site of its own, after those of the hosts."""
        groups: list[tuple[Group, KvDivision]] = []
        sites = len(self.candidates.inventory.hosts)
        model, options = self.shares.model, self.shares.options
        hop_bytes, hidden_bytes = step.hop_bytes(model, self.shares.draft, options), step.hidden_bytes(model, options)
        for device_set in self.sets:
            site = device_set.hosts[0]
            if len(device_set.hosts) > 1:
                site, sites = sites, sites + 1
            stage_ns = self.links.fixed_ns(device_set.devices, cpu_times.stage_ns)
            hop = later(self.links.receive(device_set, hop_bytes), stage_ns)
            first = later(self.links.receive_awake(device_set, hidden_bytes), stage_ns)
            quantum_ns = self.quanta.ns(device_set.devices)
            slowed_ps = self.links.slowed_ps(
                device_set.devices, [self.shares.unit(kind).ps for kind in range(len(self.shares.kinds))]
            )
            for variant in self._variants(device_set):
                group = Group(
                    devices=device_set.devices,
                    site=site,
                    splits=variant.splits,
                    hop_ns=hop.near_ns,
                    network_hop_ns=hop.far_ns,
                    first=first,
                    stage_bytes=variant.stage_bytes,
                    quantum_ns=quantum_ns,
                    slowed_ps=slowed_ps,
                )
                groups.append((group, variant.division))
        return tuple(groups)

    @property
    def _attentions(self) -> list[Attention]:
        return [layers.attention for layers in self.shares.kinds]

    @cached_property
    def _variants(self) -> Callable[[DeviceSet], tuple[Variant, ...]]:
        """Return the variants of a set."""
        return self.candidates.priced_once(self._new_variants, self.variants, self._bundles)

    def _new_variants(self, device_set: DeviceSet) -> tuple[Variant, ...]:
        """Price every division of the KV cache, by heads first; leave out those that an earlier one dominates."""
        size, asked = len(device_set.devices), self.shares.options.kv_axis
        variants: list[Variant] = []
        offered = {
            division for attention in self._attentions for division in kv_divisions(size, attention.num_kv_heads, asked)
        }
        for division in sorted(offered, key=lambda d: (d.axis != "heads", d.axis, d.subgroups)):
            splits = tuple(self._splits(device_set, division, kind) for kind in range(len(self.shares.kinds)))
            if not any(splits):
                continue
            most = max(max(split.shares) for listed in splits for split in listed)
            parts = (m for m in division.subgroups for _ in range(m))
            shares = (KvShare(heads=most, axis=division.axis, parts=m, part=0) for m in parts)
            stage_bytes = tuple(
                self.shares.stage_bytes(share, size, self.links.devices[device].kind == "cuda")
                for share, device in zip(shares, device_set.devices, strict=True)
            )
            variant = Variant(division=division, splits=splits, stage_bytes=stage_bytes)
            if not any(dominates(other, variant) for other in variants):
                variants.append(variant)
        return tuple(variants)

    @cached_property
    def _bundles(self) -> tuple[int, ...]:
        """Bundles into which the KV heads of each layer kind are divided at most."""
        sizes = sizes_of(self.sets)
        return tuple(bundles(attention.num_kv_heads, sizes) for attention in self._attentions)

    def _splits(self, device_set: DeviceSet, division: KvDivision, kind: int) -> tuple[Split, ...]:
        """Return a split for every way to deal the KV heads of a layer over the subgroups; none if not allowed."""
        attention, crowd = self._attentions[kind], self.links.crowd(device_set.devices)
        if not allows(attention, self.shares.options, division):
            return ()
        return divided(
            device_set,
            division,
            attention.num_kv_heads,
            self._bundles[kind],
            lambda axis, members, kv_heads, leads: self._subgroup(members, kind, axis, kv_heads, leads, crowd),
            fixed_ns=self._layer_ns(device_set.devices, kind),
            times=(1,),
            unit=head_unit(attention),
        )

    @cached_property
    def _layer_ns(self) -> Callable[[tuple[int, ...], int], int]:
        return cache(lambda members, kind: layer_ns(self.shares, self.links, members, kind))

    @cached_property
    def _subgroup(self) -> Callable[[tuple[int, ...], int, KvAxis, int, bool, tuple[int, ...]], Subgroup]:
        return self.candidates.parts_priced_once(self._new_subgroup, self.subgroups)

    def _new_subgroup(
        self, members: tuple[int, ...], kind: int, axis: KvAxis, kv_heads: int, leads: bool, crowd: tuple[int, ...]
    ) -> Subgroup:
        """Price the attention of one layer for a subgroup; ``leads``: the leader of the group is its first member."""
        shares = enumerate(parts_of(axis, members, kv_heads))
        nbytes = (self.shares.attention_bytes(kind, share, leads and j == 0) for j, share in shares)
        return Subgroup(ns=self._subgroup_ns(members, kind, axis, kv_heads, crowd), bytes=tuple(nbytes))

    @cached_property
    def _subgroup_ns(self) -> Callable[[tuple[int, ...], int, KvAxis, int, tuple[int, ...]], tuple[int, ...]]:
        """Return the time of a subgroup, leading or not."""
        return cache(self._new_subgroup_ns)

    def _new_subgroup_ns(
        self, members: tuple[int, ...], kind: int, axis: KvAxis, kv_heads: int, crowd: tuple[int, ...]
    ) -> tuple[int, ...]:
        attention, shares = self._attentions[kind], parts_of(axis, members, kv_heads)
        slowest = self.links.slowest_ns(members, [self.shares.attention(kind, share) for share in shares], crowd)
        exchange = self.links.exchange_ns(attention, self.shares.pass_of(attention.window), members, shares[0], crowd)
        return (slowest + exchange,)


def layer_ns(shares: BaseShares, links: Links, members: Sequence[int], kind: int) -> int:
    """Return the time of a layer besides shares: fixed work, the router, and two sums of hidden states; where all heads
    are normed together, that of their squares.
    """
    message = step.hidden_bytes(shares.model, shares.options)
    normed = step.norm_sum_bytes(shares.options) if shares.kinds[kind].attention.qk_norm_whole else 0
    squares = links.all_reduce_ns(members, normed) if normed else 0
    routed = links.fixed_ns(members, shares.router(kind).ns)
    layers, values = shares.kinds[kind], shares.verify_pass.rows * shares.model.hidden_size
    merges = shares.verify_pass.merges(shares.kinds[kind].attention)
    fixed = links.fixed_ns(members, lambda device: shares.kernels.layer_ns(device, layers, values, merges=merges))
    return fixed + routed + squares + 2 * links.all_reduce_ns(members, message)


def refuse_axis(options: Options, inventory: Inventory, attentions: Sequence[Attention]) -> None:
    """Raise InputError for an axis along which nothing can be divided, where there is more than one device."""
    if len(inventory.devices) == 1:
        return
    if options.kv_axis == "batch" and options.batch == 1:
        raise InputError("--kv batch: there is 1 sequence, expected 2 or more: give --batch, or another axis")
    if options.kv_axis == "head_dim" and not any(map(rotary_pairs, attentions)):
        raise InputError(
            "--kv head_dim: heads are normed as a whole (qk_norm), their dims cannot be divided: give another axis"
        )
