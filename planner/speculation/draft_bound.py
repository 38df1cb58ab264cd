"""A lower bound of the time of a drafter's passes, over all sets of devices and all ways to divide it.

Let d be the fastest device of a placement and m their number. Work that is divided takes no less than it would where
each of the m fastest devices that are no faster than d had a part in proportion to its rate; what is whole on every
member, and fixed work, take no less than on d; and each message of the group no less than over the best link inside
hosts, on the best number of hosts.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from planner.costs.roofline import Tier, all_reduce_ns, gather_ns
from planner.costs.shares import DraftShares
from planner.costs.work import Work
from planner.integers import PS_PER_NS, ceil_div
from plans.cpu_times import rows_ns
from plans.kv import whole_heads
from plans.schema import Device, Inventory
from plans.step import candidate_bytes

MOST_MEMBERS = 32
"""Members of a group up to which its messages are priced; those of larger ones take at least as long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Times:
    """Times of a drafter's passes on one device that had all of it."""

    divided_ps: tuple[int, ...]
    """Attention, MLP and lm_head, each of which waits for its slowest member."""
    whole_ns: int
    """``fc`` and fixed work, which no other member spares it."""

    @property
    def ps(self) -> int:
        return sum(self.divided_ps)


def least_draft_ns(shares: DraftShares, inventory: Inventory) -> int:
    """Return ns that the passes of one step take at least, on any of the devices of an inventory."""
    times_of = cache(lambda figures: _times(shares, next(d for d in inventory.devices if _figures(d) == figures)))
    slowest_first = sorted((times_of(_figures(device)) for device in inventory.devices), key=lambda t: -t.ps)
    # a larger group has no shorter messages
    most = min(len(slowest_first), MOST_MEMBERS)
    messages = [_messages_ns(shares, best) for best in best_tiers(inventory, range(1, most + 1))]
    least: list[float] = []
    for position, fastest in enumerate(slowest_first):
        if position + 1 < len(slowest_first) and slowest_first[position + 1] == fastest:
            continue  # with the last of equal ones the most members may be at hand
        allowed = slowest_first[: position + 1]
        rates = [sorted((1 / t.divided_ps[part] for t in allowed), reverse=True) for part in range(3)]
        totals = [0.0, 0.0, 0.0]
        for members in range(1, len(allowed) + 1):
            totals = [total + own[members - 1] for total, own in zip(totals, rates, strict=True)]
            divided_ns = sum(1 / total for total in totals) / PS_PER_NS
            least.append(fastest.whole_ns + divided_ns + messages[min(members, most) - 1])
    return int(min(least))


def _figures(device: Device) -> tuple[object, ...]:
    rates = device.bandwidth_bytes_per_s, device.flops_per_s, device.measured
    return device.kind, *rates, device.overhead_ns, device.pass_ns


def _times(shares: DraftShares, device: Device) -> _Times:
    draft, width = shares.draft, shares.passes[0][0].width
    whole = whole_heads(draft.attention.num_kv_heads)
    attention_ps, whole_ps = 0, 0
    for number, (sizes, times) in enumerate(shares.passes):
        both = shares.attention(number, whole)
        values = draft.fc_width * draft.hidden_size if number == 0 or draft.kind == "eagle" else 0
        fc = Work(traffic_bytes=values * width, flops=2 * sizes.rows * values)
        rest = dataclasses.replace(
            both, traffic_bytes=both.traffic_bytes - fc.traffic_bytes, flops=both.flops - fc.flops
        )
        attention_ps += times * rest.ps(device)
        whole_ps += times * max(0, both.ps(device) - rest.ps(device))
    kernels, number = shares.kernels, sum(times for _, times in shares.passes)
    values = draft.hidden_size * sum(times * sizes.rows for sizes, times in shares.passes)
    fixed_ns = number * kernels.pass_ns(device, draft.num_layers) + kernels.draft_step_ns(device)
    fixed_ns += draft.num_layers * rows_ns(device, values)
    return _Times(
        divided_ps=(
            attention_ps,
            draft.mlp.units * shares.unit_ps(device),
            shares.rows_ps(device, draft.draft_vocab_size),
        ),
        whole_ns=fixed_ns + whole_ps // PS_PER_NS,
    )


def _messages_ns(shares: DraftShares, best: Sequence[Sequence[Tier]]) -> int:
    """Return the time of the messages of a group over the best link; ``best``: its tiers, of which one is the best."""
    draft, width = shares.draft, shares.passes[0][0].width
    total = 0
    for (sizes, times), read_rows in zip(shares.passes, shares.read_rows, strict=True):
        reduced, gathered = sizes.rows * draft.hidden_size * width, candidate_bytes(shares.options, read_rows)
        sums = 2 * draft.num_layers + 1
        total += times * sums * min(all_reduce_ns(tiers, reduced) for tiers in best)
        total += times * min(gather_ns(tiers, gathered) for tiers in best)
    return total


def best_tiers(inventory: Inventory, numbers: Iterable[int]) -> Iterator[list[tuple[Tier, Tier]]]:
    """Yield for each number of members the groups, with each link inside hosts, of which one has the least messages.

    With no more members on a host these are on the fewest hosts: over more hosts messages between them take no less,
    and inside no less unless fewer members are on the fullest.
    """
    largest = max(Counter(device.host for device in inventory.devices).values())
    links = {host.link for host in inventory.hosts}
    links |= {pair.link for host in inventory.hosts for pair in host.pairs}
    for members in numbers:
        counts = ((inside, ceil_div(members, inside)) for inside in range(1, min(members, largest) + 1))
        yield [
            (Tier(count=inside, link=link), Tier(count=hosts, link=inventory.network))
            for inside, hosts in counts
            if hosts <= len(inventory.hosts)
            for link in links
        ]
