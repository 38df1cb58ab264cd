"""The drafter (EAGLE head) as a block: its fine axes are MLP units, embedding rows and lm_head rows.

A drafter runs several passes per step: one over the accepted tokens, then one per level of the tree. Its KV cache is
divided as that of a stage is, but there is one option per device set, with a split for each division.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property

from planner.costs.shares import DraftShares
from planner.costs.work import Pass
from planner.problem.device_sets import Candidates, DeviceSet, Known
from planner.problem.kv_splits import (
    Subgroup,
    allows,
    bundles,
    divided,
    kv_divisions,
    no_worse,
    parts_of,
    sizes_of,
)
from planner.problem.links import Links
from planner.problem.quantum import Quanta
from planner.solver.problem import Axis, Block, Option, Split
from plans import step
from plans.kv import KvDivision
from plans.schema import Device, KvAxis

Splits = tuple[tuple[KvDivision, Split], ...]


@dataclass(frozen=True, kw_only=True)
class DraftBlock:
    """The drafter on the device sets that may run it."""

    shares: DraftShares
    candidates: Candidates
    links: Links
    quanta: Quanta
    sets: tuple[DeviceSet, ...]
    bundle_rows: int
    splits: Known[Splits] = field(default_factory=dict)
    """Splits of sets that were priced before, also of a machine with fewer hosts."""
    subgroups: Known[Subgroup] = field(default_factory=dict)
    """Subgroups likewise."""

    @property
    def block(self) -> Block:
        """Return the block; its axes are MLP units, rows of the embedding and rows of the lm_head."""
        draft, devices = self.shares.draft, self.links.devices
        units = Axis(
            count=draft.mlp.units,
            each_bytes=self.shares.unit_bytes,
            read_bytes=(0,) * len(devices),
            each_ps=self.links.each(self.shares.unit_ps),
            shared=None,
        )
        embed = Axis(
            count=self.shares.model.vocab_size // self.bundle_rows,
            each_bytes=self.shares.embed.slope * self.bundle_rows,
            read_bytes=(0,) * len(devices),
            each_ps=(0,) * len(devices),
            shared=None if draft.own_embedding else "first",
        )
        lm_head = Axis(
            count=draft.draft_vocab_size // self.bundle_rows,
            each_bytes=self.shares.head.slope * self.bundle_rows,
            read_bytes=(0,) * len(devices),
            each_ps=self.links.each(self._bundle_ps),
            shared=None if draft.own_head else "last",
        )
        return Block(options=tuple(map(self._option, self._offered)), axes=(units, embed, lm_head))

    def _bundle_ps(self, device: Device) -> int:
        return self.shares.rows_ps(device, self.bundle_rows)

    @cached_property
    def kv_divisions(self) -> tuple[tuple[KvDivision, ...], ...]:
        """Division of the KV cache of every split of every option."""
        return tuple(tuple(division for division, _ in self._splits(members)) for members in self._offered)

    @cached_property
    def _offered(self) -> list[DeviceSet]:
        return [device_set for device_set in self.sets if self._splits(device_set)]

    def _option(self, device_set: DeviceSet) -> Option:
        shares = self.shares
        features = step.step_features(shares.model, shares.draft, shares.options).nbytes
        return Option(
            devices=device_set.devices,
            sites=device_set.hosts,
            splits=tuple(split for _, split in self._splits(device_set)),
            receive=self.links.receive(device_set, features),
            quantum_ns=self.quanta.ns(device_set.devices),
            slowed_ps=self.links.slowed_ps(device_set.devices, (shares.unit_ps, lambda device: 0, self._bundle_ps)),
        )

    @cached_property
    def _splits(self) -> Callable[[DeviceSet], Splits]:
        """Return the splits of a set with their divisions."""
        return self.candidates.priced_once(self._new_splits, self.splits, self._bundles)

    def _new_splits(self, device_set: DeviceSet) -> Splits:
        """Price every division of the KV cache; leave out splits for which another is never worse."""
        attention, passes = self.shares.draft.attention, self.shares.passes
        size, members = len(device_set.devices), device_set.devices
        fixed_ns, crowd = passes_ns(self.shares, self.links, members), self.links.crowd(members)
        kept: list[tuple[KvDivision, Split]] = []
        for division in kv_divisions(size, attention.num_kv_heads, None):
            if not allows(attention, self.shares.options, division):
                continue
            splits = divided(
                device_set,
                division,
                attention.num_kv_heads,
                self._bundles,
                lambda axis, part, kv_heads, leads: self._subgroup(part, size, axis, kv_heads, leads, crowd),
                fixed_ns=fixed_ns,
                times=tuple(times for _, times in passes),
            )
            earlier = [split for _, split in kept]
            kept += [
                (division, split)
                for split in splits
                if not any(no_worse(other, split, (0,) * size) for other in earlier)
            ]
        return tuple(kept)

    @cached_property
    def _bundles(self) -> int:
        return bundles(self.shares.draft.attention.num_kv_heads, sizes_of(self.sets))

    @cached_property
    def _subgroup(self) -> Callable[[tuple[int, ...], int, KvAxis, int, bool, tuple[int, ...]], Subgroup]:
        return self.candidates.parts_priced_once(self._new_subgroup, self.subgroups)

    def _new_subgroup(
        self, members: tuple[int, ...], size: int, axis: KvAxis, kv_heads: int, leads: bool, crowd: tuple[int, ...]
    ) -> Subgroup:
        """Price the attention of all layers for a subgroup of a group of ``size``; ``leads``: with the leader."""
        shares = enumerate(zip(parts_of(axis, members, kv_heads), members, strict=True))
        nbytes = (
            self.shares.bytes(share, leads and j == 0, size, self.links.devices[device].kind == "cuda")
            for j, (share, device) in shares
        )
        return Subgroup(ns=self._subgroup_ns(members, axis, kv_heads, crowd), bytes=tuple(nbytes))

    @cached_property
    def _subgroup_ns(self) -> Callable[[tuple[int, ...], KvAxis, int, tuple[int, ...]], tuple[int, ...]]:
        """Return the time of each pass of a subgroup, in a group of any size."""
        return cache(self._new_subgroup_ns)

    def _new_subgroup_ns(
        self, members: tuple[int, ...], axis: KvAxis, kv_heads: int, crowd: tuple[int, ...]
    ) -> tuple[int, ...]:
        draft, shares = self.shares.draft, parts_of(axis, members, kv_heads)
        times = []
        for number, (forward, _) in enumerate(self.shares.passes):
            exchange = self.links.exchange_ns(draft.attention, forward, members, shares[0], crowd)
            works = [self.shares.attention(number, share) for share in shares]
            times.append(self.links.slowest_ns(members, works, crowd) + draft.num_layers * exchange)
        return tuple(times)


def passes_ns(shares: DraftShares, links: Links, members: Sequence[int]) -> int:
    """Return the time of all passes of a step besides shares: fixed work and messages."""
    rows = zip(shares.passes, shares.read_rows, strict=True)
    passes = (times * _pass_ns(shares, links, members, forward, read) for (forward, times), read in rows)
    return (links.fixed_ns(members, shares.kernels.draft_step_ns) if shares.options.tree else 0) + sum(passes)


def _pass_ns(shares: DraftShares, links: Links, members: Sequence[int], forward: Pass, read_rows: int) -> int:
    """Return the fixed work and messages of one pass.

    These are the embedding, two sums per layer, and the gathering of the candidates of the rows that are read.
    """
    draft = shares.draft
    rows, merges = forward.rows, forward.merges(draft.attention)
    message = rows * draft.hidden_size * shares.passes[0][0].width
    added = links.all_reduce_ns(members, message)
    gather = links.gather_ns(members, step.candidate_bytes(shares.options, read_rows)) if read_rows else 0
    values = rows * draft.hidden_size
    fixed = links.fixed_ns(
        members,
        lambda device: shares.kernels.pass_ns(device, draft.num_layers, values, merges=merges, members=len(members)),
    )
    return fixed + added * (2 * draft.num_layers + 1) + gather
