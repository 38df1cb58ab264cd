"""Arguments of the compiled exchange through shared memory, which ``runtime.model.kernels.exchange`` performs."""

from typing import NamedTuple

BROADCAST, ALL_GATHER, ALL_REDUCE = range(3)


class Exchange(NamedTuple):
    """One collective of a group: addresses, counts and times as int64. Ranks are numbered as in the segment."""

    segment: int
    """Outboxes of all ranks, one behind the other."""
    outbox_bytes: int
    slots: int
    slot_bytes: int
    uses_offset: int
    channels_offset: int
    channel_bytes: int
    own: int
    """This rank."""
    counts: int
    """int64, of this process: slot to be used next; pieces pushed to each rank; pieces taken from each rank."""
    num_ranks: int
    members: int
    """int64 [size]: ranks of the group, in its order."""
    size: int
    position: int
    """Position of this rank in the group."""
    operation: int
    source: int
    """Position of the sender of a broadcast."""
    data: int
    """This rank's message; the target of a broadcast and of a sum."""
    nbytes: int
    out: int
    """[size, nbytes]: target of an all-gather."""
    partial: int
    """Scratch of a slot, for sums of more than two."""
    spin_ns: int
    """Longest time to look for a change without sleep."""
    timeout_ns: int
    """Longest time to wait for one piece."""
    failed: int
    """int64: set to 1 + the rank that did not send or take a piece in time; and scratch of two int64 behind it."""
