"""Steps on a plan's placement: with its draft left out, as ``--no-draft`` is predicted, or with other trees.

They are priced by the same functions as candidates are, without a solver: with the options of the plan a step is what
its certificate says. Another placement may be faster.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby

from planner.costs.shares import BaseShares, DraftShares, kinds_of
from planner.costs.topology import Fabric
from planner.integers import PS_PER_NS, ceil_div, rounds
from planner.problem.device_sets import DeviceSet
from planner.problem.draft_block import passes_ns
from planner.problem.links import Links
from planner.problem.quantum import Quanta
from planner.problem.stage_groups import layer_ns
from planner.problem.usable import usable_inventory
from planner.problem.vocab_blocks import fixed_embed_ns, fixed_head_ns, row_unit
from planner.solver.certify import layer_ps, received_ns, slowest_ns
from planner.solver.problem import Receive
from plans import cpu_times, step
from plans.kv import kv_shares
from plans.schema import Draft, Options, Plan, Run, Stage
from plans.step import layer_class


def plain_step_ns(plan: Plan) -> int:
    """Return the predicted step of plain decoding on a plan's placement, in ns."""
    return base_ns(plan, dataclasses.replace(plan.options, tree=None), None)


def parts_ns(plan: Plan, options: Options) -> tuple[int, int, int]:
    """Return the time of embedding, stages and lm_head in a step with other options on a plan's placement, in ns."""
    return _Placed(plan, options, plan.draft if options.tree is not None else None).parts_ns()


def messages_ns(plan: Plan, options: Options) -> tuple[int, int, int]:
    """Return the time of what is sent in a step with other options on a plan's placement, in ns: to the parts of the
    base, of the features that the drafter is sent, and of the step message.

    The first is in the times of the base's parts, the second in that of the drafter, the last in that of the lm_head.
    """
    draft = plan.draft if options.tree is not None else None
    placed = _Placed(plan, options, draft)
    return placed.hops_ns(), 0 if draft is None else _features_ns(plan, options, placed), placed.step_message_ns()


def base_ns(plan: Plan, options: Options, draft: Draft | None) -> int:
    """Return the time of all but the drafter in a step with other options on a plan's placement, in ns."""
    return _Placed(plan, options, draft).ns()


def step_ns(plan: Plan, options: Options) -> int:
    """Return the time of a step with other options on a plan's placement, in ns.

    Without a tree the drafter extends by the token of each sequence, and drafts nothing.
    """
    return base_ns(plan, options, plan.draft) + (draft_ns(plan, options) if plan.draft is not None else 0)


def draft_ns(plan: Plan, options: Options) -> int:
    """Return the time of the drafter's passes of a step, with the features that it is sent, in ns."""
    draft, placement = plan.draft, plan.draft_placement
    assert draft is not None
    assert placement is not None
    placed, shares = _Placed(plan, options, draft), DraftShares(model=plan.model, draft=draft, options=options)
    links, group = placed.links, placed.device_set(placement.devices)
    members, kv = group.devices, kv_shares(placement, placement.kv_heads)
    sizes = placement.kv_subgroups or (1,) * len(members)
    total = _features_ns(plan, options, placed)
    for number, (forward, times) in enumerate(shares.passes):
        slowest = 0
        for subgroup in _subgroups(members, sizes):
            own = [kv[members.index(device)] for device in subgroup]
            exchange = links.exchange_ns(draft.attention, forward, subgroup, own[0], links.crowd(members))
            works = [shares.attention(number, share) for share in own]
            own_ns = links.slowest_ns(subgroup, works, links.crowd(members))
            slowest = max(slowest, own_ns + draft.num_layers * exchange)
        total += times * slowest
    devices, bundle = links.at_work(members), placed.row_unit
    units_ps = tuple(map(shares.unit_ps, devices))
    bundle_ps = tuple(shares.rows_ps(device, bundle) for device in devices)
    bundles = tuple(rows // bundle for rows in placement.head_rows or plan.head.rows)
    quantum_ns = placed.quanta.ns(members)
    total += slowest_ns(placement.mlp_units, units_ps, quantum_ns) + slowest_ns(bundles, bundle_ps, quantum_ns)
    return total + passes_ns(shares, links, members)


def _features_ns(plan: Plan, options: Options, placed: "_Placed") -> int:
    draft, placement = plan.draft, plan.draft_placement
    assert draft is not None
    assert placement is not None
    head, group = (placed.device_set(devices) for devices in (plan.head.devices, placement.devices))
    return placed.receive(head, group, step.step_features(plan.model, draft, options).nbytes)


class _Placed:
    """A plan's placement, to be priced."""

    def __init__(self, plan: Plan, options: Options, draft: Draft | None) -> None:
        inventory = usable_inventory(plan.inventory, plan.options)
        self.plan, self.draft = plan, draft
        self.links = Links(fabric=Fabric(inventory=inventory))
        self.shares = BaseShares(model=plan.model, draft=draft, options=options)
        self.quanta = Quanta(self.shares, inventory.devices)
        self.row_unit = row_unit(plan.model, plan.draft)
        self.index = {device.id: number for number, device in enumerate(inventory.devices)}

    def ns(self) -> int:
        return sum(self.parts_ns())

    def parts_ns(self) -> tuple[int, int, int]:
        """Return the time of embedding, stages and lm_head, the last with the step message, each with what it
        receives.
        """
        plan, shares, links = self.plan, self.shares, self.links
        embed, hidden = self.device_set(plan.embed.devices), step.hidden_bytes(shares.model, shares.options)
        embed_ns = fixed_embed_ns(shares, links, embed.devices) + links.all_reduce_ns(embed.devices, hidden)
        *hops, to_head = self._hops()
        stages_ns = sum(hops) + sum(map(self._stage_ns, plan.stages))
        head = self.device_set(plan.head.devices)
        bundle_ps = tuple(map(shares.rows(self.row_unit).ps, links.at_work(head.devices)))
        bundles = tuple(rows // self.row_unit for rows in plan.head.rows)
        rows_ns = slowest_ns(bundles, bundle_ps, self.quanta.ns(head.devices))
        gathered = step.best_bytes(shares.options)
        head_ns = to_head + fixed_head_ns(shares, links, head.devices)
        head_ns += links.gather_ns(head.devices, gathered) + rows_ns + self.step_message_ns()
        return embed_ns, stages_ns, head_ns

    def hops_ns(self) -> int:
        """Return the time of what stages and lm_head receive."""
        return sum(self._hops())

    def _hops(self) -> Iterator[int]:
        """Yield the time of what each stage receives, and the lm_head."""
        hidden = step.hidden_bytes(self.shares.model, self.shares.options)
        hop = step.hop_bytes(self.shares.model, self.shares.draft, self.shares.options)
        before = self.device_set(self.plan.embed.devices)
        for number, stage in enumerate(self.plan.stages):
            group = self.device_set(stage.devices)
            yield self._hop(before, group, hop) if number else self._first_hop(before, group, hidden)
            before = group
        yield self.receive(before, self.device_set(self.plan.head.devices), hop)

    def _stage_ns(self, stage: Stage) -> int:
        """Return the time of a stage's layers as :mod:`planner.solver.certify` counts it, without what it receives.

        The MLPs of all layers of a kind wait for the slowest member, and take no less than if each layer were divided
        in the best way.
        """
        members, kinds = tuple(self.index[name] for name in stage.devices), kinds_of(self.plan.model)
        devices, quantum_ns = self.links.at_work(members), self.quanta.ns(members)
        layer, runs = stage.first_layer, defaultdict[int, list[Run]](list)
        for run in stage.runs:
            found = layer_class(self.plan.model, layer)
            kind = next(n for n, k in enumerate(kinds) if (k.attention, k.mlp) == (found.attention, found.mlp))
            runs[kind].append(run)
            layer += run.num_layers
        total = self.links.fixed_ns(members, cpu_times.stage_ns)
        for kind, own in runs.items():
            fixed_ns = layer_ns(self.shares, self.links, members, kind)
            divided_ns = sum(run.num_layers * (fixed_ns + self._attention_ns(stage, kind, run)) for run in own)
            total += quantum_ns * ceil_div(divided_ns, quantum_ns)
            units = [sum(run.num_layers * run.mlp_units[position] for run in own) for position in range(len(members))]
            unit_ps = tuple(map(self.shares.unit(kind).ps, devices))
            least_ps = sum(run.num_layers for run in own) * layer_ps(kinds[kind].mlp.units, unit_ps)
            least_ns = quantum_ns * ceil_div(least_ps, PS_PER_NS * quantum_ns)
            total += max(slowest_ns(tuple(units), unit_ps, quantum_ns), least_ns)
        return total

    def _attention_ns(self, stage: Stage, kind: int, run: Run) -> int:
        """Return the time of attention in a layer: that of the slowest subgroup, with its exchange."""
        members, attention = tuple(self.index[name] for name in stage.devices), self.shares.kinds[kind].attention
        shares, crowd, slowest = kv_shares(stage, run.kv_heads), self.links.crowd(members), 0
        sizes = self.shares.pass_of(attention.window)
        for subgroup in _subgroups(members, stage.kv_subgroups):
            own = [shares[members.index(device)] for device in subgroup]
            exchange = self.links.exchange_ns(attention, sizes, subgroup, own[0], crowd)
            works = [self.shares.attention(kind, share) for share in own]
            slowest = max(slowest, self.links.slowest_ns(subgroup, works, crowd) + exchange)
        return slowest

    def device_set(self, names: Sequence[str]) -> DeviceSet:
        devices = tuple(self.index[name] for name in names)
        return DeviceSet(devices=devices, hosts=tuple(sorted({self.links.fabric.host_of[d] for d in devices})))

    def receive(self, before: DeviceSet, group: DeviceSet, message_bytes: int) -> int:
        return self._received_ns(self.links.receive(group, message_bytes), before, group)

    def _first_hop(self, before: DeviceSet, group: DeviceSet, message_bytes: int) -> int:
        return self._received_ns(self.links.receive_awake(group, message_bytes), before, group)

    def _received_ns(self, receive: Receive, before: DeviceSet, group: DeviceSet) -> int:
        near = self.links.fabric.host_of[before.devices[0]]
        return received_ns(receive, group.devices, before.devices, near in group.hosts)

    def _hop(self, before: DeviceSet, group: DeviceSet, message_bytes: int) -> int:
        """Return the time of a hop between stages: near inside one host, far where either is over several."""
        receive = self.links.receive(group, message_bytes)
        return receive.near_ns if before.hosts == group.hosts else receive.far_ns

    def step_message_ns(self) -> int:
        """Return the time of the step message: to the other devices in use of each host, and to each host but one."""
        used = sorted({self.links.fabric.host_of[self.index[device.id]] for device in self.plan.devices})
        counts = {
            host: len(list(group))
            for host, group in groupby(
                sorted(self.links.fabric.host_of[self.index[device.id]] for device in self.plan.devices)
            )
        }
        message, inside = step.message_bytes(self.shares.options), 0
        last = self.plan.head if self.draft is None else self.plan.draft_placement
        assert last is not None
        awake = {device.id for device in self.plan.devices} <= set(last.devices)
        for host in used:
            members, several = self.links.fabric.of_host[host], counts[host] > 1
            awake_ns, round_ns = self.links.awake_ns(members, message), self.links.round_ns(members, message)
            if awake_ns is None:
                inside += round_ns * rounds(counts[host])
            else:
                waits_ns = self.links.waits_ns(members, walks=self.shares.options.tree is not None)
                asleep_ns = round_ns + waits_ns[counts[host] - 1] if waits_ns else round_ns
                inside += (awake_ns if awake else asleep_ns) * several
        return inside + (len(used) - 1) * self.links.network_ns(message)


def _subgroups(members: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return [list(members[start : start + size]) for start, size in zip(starts, sizes, strict=True)]
