"""Model, head, options and inventory -> the integers of a Problem: candidate groups, bytes and times of every share.

A group is any set of devices of one host, as large as the number of KV heads at most. Of devices that nothing tells
apart only runs of neighbours are listed: every division of equal devices into groups is one of these, renamed.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, product

import networkx as nx

from planner import layout, memory
from planner.cost import PS_PER_NS, all_reduce_ns, broadcast_ns, share_ns, share_ps
from planner.graph import blocks, message_ns, slowest_link, topology
from planner.problem import Column, Group, Problem, Tail, TailGroup
from plans.buffers import (
    draft_buffers,
    draft_kv_bytes,
    head_buffers,
    kv_bytes,
    kv_rows,
    stage_buffers,
    whole_heads,
)
from plans.schema import DTYPE_BYTES, Attention, Device, Draft, Inventory, LayerClass, Link, Model, Options

MOST_COARSE_SHARES = 16
"""KV heads are dealt out one by one up to so many, beyond that in equal bundles."""

MOST_ROW_UNIT = 64

QUANTUM_BITS = 14

TREE_BLOCKS = 2
"""Growing and pruning the tree after a pass of the head takes about as long as so many blocks' fixed work."""


@dataclass(frozen=True, kw_only=True)
class Formulation:
    """What is planned, as given; ``problem`` is what the solver sees of it."""

    model: Model
    draft: Draft | None
    options: Options
    inventory: Inventory

    @cached_property
    def problem(self) -> Problem:
        devices = self.inventory.devices
        embed = memory.table(
            lambda n: layout.embed_bytes(self.model, self.options.dtype, n), self.vocab, self.hidden, self.options.dtype
        )
        head = self._head
        hosts = [host.name for host in self.inventory.hosts]
        return Problem(
            devices=tuple(device.id for device in devices),
            capacity_bytes=tuple(device.memory_bytes - device.reserve_bytes for device in devices),
            hosts=tuple(self._of_host(name) for name in hosts),
            layers=sum(c.num_layers for c in self.model.layers),
            units=memory.mlp_units(self.layer.mlp),
            unit_bytes=memory.layer_mlp(self.model, self.options.dtype, self.layer, True).each,
            unit_ps=tuple(self._unit_ps(device, self.hidden, self.layer.mlp.unit, self.rows) for device in devices),
            first_rows=self.vocab // self.row_unit,
            first_row_bytes=embed.each * self.row_unit,
            last_rows=self.vocab // self.row_unit,
            last_row_bytes=head.each * self.row_unit,
            row_ps=tuple(self._row_ps(device, self.hidden, self.rows) for device in devices),
            quantum_ns=self._quantum_ns,
            groups=tuple(self._group(members, embed.fixed) for members in self._members),
            tail=self._tail() if self.draft else None,
            fixed_ns=0,
            message_ns=tuple(self._tell_ns(self._of_host(name)) for name in hosts),
            network_message_ns=message_ns(self.inventory.network, self._message_bytes) if self.inventory.network else 0,
        )

    # ---- sizes of the step ----

    @property
    def layer(self) -> LayerClass:
        (layer_class,) = self.model.layers
        return layer_class

    @property
    def vocab(self) -> int:
        return self.model.vocab_size

    @property
    def hidden(self) -> int:
        return self.model.hidden_size

    @property
    def width(self) -> int:
        return DTYPE_BYTES[self.options.dtype]

    @property
    def rows(self) -> int:
        """Rows of a verify: tree nodes of all sequences."""
        return self.options.batch * (self.options.tree.total_token if self.options.tree else 1)

    @property
    def row_unit(self) -> int:
        """Vocabulary rows are dealt out in such bundles: a power of two that divides both vocabularies."""
        both = math.gcd(self.vocab, self.draft.draft_vocab_size if self.draft else self.vocab)
        return math.gcd(both, MOST_ROW_UNIT)

    @property
    def passes(self) -> list[int]:
        """Rows of each pass of the head in a step: the accepted ones first, then depth beams."""
        tree = self.options.tree
        assert tree is not None
        return [self.options.batch * (tree.depth + 2)] + [self.options.batch * tree.top_k] * tree.depth

    @property
    def _message_bytes(self) -> int:
        return 8 * (3 * self.rows + 64)

    @cached_property
    def _traffic(self) -> "nx.DiGraph[str]":
        return blocks(self.model, self.draft, self.options)

    @cached_property
    def _graph(self) -> "nx.Graph[str]":
        return topology(self.inventory)

    # ---- groups ----

    def _of_host(self, name: str) -> tuple[int, ...]:
        return tuple(index for index, device in enumerate(self.inventory.devices) if device.host == name)

    @cached_property
    def _members(self) -> list[tuple[int, ...]]:
        heads = coarse_shares(self.layer.attention.num_kv_heads)
        found: list[tuple[int, ...]] = []
        for host in self.inventory.hosts:
            classes = self._classes(host.name, apart=bool(host.pairs))
            for picked in product(*(list(_neighbours(members)) for members in classes)):
                members = tuple(sorted(index for part in picked for index in part))
                if 0 < len(members) <= heads:
                    found.append(members)
        return sorted(found, key=lambda members: (len(members), members))

    def _classes(self, host: str, *, apart: bool) -> list[tuple[int, ...]]:
        """Devices of a host that nothing tells apart; links of their own tell devices apart."""

        def kind(index: int) -> tuple[object, ...]:
            device = self.inventory.devices[index]
            rates = (device.bandwidth_bytes_per_s, device.flops_per_s, device.overhead_ns)
            sizes = (device.memory_bytes - device.reserve_bytes, device.kind, *rates)
            return (*sizes, index) if apart else sizes

        indices = sorted(self._of_host(host), key=kind)
        return [tuple(sorted(members)) for _, members in groupby(indices, key=kind)]

    def _link(self, members: Sequence[int], message_bytes: int) -> Link | None:
        return slowest_link(self._graph, [self.inventory.devices[index].id for index in members], message_bytes)

    def _group(self, members: tuple[int, ...], embed_fixed: int) -> Group:
        devices = [self.inventory.devices[index] for index in members]
        count = len(members)
        host = devices[0].host
        hidden_bytes = self.rows * self.hidden * self.width
        hop_bytes = self._traffic.edges["layer0", "layer1"]["traffic_bytes"] if self._traffic.has_node("layer1") else 0
        around = self._link(self._of_host(host), hop_bytes)
        overhead = max(device.overhead_ns for device in devices)
        gather = broadcast_ns(self._link(members, self.rows * 16), count, self.rows * 16)
        network = self.inventory.network
        return Group(
            devices=members,
            host=[h.name for h in self.inventory.hosts].index(host),
            columns=tuple(self._column(members, shares) for shares in self._divisions(self.layer.attention, count)),
            hop_ns=broadcast_ns(around, count + 1, hop_bytes) if around else 0,
            network_hop_ns=broadcast_ns(network, count + 1, hop_bytes) if network else 0,
            stage_bytes=tuple(self._stage_bytes(count) + embed_fixed for _ in members),
            first_ns=overhead + all_reduce_ns(self._link(members, hidden_bytes), count, hidden_bytes),
            last_ns=overhead + gather,
            last_bytes=(layout.norm_bytes(self.model, self.options.dtype) + self._head.fixed,) * count,
        )

    def _divisions(self, attention: Attention, count: int) -> Iterator[tuple[int, ...]]:
        shares = coarse_shares(attention.num_kv_heads)
        bundle = attention.num_kv_heads // shares
        for parts in compositions(shares, count):
            yield tuple(bundle * part for part in parts)

    def _column(self, members: tuple[int, ...], shares: tuple[int, ...]) -> Column:
        message = self.rows * self.hidden * self.width
        reduce_ns = all_reduce_ns(self._link(members, message), len(members), message)
        devices = [self.inventory.devices[index] for index in members]
        slowest = max(self._attention_ns(device, share) for device, share in zip(devices, shares, strict=True))
        overhead = max(device.overhead_ns for device in devices)
        return Column(
            shares=shares,
            ns=slowest + overhead + 2 * reduce_ns,
            bytes=tuple(self._layer_bytes(share, j == 0) for j, share in enumerate(shares)),
        )

    def _layer_bytes(self, kv_heads: int, leader: bool) -> int:
        dtype = self.options.dtype
        attention = layout.attention_bytes(self.model, dtype, self.layer, whole_heads(kv_heads), leader)
        mlp = memory.layer_mlp(self.model, dtype, self.layer, leader)
        return attention + mlp.fixed + kv_bytes(self.options, self.layer.attention, whole_heads(kv_heads))

    def _stage_bytes(self, count: int) -> int:
        most = self.layer.attention.num_kv_heads - (count - 1)
        units = memory.mlp_units(self.layer.mlp)
        buffers = stage_buffers(
            self.model, self.draft, self.options, share=whole_heads(most), mlp_units=units, group_size=count
        )
        return layout.rope_bytes(self.model) + memory.total(buffers)

    @cached_property
    def _head(self) -> memory.Affine:
        dtype = self.options.dtype
        slots = memory.table(lambda n: layout.head_bytes(self.model, dtype, n), self.vocab, self.hidden, dtype)
        most = max(len(members) for members in self._members)
        return memory.with_rows(
            slots,
            lambda n: head_buffers(self.model, self.draft, self.options, rows=n, group_size=most, hop=False),
            self.vocab,
        )

    # ---- times ----

    def _attention_ns(self, device: Device, kv_heads: int) -> int:
        attention = self.layer.attention
        kv = kv_bytes(self.options, attention, whole_heads(kv_heads))
        return share_ns(device, *self._attention_work(attention, self.hidden, kv_heads, self.rows, kv))

    def _attention_work(
        self, attention: Attention, inputs: int, kv_heads: int, rows: int, kv: int
    ) -> tuple[int, int]:
        """Traffic and arithmetic of an attention share: its slices of q, k, v and o, and its KV."""
        heads = kv_heads * attention.num_heads // attention.num_kv_heads
        parameters = attention.head_dim * ((heads + 2 * kv_heads) * inputs + heads * self.hidden)
        scores = 4 * rows * kv_rows(self.options) * heads * attention.head_dim
        return parameters * self.width + kv, 2 * rows * parameters + scores

    @property
    def _quantum_ns(self) -> int:
        """About 1/8192 of the MLP's time with every device at work: a power of two, the same for any listing."""
        fastest = min(self._unit_ps(d, self.hidden, self.layer.mlp.unit, self.rows) for d in self.inventory.devices)
        units = memory.mlp_units(self.layer.mlp) * sum(c.num_layers for c in self.model.layers)
        estimate = units * fastest // (PS_PER_NS * len(self.inventory.devices))
        return 1 << max(0, estimate.bit_length() - QUANTUM_BITS)

    def _unit_ps(self, device: Device, hidden: int, unit: int, rows: int) -> int:
        parameters = 3 * hidden * unit
        return share_ps(device, parameters * self.width, 2 * rows * parameters)

    def _row_ps(self, device: Device, hidden: int, rows: int) -> int:
        parameters = hidden * self.row_unit
        return share_ps(device, parameters * self.width, 2 * rows * parameters)

    def _tell_ns(self, devices: tuple[int, ...]) -> int:
        return broadcast_ns(self._link(devices, self._message_bytes), len(devices), self._message_bytes)

    # ---- the draft ----

    def _tail(self) -> Tail:
        draft = self.draft
        assert draft is not None
        dtype, devices = self.options.dtype, self.inventory.devices
        embed = memory.table(lambda n: layout.draft_embed_bytes(draft, dtype, n), self.vocab, draft.hidden_size, dtype)
        head = memory.table(
            lambda n: layout.draft_head_bytes(draft, dtype, n), draft.draft_vocab_size, draft.hidden_size, dtype
        )
        most = coarse_shares(draft.attention.num_kv_heads)
        tables = embed.fixed + head.fixed
        groups = [(index, members) for index, members in enumerate(self._members) if len(members) <= most]
        feature_bytes = self._traffic.edges["head", "draft"]["traffic_bytes"]
        network = self.inventory.network
        return Tail(
            groups=tuple(self._tail_group(draft, index, members, tables) for index, members in groups),
            units=memory.mlp_units(draft.mlp),
            unit_bytes=memory.draft_mlp(draft, dtype, True).each,
            unit_ps=tuple(
                draft.num_layers
                * sum(self._unit_ps(d, draft.hidden_size, draft.mlp.unit, rows) for rows in self.passes)
                for d in devices
            ),
            first_rows=self.vocab // self.row_unit,
            first_row_bytes=embed.each * self.row_unit,
            shares_first=not draft.own_embedding,
            last_rows=draft.draft_vocab_size // self.row_unit,
            last_row_bytes=head.each * self.row_unit,
            shares_last=draft.kind == "eagle",
            row_ps=tuple(sum(self._row_ps(d, draft.hidden_size, rows) for rows in self.passes) for d in devices),
            network_ns=message_ns(network, feature_bytes) if network else 0,
        )

    def _tail_group(self, draft: Draft, index: int, members: tuple[int, ...], tables: int) -> TailGroup:
        feature_bytes = self._traffic.edges["head", "draft"]["traffic_bytes"]
        count = len(members)
        around = self._link(self._of_host(self.inventory.devices[members[0]].host), feature_bytes)
        return TailGroup(
            group=index,
            columns=tuple(
                self._tail_column(draft, members, shares, tables) for shares in self._divisions(draft.attention, count)
            ),
            receive_ns=broadcast_ns(around, count + 1, feature_bytes) if around else 0,
            receive_inside_ns=broadcast_ns(self._link(members, feature_bytes), count, feature_bytes),
        )

    def _tail_column(self, draft: Draft, members: tuple[int, ...], shares: tuple[int, ...], tables: int) -> Column:
        devices = [self.inventory.devices[index] for index in members]
        work = 0
        for position, rows in enumerate(self.passes):
            with_fc = position == 0 or draft.kind == "eagle"
            slowest = max(self._draft_ns(draft, d, k, rows, with_fc) for d, k in zip(devices, shares, strict=True))
            work += self._pass_ns(draft, members, rows) + slowest
        fixed = layout.draft_fixed_bytes(draft, self.options.dtype) + tables
        return Column(
            shares=shares,
            ns=work,
            bytes=tuple(
                fixed + self._draft_bytes(draft, share, j == 0, len(members)) for j, share in enumerate(shares)
            ),
        )

    def _pass_ns(self, draft: Draft, members: tuple[int, ...], rows: int) -> int:
        """Fixed work and messages of one pass: embedding, two sums per layer, candidates."""
        count = len(members)
        overhead = max(self.inventory.devices[index].overhead_ns for index in members)
        message = rows * draft.hidden_size * self.width
        reduce_ns = all_reduce_ns(self._link(members, message), count, message)
        assert self.options.tree is not None
        found = rows * self.options.tree.top_k * 16
        gather = broadcast_ns(self._link(members, found), count, found)
        return overhead * (draft.num_layers + 1 + TREE_BLOCKS) + reduce_ns * (2 * draft.num_layers + 1) + gather

    def _draft_ns(self, draft: Draft, device: Device, kv_heads: int, rows: int, with_fc: bool) -> int:
        """Attention of one pass, and fc, which each device of the group computes whole."""
        inputs = 2 * draft.hidden_size if draft.kind == "eagle3" else draft.hidden_size
        kv = draft_kv_bytes(self.options, draft, kv_heads)
        traffic, flops = self._attention_work(draft.attention, inputs, kv_heads, rows, kv)
        width = len(draft.aux_layers) * draft.target_hidden_size if draft.kind == "eagle3" else 2 * draft.hidden_size
        fc = width * draft.hidden_size if with_fc else 0
        return share_ns(device, traffic + fc * self.width, flops + 2 * rows * fc)

    def _draft_bytes(self, draft: Draft, kv_heads: int, leader: bool, count: int) -> int:
        dtype = self.options.dtype
        buffers = draft_buffers(
            self.model,
            draft,
            self.options,
            kv_heads=kv_heads,
            mlp_units=memory.mlp_units(draft.mlp),
            embed_rows=self.vocab,
            head_rows=draft.draft_vocab_size,
            group_size=count,
        )
        attention = layout.draft_attention_bytes(draft, dtype, kv_heads, leader)
        mlp = memory.draft_mlp(draft, dtype, leader).fixed
        return attention + mlp + memory.total(buffers) + draft_kv_bytes(self.options, draft, kv_heads)


def coarse_shares(kv_heads: int) -> int:
    """Into how many equal bundles KV heads are divided at most."""
    divisors = [n for n in range(MOST_COARSE_SHARES, 1, -1) if kv_heads % n == 0]
    return kv_heads if kv_heads <= MOST_COARSE_SHARES or not divisors else divisors[0]


def compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Every way to write ``total`` as ``parts`` positive numbers in order."""
    if parts == 1:
        yield (total,)
        return
    for first in range(1, total - parts + 2):
        for rest in compositions(total - first, parts - 1):
            yield (first, *rest)


def _neighbours(members: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """No member, and every run of neighbours."""
    yield ()
    for start in range(len(members)):
        for stop in range(start + 1, len(members) + 1):
            yield members[start:stop]
