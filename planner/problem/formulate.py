"""Model, head, options and inventory -> the integers of a Problem: candidate groups, bytes and times of every share.

Groups are the candidates of :mod:`planner.problem.device_sets`, once for each way to divide the KV cache; what a share
takes is
counted by :mod:`planner.costs.shares`. Devices that look alike, and hosts that do, are priced once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from itertools import groupby

from planner.costs.memory import mlp_units
from planner.costs.roofline import Tier, all_reduce_ns, broadcast_ns, message_ns
from planner.costs.shares import BaseShares, DraftShares, Pass, Work, exchange_ns, sequence_of
from planner.costs.topology import Fabric
from planner.errors import InputError
from planner.integers import PS_PER_NS
from planner.problem.device_sets import Candidates, DeviceSet, bundles, sizes_of, ways
from planner.problem.kv_splits import Subgroup, Variant, allows, divided, dominates, no_worse, parts_of, rotary_pairs
from planner.problem.links import NOTHING, TREE_BLOCKS
from planner.problem.magnitude import refuse_immense
from planner.problem.pinned import PinnedChain, pinned_chain
from planner.solver.problem import Axis, Block, Goal, Group, Kind, Option, Problem, Receive, Split
from plans import step
from plans.kv import KvDivision, KvShare
from plans.schema import Attention, Device, Draft, Inventory, KvAxis, Model, Options

MOST_ROW_UNIT = 64

QUANTUM_BITS = 14


GOALS: dict[str, Goal] = {
    "latency": "time",
    "balanced": "balance",
    "balanced_low_0": "balance",
    "sequential": "fill",
    "custom": "time",
}


@dataclass(frozen=True, kw_only=True)
class Formulation:
    """What is planned, as given; ``problem`` is what the solver sees of it, or an InputError for what cannot be."""

    model: Model
    draft: Draft | None
    options: Options
    inventory: Inventory

    @cached_property
    def problem(self) -> Problem:
        devices = self.inventory.devices
        kinds = range(len(self._base.kinds))
        chosen = self._map
        balances_low = self.options.strategy == "balanced_low_0"
        network = self.inventory.network
        problem = Problem(
            devices=tuple(device.id for device in devices),
            capacity_bytes=tuple(device.capacity_bytes for device in devices),
            hosts=self._fabric.of_host,
            alike=self._candidates.alike,
            kinds=tuple(self._kind(kind) for kind in kinds),
            sequence=sequence_of(self.model),
            groups=tuple(group for group, _ in self._groups),
            ordered=self.options.strategy in ("sequential", "custom"),
            counts=None if chosen is None else tuple(count for _, count in chosen.runs),
            first=self._embed(self._block_sets if chosen is None else self._pinned(chosen.embed)),
            last=self._head(self._block_sets if chosen is None else self._pinned(chosen.head)),
            tail=None if self._tail is None else self._tail.block,
            quantum_ns=self._quantum_ns,
            message_ns=tuple(self._tell_ns(members) for members in self._fabric.of_host),
            network_message_ns=message_ns(network, self._message_bytes) if network else 0,
            goal=GOALS[self.options.strategy],
            spare=next((d for d, each in enumerate(devices) if each.kind == "cuda"), 0) if balances_low else None,
        )
        refuse_immense(problem)
        return problem

    @cached_property
    def ways(self) -> tuple[KvDivision, ...]:
        """Of each group of the problem: how it divides the KV cache."""
        return tuple(way for _, way in self._groups)

    @cached_property
    def draft_ways(self) -> tuple[tuple[KvDivision, ...], ...]:
        """The same of each option of ``tail``, for each of its splits."""
        return () if self._tail is None else self._tail.ways

    # ---- sizes of the step ----

    @property
    def row_unit(self) -> int:
        """Vocabulary rows are dealt out in such bundles: a power of two that divides both vocabularies."""
        vocab = self.model.vocab_size
        both = math.gcd(vocab, self.draft.draft_vocab_size if self.draft else vocab)
        return math.gcd(both, MOST_ROW_UNIT)

    @property
    def _message_bytes(self) -> int:
        return step.message_bytes(self.options)

    @cached_property
    def _fabric(self) -> Fabric:
        return Fabric(inventory=self.inventory)

    @cached_property
    def _candidates(self) -> Candidates:
        return Candidates(fabric=self._fabric)

    @cached_property
    def _base(self) -> BaseShares:
        return BaseShares(model=self.model, draft=self.draft, options=self.options)

    # ---- what the strategy leaves open ----

    @cached_property
    def _stage_sets(self) -> tuple[DeviceSet, ...]:
        if self._map is not None:
            return tuple(each for device, _ in self._map.runs for each in self._pinned(device))
        return self._block_sets

    @cached_property
    def _block_sets(self) -> tuple[DeviceSet, ...]:
        """Strategies named after those of device maps site whole layers, as device maps do."""
        whole = self.options.strategy in ("balanced", "balanced_low_0", "sequential")
        return self._candidates.singles if whole else self._candidates.sets

    def _pinned(self, device: int) -> tuple[DeviceSet, ...]:
        return (DeviceSet(devices=(device,), hosts=(self._fabric.host_of[device],)),)

    @cached_property
    def _map(self) -> PinnedChain | None:
        if self.options.custom is None:
            return None
        return pinned_chain(self.model, self.options, self._fabric)

    # ---- groups ----

    @cached_property
    def _groups(self) -> tuple[tuple[Group, KvDivision], ...]:
        self._refuse_axis()
        found: list[tuple[Group, KvDivision]] = []
        sites = len(self.inventory.hosts)
        for each in self._stage_sets:
            site = each.hosts[0]
            if len(each.hosts) > 1:
                site, sites = sites, sites + 1
            hop = self._receive(each, self._hop_bytes)
            first = self._receive(each, self._hidden_bytes)
            for variant in self._variants(each):
                group = Group(
                    devices=each.devices,
                    site=site,
                    splits=variant.splits,
                    hop_ns=hop.near_ns,
                    network_hop_ns=hop.far_ns,
                    first=first,
                    stage_bytes=variant.stage_bytes,
                )
                found.append((group, variant.way))
        return tuple(found)

    def _refuse_axis(self) -> None:
        """Raise InputError for an axis along which nothing can be divided."""
        asked, most = self.options.kv_axis, len(self.inventory.devices)
        if asked == "batch" and self.options.batch == 1 and most > 1:
            raise InputError("--kv batch: there is 1 sequence, expected 2 or more: give --batch, or another axis")
        if asked == "head_dim" and most > 1 and not any(map(rotary_pairs, self._attentions)):
            raise InputError(
                "--kv head_dim: heads are normed as a whole (qk_norm), their dims cannot be divided: give another axis"
            )

    @property
    def _attentions(self) -> list[Attention]:
        return [layers.attention for layers in self._base.kinds]

    @property
    def _hidden_bytes(self) -> int:
        return step.hidden_bytes(self.model, self.options)

    @property
    def _hop_bytes(self) -> int:
        """With the features that the head wants."""
        return step.hop_bytes(self.model, self.draft, self.options)

    def _signature(self, each: DeviceSet) -> tuple[object, ...]:
        """Sets with equal ones are equal in all but names."""
        hosts = [self.inventory.hosts[host] for host in each.hosts]
        links = tuple(host.link for host in hosts) if not any(host.pairs for host in hosts) else each.devices
        looks = tuple(self._candidates.looks[device] for device in each.devices)
        parts = tuple(len(list(found)) for _, found in groupby(each.devices, key=lambda d: self._fabric.host_of[d]))
        return looks, parts, links

    @cached_property
    def _variants(self) -> Callable[[DeviceSet], tuple[Variant, ...]]:
        known: dict[tuple[object, ...], tuple[Variant, ...]] = {}

        def variants(each: DeviceSet) -> tuple[Variant, ...]:
            key = self._signature(each)
            if key not in known:
                known[key] = self._new_variants(each)
            return known[key]

        return variants

    def _new_variants(self, each: DeviceSet) -> tuple[Variant, ...]:
        """By every way to divide the KV cache, but for those that another one is never worse than."""
        size = len(each.devices)
        found: list[Variant] = []
        offered = {
            way for attention in self._attentions for way in ways(size, attention.num_kv_heads, self.options.kv_axis)
        }
        for way in sorted(offered, key=lambda way: (way.axis != "heads", way.axis, way.subgroups)):
            splits = tuple(self._splits(each, way, kind) for kind in range(len(self._base.kinds)))
            if not any(splits):
                continue
            most = max(max(split.shares) for listed in splits for split in listed)
            shares = [KvShare(heads=most, axis=way.axis, parts=m, part=0) for m in way.subgroups for _ in range(m)]
            stage_bytes = tuple(self._base.stage_bytes(share, size) for share in shares)
            variant = Variant(way=way, splits=splits, stage_bytes=stage_bytes)
            if not any(dominates(other, variant) for other in found):
                found.append(variant)
        return tuple(found)

    @cached_property
    def _bundles(self) -> tuple[int, ...]:
        """Of each kind: into how many bundles its KV heads are divided."""
        sizes = sizes_of(self._stage_sets)
        return tuple(bundles(attention.num_kv_heads, sizes) for attention in self._attentions)

    def _splits(self, each: DeviceSet, way: KvDivision, kind: int) -> tuple[Split, ...]:
        """Every division of the KV heads of a layer over the subgroups of a way."""
        attention = self._attentions[kind]
        if not allows(attention, self.options, way):
            return ()
        return divided(
            each,
            way,
            attention.num_kv_heads,
            self._bundles[kind],
            lambda axis, members, kv_heads, leads: self._subgroup(kind, axis, members, kv_heads, leads),
            fixed_ns=self._layer_ns(each.devices, kind),
            times=(1,),
        )

    @cached_property
    def _subgroup(self) -> Callable[[int, KvAxis, tuple[int, ...], int, bool], Subgroup]:
        return cache(self._new_subgroup)

    def _new_subgroup(self, kind: int, axis: KvAxis, members: tuple[int, ...], kv_heads: int, leads: bool) -> Subgroup:
        """Of a layer."""
        shares = parts_of(axis, members, kv_heads)
        slowest = self._slowest_ns(members, [self._base.attention(kind, share) for share in shares])
        exchange = self._exchange_ns(self._attentions[kind], self._base.given, members, shares[0])
        nbytes = (self._base.attention_bytes(kind, share, leads and j == 0) for j, share in enumerate(shares))
        return Subgroup(ns=(slowest + exchange,), bytes=tuple(nbytes))

    def _slowest_ns(self, members: Sequence[int], works: Sequence[Work]) -> int:
        return max(work.ns(self.inventory.devices[device]) for work, device in zip(works, members, strict=True))

    def _exchange_ns(self, attention: Attention, given: Pass, members: Sequence[int], share: KvShare) -> int:
        return exchange_ns(attention, given, share, lambda nbytes: self._fabric.tiers(members, nbytes))

    def _layer_ns(self, members: Sequence[int], kind: int) -> int:
        """Of a layer, besides shares: fixed work, the router, and two sums of hidden states over the group."""
        message, router = self._hidden_bytes, self._base.router(kind)
        routed = max(router.ns(self.inventory.devices[device]) for device in members)
        added = all_reduce_ns(self._fabric.tiers(members, message), message)
        return self._overhead_ns(members) + routed + 2 * added

    def _overhead_ns(self, members: Sequence[int]) -> int:
        return max(self.inventory.devices[device].overhead_ns for device in members)

    # ---- links of the chain ----

    @cached_property
    def _receive(self) -> Callable[[DeviceSet, int], Receive]:
        return cache(self._new_receive)

    def _new_receive(self, each: DeviceSet, message_bytes: int) -> Receive:
        """Broadcasts from a leader: inside the group, from its host, from another; each costs what the last does."""
        inner, outer = self._fabric.tiers(each.devices, message_bytes)
        inside = broadcast_ns((inner, outer), message_bytes)
        network = self.inventory.network
        if len(each.hosts) > 1:
            far = broadcast_ns((inner, Tier(count=outer.count + 1, link=network)), message_bytes)
            return Receive(same_ns=0, inside_ns=inside, near_ns=far, far_ns=far)
        host = self._fabric.of_host[each.hosts[0]]
        around = Tier(count=inner.count + 1, link=self._fabric.inner_link(host, message_bytes))
        near = broadcast_ns((around,), message_bytes) if len(host) > len(each.devices) else inside
        far = max(near, inside + message_ns(network, message_bytes)) if network else near
        return Receive(same_ns=0, inside_ns=inside, near_ns=near, far_ns=far)

    def _tell_ns(self, members: Sequence[int]) -> int:
        return broadcast_ns(self._fabric.tiers(members, self._message_bytes), self._message_bytes)

    # ---- axes ----

    def _kind(self, kind: int) -> Kind:
        return Kind(
            units=mlp_units(self._base.kinds[kind].mlp),
            unit_bytes=self._base.unit_bytes(kind),
            unit_ps=tuple(self._base.unit(kind).ps(device) for device in self.inventory.devices),
        )

    @property
    def _quantum_ns(self) -> int:
        """About 1/8192 of the MLPs' time with every device at work, each as far as it has room for layers.

        A power of two, the same for any listing. Where most of the time is that of a slow device, which has what the
        others have no room for, to count finer would make the proof longer and the plan no better.
        """
        estimate = _shared_ps([self._body(device) for device in self.inventory.devices]) // PS_PER_NS
        return 1 << max(0, estimate.bit_length() - QUANTUM_BITS)

    def _body(self, device: Device) -> tuple[Fraction, int]:
        """Which part of all layers a device has room for, and the ps that it would take for the MLPs of all."""
        nbytes, ps = 0, 0
        for kind, count in sequence_of(self.model):
            units = mlp_units(self._base.kinds[kind].mlp)
            whole = KvShare(heads=self._attentions[kind].num_kv_heads, axis="heads", parts=1, part=0)
            nbytes += count * (self._base.attention_bytes(kind, whole, True) + units * self._base.unit_bytes(kind))
            ps += count * units * self._base.unit(kind).ps(device)
        return Fraction(device.capacity_bytes, nbytes), max(1, ps)

    # ---- blocks ----

    def _embed(self, sets: Sequence[DeviceSet]) -> Block:
        """A table that is looked up, and the sum of what was found."""
        message = self._hidden_bytes

        def split(members: tuple[int, ...]) -> Split:
            added = all_reduce_ns(self._fabric.tiers(members, message), message)
            ones = (1,) * len(members)
            return Split(
                shares=ones,
                ns=self._overhead_ns(members) + added,
                bytes=tuple(self._base.embed(len(ones)).fixed for _ in ones),
            )

        options = tuple(
            Option(devices=each.devices, sites=each.hosts, splits=(split(each.devices),), receive=NOTHING)
            for each in sets
        )
        axis = Axis(
            count=self.model.vocab_size // self.row_unit,
            each_bytes=self._base.embed(1).each * self.row_unit,
            each_ps=(0,) * len(self.inventory.devices),
            shared=None,
        )
        return Block(options=options, axes=(axis,))

    def _head(self, sets: Sequence[DeviceSet]) -> Block:
        """Final norm, whole, and the lm_head; the best of each row are gathered."""
        found = step.best_bytes(self.options)

        def split(members: tuple[int, ...]) -> Split:
            size = len(members)
            gather = broadcast_ns(self._fabric.tiers(members, found), found)
            return Split(
                shares=(1,) * size,
                ns=self._overhead_ns(members) + gather,
                bytes=(self._base.head(size).fixed,) * size,
            )

        options = tuple(
            Option(
                devices=each.devices,
                sites=each.hosts,
                splits=(split(each.devices),),
                receive=self._receive(each, self._hop_bytes),
            )
            for each in sets
        )
        work = self._base.rows(self.row_unit)
        axis = Axis(
            count=self.model.vocab_size // self.row_unit,
            each_bytes=self._base.head(1).each * self.row_unit,
            each_ps=tuple(work.ps(device) for device in self.inventory.devices),
            shared=None,
        )
        return Block(options=options, axes=(axis,))

    @cached_property
    def _tail(self) -> "_Tail | None":
        if self.draft is None:
            return None
        chosen = None if self._map is None else self._map.draft
        sets = self._block_sets if chosen is None else self._pinned(chosen)
        return _Tail(formulation=self, draft=self.draft, sets=tuple(sets))


@dataclass(frozen=True, kw_only=True)
class _Tail:
    """The EAGLE head as a block."""

    formulation: Formulation
    draft: Draft
    sets: tuple[DeviceSet, ...]

    @cached_property
    def _shares(self) -> DraftShares:
        return DraftShares(model=self.formulation.model, draft=self.draft, options=self.formulation.options)

    @property
    def block(self) -> Block:
        """Axes: MLP units, rows of the embedding table, rows of the lm_head."""
        draft, devices = self.draft, self.formulation.inventory.devices
        row_unit = self.formulation.row_unit
        units = Axis(
            count=mlp_units(draft.mlp),
            each_bytes=self._shares.unit_bytes,
            each_ps=tuple(self._shares.unit_ps(device) for device in devices),
            shared=None,
        )
        embed = Axis(
            count=self.formulation.model.vocab_size // row_unit,
            each_bytes=self._shares.embed.each * row_unit,
            each_ps=(0,) * len(devices),
            shared=None if draft.own_embedding else "first",
        )
        head = Axis(
            count=draft.draft_vocab_size // row_unit,
            each_bytes=self._shares.head.each * row_unit,
            each_ps=tuple(self._shares.rows_ps(device, row_unit) for device in devices),
            shared="last" if draft.kind == "eagle" else None,
        )
        return Block(options=tuple(map(self._option, self._offered)), axes=(units, embed, head))

    @property
    def ways(self) -> tuple[tuple[KvDivision, ...], ...]:
        """Of each option, of each of its splits."""
        return tuple(self._divisions(each)[0] for each in self._offered)

    @property
    def _offered(self) -> list[DeviceSet]:
        return [each for each in self.sets if self._divisions(each)[0]]

    def _option(self, each: DeviceSet) -> Option:
        nbytes = step.step_features(self.formulation.model, self.draft, self.formulation.options).nbytes
        receive = self.formulation._receive(each, nbytes)
        return Option(devices=each.devices, sites=each.hosts, splits=self._divisions(each)[1], receive=receive)

    @cached_property
    def _divisions(self) -> Callable[[DeviceSet], tuple[tuple[KvDivision, ...], tuple[Split, ...]]]:
        """Ways to divide the KV cache, each with a split: equal sets have the same ones."""
        known: dict[tuple[object, ...], tuple[tuple[KvDivision, ...], tuple[Split, ...]]] = {}

        def divisions(each: DeviceSet) -> tuple[tuple[KvDivision, ...], tuple[Split, ...]]:
            key = self.formulation._signature(each)
            if key not in known:
                known[key] = self._new_divisions(each)
            return known[key]

        return divisions

    @cached_property
    def _bundles(self) -> int:
        return bundles(self.draft.attention.num_kv_heads, sizes_of(self.sets))

    def _new_divisions(self, each: DeviceSet) -> tuple[tuple[KvDivision, ...], tuple[Split, ...]]:
        """By every way, but for splits that another one is never worse than."""
        attention, size, passes = self.draft.attention, len(each.devices), self._shares.passes
        rows = zip(passes, self._shares.read_rows, strict=True)
        fixed = sum(times * self._pass_ns(each.devices, given.rows, read) for (given, times), read in rows)
        nothing = (0,) * size
        found_ways: list[KvDivision] = []
        found: list[Split] = []
        for way in ways(size, attention.num_kv_heads, None):
            if not allows(attention, self.formulation.options, way):
                continue
            splits = divided(
                each,
                way,
                attention.num_kv_heads,
                self._bundles,
                lambda axis, members, kv_heads, leads: self._subgroup(size, axis, members, kv_heads, leads),
                fixed_ns=fixed,
                times=tuple(times for _, times in passes),
            )
            better = [split for split in splits if not any(no_worse(one, split, nothing) for one in found)]
            found += better
            found_ways += [way] * len(better)
        return tuple(found_ways), tuple(found)

    @cached_property
    def _subgroup(self) -> Callable[[int, KvAxis, tuple[int, ...], int, bool], Subgroup]:
        return cache(self._new_subgroup)

    def _new_subgroup(self, size: int, axis: KvAxis, members: tuple[int, ...], kv_heads: int, leads: bool) -> Subgroup:
        """Of all layers, in a group of this size."""
        draft, known, shares = self.draft, self._shares, parts_of(axis, members, kv_heads)
        times = []
        for number, (given, _) in enumerate(known.passes):
            exchange = self.formulation._exchange_ns(draft.attention, given, members, shares[0])
            works = [known.attention(number, share) for share in shares]
            times.append(self.formulation._slowest_ns(members, works) + draft.num_layers * exchange)
        nbytes = (known.bytes(share, leads and j == 0, size) for j, share in enumerate(shares))
        return Subgroup(ns=tuple(times), bytes=tuple(nbytes))

    def _pass_ns(self, members: Sequence[int], rows: int, read_rows: int) -> int:
        """Fixed work and messages of one pass: embedding, two sums per layer, candidates of the rows that are read."""
        draft, fabric = self.draft, self.formulation._fabric
        message = rows * draft.hidden_size * self._shares.passes[0][0].width
        added = all_reduce_ns(fabric.tiers(members, message), message)
        found = step.candidate_bytes(self.formulation.options, read_rows)
        gather = broadcast_ns(fabric.tiers(members, found), found)
        overhead = self.formulation._overhead_ns(members)
        return overhead * (draft.num_layers + 1 + TREE_BLOCKS) + added * (2 * draft.num_layers + 1) + gather


def _shared_ps(bodies: Sequence[tuple[Fraction, int]]) -> int:
    """Time of work that devices share at once: parts of it that they have room for, and ps of each for all of it."""
    left, speed, shared = Fraction(1), sum((Fraction(1, ps) for _, ps in bodies), Fraction(0)), Fraction(0)
    for room, ps in sorted(bodies, key=lambda body: body[0] * body[1]):
        shared = left / speed
        if shared <= room * ps:
            break
        left -= room
        speed -= Fraction(1, ps)
    return math.floor(shared)
