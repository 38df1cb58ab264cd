"""Steps on a plan's placement: with its draft left out, as ``--no-draft`` is predicted, or with other trees.

They are priced by the same functions as candidates are, without a solver. Another placement may be faster.
"""

import dataclasses
from collections.abc import Sequence
from itertools import groupby

from planner.costs.shares import BaseShares, DraftShares, kinds_of
from planner.costs.topology import Fabric
from planner.integers import PS_PER_NS, ceil_div, rounds
from planner.problem.device_sets import DeviceSet
from planner.problem.draft_block import passes_ns
from planner.problem.links import Links
from planner.problem.stage_groups import layer_ns
from planner.problem.vocab_blocks import fixed_embed_ns
from plans import step
from plans.kv import kv_shares
from plans.schema import Draft, Options, Plan, Stage
from plans.step import layer_class


def plain_step_ns(plan: Plan) -> int:
    """Return the predicted step of plain decoding on a plan's placement, in ns."""
    return base_ns(plan, dataclasses.replace(plan.options, tree=None), None)


def parts_ns(plan: Plan, options: Options) -> tuple[int, int, int]:
    """Return the time of embedding, stages and lm_head in a step with other options on a plan's placement, in ns."""
    return _Placed(plan, options, plan.draft if options.tree is not None else None).parts_ns()


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
    total = placed.receive(
        placed.device_set(plan.head.devices), group, step.step_features(plan.model, draft, options).nbytes
    )
    for number, (forward, times) in enumerate(shares.passes):
        slowest = 0
        for subgroup in _subgroups(members, sizes):
            own = [kv[members.index(device)] for device in subgroup]
            exchange = links.exchange_ns(draft.attention, forward, subgroup, own[0], links.crowd(members))
            works = [shares.attention(number, share) for share in own]
            own_ns = links.slowest_ns(subgroup, works, links.crowd(members))
            slowest = max(slowest, own_ns + draft.num_layers * exchange)
        total += times * slowest
    devices = links.at_work(members)
    units = (shares.unit_ps(device) * count for device, count in zip(devices, placement.mlp_units, strict=True))
    table = placement.head_rows or plan.head.rows
    rows = (shares.rows_ps(device, 1) * count for device, count in zip(devices, table, strict=True))
    return total + passes_ns(shares, links, members) + ceil_div(max(units), PS_PER_NS) + ceil_div(max(rows), PS_PER_NS)


class _Placed:
    """A plan's placement, to be priced."""

    def __init__(self, plan: Plan, options: Options, draft: Draft | None) -> None:
        self.plan = plan
        self.links = Links(fabric=Fabric(inventory=plan.inventory))
        self.shares = BaseShares(model=plan.model, draft=draft, options=options)
        self.index = {device.id: number for number, device in enumerate(plan.inventory.devices)}

    def ns(self) -> int:
        return sum(self.parts_ns())

    def parts_ns(self) -> tuple[int, int, int]:
        """Return the time of embedding, stages and lm_head, the last with the step message, each with what it
        receives.
        """
        plan, shares, links = self.plan, self.shares, self.links
        hidden, hop = (
            step.hidden_bytes(shares.model, shares.options),
            step.hop_bytes(shares.model, shares.draft, shares.options),
        )
        before, stages_ns = self.device_set(plan.embed.devices), 0
        embed_ns = fixed_embed_ns(shares, links, before.devices) + links.all_reduce_ns(before.devices, hidden)
        for number, stage in enumerate(plan.stages):
            group = self.device_set(stage.devices)
            stages_ns += self.receive(before, group, hop if number else hidden) + self._stage_ns(stage)
            before = group
        head = self.device_set(plan.head.devices)
        rows = (
            shares.rows(count).ns(device)
            for device, count in zip(links.at_work(head.devices), plan.head.rows, strict=True)
        )
        gathered = step.best_bytes(shares.options)
        head_ns = self.receive(before, head, hop) + links.fixed_ns(head.devices, shares.kernels.lm_head_ns)
        head_ns += links.broadcast_ns(head.devices, gathered) + max(rows) + self._messages_ns()
        return embed_ns, stages_ns, head_ns

    def _stage_ns(self, stage: Stage) -> int:
        """Return the time of a stage's layers; the MLPs of all layers together wait for the slowest member."""
        members, kinds = tuple(self.index[name] for name in stage.devices), kinds_of(self.plan.model)
        devices, crowd = self.links.at_work(members), self.links.crowd(members)
        layer, total, units_ps = stage.first_layer, 0, [0] * len(members)
        for run in stage.runs:
            found = layer_class(self.plan.model, layer)
            kind = next(n for n, k in enumerate(kinds) if (k.attention, k.mlp) == (found.attention, found.mlp))
            shares = kv_shares(stage, run.kv_heads)
            works = [self.shares.attention(kind, share) for share in shares]
            exchange = 0
            for subgroup in _subgroups(members, stage.kv_subgroups):
                share, sizes = shares[members.index(subgroup[0])], self.shares.pass_of(found.attention.window)
                exchange = max(exchange, self.links.exchange_ns(found.attention, sizes, subgroup, share, crowd))
            own = layer_ns(self.shares, self.links, members, kind) + self.links.slowest_ns(members, works, crowd)
            total += run.num_layers * (own + exchange)
            unit = self.shares.unit(kind)
            for position, (device, units) in enumerate(zip(devices, run.mlp_units, strict=True)):
                units_ps[position] += run.num_layers * units * unit.ps(device)
            layer += run.num_layers
        return total + ceil_div(max(units_ps), PS_PER_NS)

    def device_set(self, names: Sequence[str]) -> DeviceSet:
        devices = tuple(self.index[name] for name in names)
        return DeviceSet(devices=devices, hosts=tuple(sorted({self.links.fabric.host_of[d] for d in devices})))

    def receive(self, before: DeviceSet, group: DeviceSet, message_bytes: int) -> int:
        receive = self.links.receive(group, message_bytes)
        if before.devices == group.devices:
            return receive.same_ns
        leader = before.devices[0]
        if leader in group.devices:
            return receive.inside_ns
        return receive.near_ns if self.links.fabric.host_of[leader] in group.hosts else receive.far_ns

    def _messages_ns(self) -> int:
        """Return the time of the step message: to the other devices in use of each host, and to each host but one."""
        used = sorted({self.links.fabric.host_of[self.index[device.id]] for device in self.plan.devices})
        counts = {
            host: len(list(group))
            for host, group in groupby(
                sorted(self.links.fabric.host_of[self.index[device.id]] for device in self.plan.devices)
            )
        }
        message = step.message_bytes(self.shares.options)
        inside = sum(
            self.links.round_ns(self.links.fabric.of_host[host], message) * rounds(counts[host]) for host in used
        )
        return inside + (len(used) - 1) * self.links.network_ns(message)


def _subgroups(members: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return [list(members[start : start + size]) for start, size in zip(starts, sizes, strict=True)]
