"""Memory through which the ranks of one machine exchange messages: who shares it, and the outbox of each rank in it.

Devices share memory where the inventory says so: those of one host do, and those of all hosts where the network between
them is of the class ``shm``, as hosts that are parts of one machine have it.

A message is cut into pieces of one slot. Its sender alone writes to an outbox, but for the words in brackets:

    slots      SLOTS of SLOT_BYTES                          pieces of messages
    uses       int32 [SLOTS], then the sender's sleep word  how many receivers have yet to take each slot (receivers)
    channels   one of CHANNEL_BYTES per rank of the machine the pieces for that receiver: how many were pushed, its
                                                            sleep word (receiver), and the slots of the last SLOTS
"""

from collections import Counter
from collections.abc import Iterable

from plans.schema import Inventory, Plan
from plans.step import ALIGN_BYTES, round_up

SHARED_LINK = "shm"
"""Class of a network between hosts that share memory."""
SLOTS = 8
"""Pieces that a rank can have sent before any is taken; a power of two."""
SLOT_BYTES = 16384
"""A multiple of what one piece of vector code works on, and of every element."""
USES_BYTES = 64
CHANNEL_BYTES = 64
"""A line of the processor's cache each: what different ranks write does not share one."""
LOOK_NS = 100_000
"""Longest time for which a rank that waits looks for a message before it sleeps, in ns."""
USES_OFFSET = SLOTS * SLOT_BYTES
CHANNELS_OFFSET = USES_OFFSET + USES_BYTES


def outbox_bytes(ranks: int) -> int:
    """Return the bytes of the outbox of each of so many ranks of a machine."""
    return round_up(CHANNELS_OFFSET + ranks * CHANNEL_BYTES, ALIGN_BYTES)


def share_memory(inventory: Inventory, hosts: Iterable[str]) -> bool:
    """Return True where the devices of these hosts share memory."""
    network = inventory.network
    return len(set(hosts)) == 1 or (network is not None and network.link_class == SHARED_LINK)


def sharing(plan: Plan, device_id: str) -> tuple[str, ...]:
    """Return the devices in use that share memory with a device, itself included, in the order of ranks.

    Nothing where no group of the plan exchanges messages that way, or where the device would be alone.
    """
    hosts = {device.id: device.host for device in plan.inventory.devices}
    if "shm" not in plan.transports:
        return ()
    ids = tuple(other for other in plan.placed if share_memory(plan.inventory, (hosts[device_id], hosts[other])))
    return ids if len(ids) > 1 else ()


def most_outbox_bytes(inventory: Inventory) -> int:
    """Return the most bytes that the outbox of any device takes in a plan for this inventory."""
    hosts = Counter(device.host for device in inventory.devices)
    most = hosts.total() if share_memory(inventory, hosts) else max(hosts.values())
    return outbox_bytes(most) if most > 1 else 0
