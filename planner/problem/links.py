"""Times of messages between devices, and of the fixed work of a block, as the solver is given them.

Knows the links of an inventory and the roofline's collectives; message sizes come from :mod:`plans.step`, what a share
computes from :mod:`planner.costs.work`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from planner.costs.fixed_work import CAPTURED
from planner.costs.roofline import Tier, all_reduce_ns, broadcast_ns, gather_ns, message_ns
from planner.costs.topology import Fabric, together
from planner.costs.work import Pass, Work, exchange_ns
from planner.problem.device_sets import DeviceSet
from planner.problem.machine import Look, look_of
from planner.solver.problem import Receive
from plans import cpu_times
from plans.kv import KvShare
from plans.schema import Attention, Device
from plans.shared_memory import LOOK_NS

NOTHING = Receive(same_ns=0, inside_ns=0, near_ns=0, far_ns=0)
"""Cost of receiving nothing, as the first block of the chain does."""


def later(receive: Receive, ns: int) -> Receive:
    """Return the cost of receiving and of fixed work of so many ns behind it."""
    return Receive(
        same_ns=receive.same_ns + ns,
        inside_ns=receive.inside_ns + ns,
        near_ns=receive.near_ns + ns,
        far_ns=receive.far_ns + ns,
    )


@dataclass(frozen=True, kw_only=True)
class Links:
    """Times of collectives, hops and fixed work, in ns; devices are indices in inventory order."""

    fabric: Fabric

    @property
    def devices(self) -> tuple[Device, ...]:
        """Devices of the inventory."""
        return self.fabric.inventory.devices

    @cached_property
    def _looks(self) -> tuple[Look, ...]:
        return tuple(map(look_of, self.devices))

    def each(self, price: Callable[[Device], int]) -> tuple[int, ...]:
        """Return a price of every device, which is that of any other that looks like it."""
        unlike = dict(zip(self._looks, self.devices, strict=True))
        prices = {look: price(device) for look, device in unlike.items()}
        return tuple(map(prices.__getitem__, self._looks))

    @cached_property
    def receive(self) -> Callable[[DeviceSet, int], Receive]:
        """Return the cost of receiving a message of so many bytes from the leader of the link of the chain before, with
        receivers that sleep.
        """
        return cache(self._receive)

    def receive_awake(self, device_set: DeviceSet, message_bytes: int) -> Receive:
        """Return that cost with receivers that wait for the embedding alone, and sleep where it takes longer than they
        look for a message.
        """
        return self._receive(device_set, message_bytes, awake=self._embeds_briefly)

    @cached_property
    def _embeds_briefly(self) -> bool:
        """Whether each CPU's embedding takes no longer than who waits for it looks."""
        return all(cpu_times.table_ns(device) <= LOOK_NS for device in self.devices if device.kind == "cpu")

    def _receive(self, device_set: DeviceSet, message_bytes: int, *, awake: bool = False) -> Receive:
        """Price broadcasts from a leader inside the set, from its host, and from another host, in rising order."""
        inner, outer = self.fabric.tiers(device_set.devices, message_bytes)
        inside = broadcast_ns((inner, outer), message_bytes, awake=awake)
        network = self.fabric.inventory.network
        if len(device_set.hosts) > 1:
            far = broadcast_ns((inner, Tier(count=outer.count + 1, link=network)), message_bytes, awake=awake)
            return Receive(same_ns=0, inside_ns=inside, near_ns=far, far_ns=far)
        host = self.fabric.of_host[device_set.hosts[0]]
        around = Tier(count=inner.count + 1, link=self.fabric.inner_link(host, message_bytes))
        near = inside
        if len(host) > len(device_set.devices):
            near = max(inside, broadcast_ns((around,), message_bytes, awake=awake))
        far = max(near, inside + message_ns(network, message_bytes, awake=awake)) if network else near
        return Receive(same_ns=0, inside_ns=inside, near_ns=near, far_ns=far)

    def gather_ns(self, members: Sequence[int], message_bytes: int) -> int:
        """Return the time of a gather of so many bytes in all in a group."""
        return gather_ns(self.fabric.tiers(members, message_bytes), message_bytes)

    def round_ns(self, members: Sequence[int], message_bytes: int) -> int:
        """Return the time of one message among devices of one host, over their slowest link; 0 for a single one."""
        link = self.fabric.inner_link(members, message_bytes)
        return message_ns(link, message_bytes) if link else 0

    def awake_ns(self, members: Sequence[int], message_bytes: int) -> int | None:
        """Return the time of a message to devices of one host that are awake; None where they make no difference."""
        link = self.fabric.inner_link(members, message_bytes)
        if link is None or link.awake_ns is None:
            return None
        return message_ns(link, message_bytes, awake=True)

    def waits_ns(self, members: Sequence[int], *, walks: bool) -> tuple[int, ...]:
        """Return by how much later the last of 1, 2, ... of the CPUs of a host has a step message for which some sleep.

        All have it at once, and each that has it first does the host's work of the step, which is ``table`` and, where
        the step ``walks`` a tree, ``tree``: of more processes than cores the last one waits for a core as much longer
        as the work of so many takes more than that of two. None where who is awake makes no difference.
        """
        link, devices = self.fabric.inner_link(members, 0), [self.devices[member] for member in members]
        if link is None or link.awake_ns is None or any(device.kind != "cpu" for device in devices):
            return ()
        unlike = {look_of(device): device for device in devices}.values()

        def host_ns(count: int) -> int:
            own = [together(device, count) for device in unlike]
            return max(cpu_times.table_ns(device) + walks * cpu_times.tree_ns(device) for device in own)

        return tuple(max(0, host_ns(count) - host_ns(2)) if count > 2 else 0 for count in range(1, len(members) + 1))

    def all_reduce_ns(self, members: Sequence[int], message_bytes: int) -> int:
        """Return the time of a sum over a group."""
        return all_reduce_ns(self.fabric.tiers(members, message_bytes), message_bytes)

    def network_ns(self, message_bytes: int) -> int:
        """Return the time of one message to another host, 0 where there is none."""
        network = self.fabric.inventory.network
        return message_ns(network, message_bytes) if network else 0

    def exchange_ns(
        self, attention: Attention, rows: Pass, members: Sequence[int], share: KvShare, crowd: tuple[int, ...]
    ) -> int:
        """Return the time in which a subgroup completes its attention from the parts of its members.

        ``crowd``: as in :meth:`slowest_ns`.
        """
        merges = rows.merges(attention)
        divided = self.fixed_ns(
            crowd or members, lambda device: CAPTURED.divided_ns(device, share, rows.kv_rows, merges=merges)
        )
        return divided + exchange_ns(attention, rows, share, lambda nbytes: self.fabric.tiers(members, nbytes))

    def at_work(self, members: Sequence[int]) -> tuple[Device, ...]:
        """Return the devices of a group as fast as they are while all of them compute."""
        return self.fabric.at_work(tuple(members))

    def crowd(self, group: tuple[int, ...]) -> tuple[int, ...]:
        """Return the members of a group where its computing at once makes any slower, and else none."""
        return group if self.fabric.shares_cores else ()

    def slowest_ns(self, members: Sequence[int], works: Sequence[Work], crowd: tuple[int, ...]) -> int:
        """Return the time of the slowest of some members of a group, each with its own work.

        ``crowd``: all that compute meanwhile, as :meth:`crowd` has them.
        """
        if not crowd:
            looks = (self._looks[member] for member in members)
            unlike = dict(zip(zip(works, looks, strict=True), members, strict=True))
            return max(work.ns(self.devices[member]) for (work, _), member in unlike.items())
        at_work = dict(zip(crowd, self.at_work(crowd), strict=True))
        return max(work.ns(at_work[member]) for work, member in zip(works, members, strict=True))

    def slowed_ps(
        self, members: Sequence[int], pieces_ps: Sequence[Callable[[Device], int]]
    ) -> tuple[tuple[int, ...], ...] | None:
        """Return the time of pieces of each sort on members that all compute; None where nothing slows them down."""
        if not self.fabric.shares_cores or len(members) == 1:
            return None
        return tuple(tuple(map(piece_ps, self.at_work(members))) for piece_ps in pieces_ps)

    def fixed_ns(self, members: Sequence[int], time_ns: Callable[[Device], int]) -> int:
        """Return the time of the slowest member for work of :mod:`planner.costs.fixed_work`."""
        return max(map(time_ns, self._unlike(tuple(members))))

    @cached_property
    def _unlike(self) -> Callable[[tuple[int, ...]], tuple[Device, ...]]:
        """Return devices of a group, as fast as while all of them compute, one of those that look alike."""

        def unlike(members: tuple[int, ...]) -> tuple[Device, ...]:
            if not self.fabric.shares_cores:
                return tuple(self.devices[d] for d in {self._looks[d]: d for d in members}.values())
            return tuple({look_of(device): device for device in self.at_work(members)}.values())

        return cache(unlike)
