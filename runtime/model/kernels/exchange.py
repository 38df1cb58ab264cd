"""Exchange of messages between ranks through outboxes (``plans.shared_memory``): broadcast, all-gather, all-reduce.

A sender copies a piece into a free slot of its outbox and pushes the slot into the channel of each receiver; a receiver
takes the pieces of a channel in order, and gives the slot back. Any two ranks go through their groups in one order, so
a channel needs no group. Whoever waits looks at a word for a while, then sleeps until the other side wakes it:

    waiter    sleep word = 1; fence; word unchanged: sleep (futex)        so that either the waiter sees the new word,
    changer   word = new;     fence; sleep word set: wake                 or the changer sees that it sleeps

A sum is taken in the order of the group, ((x0 + x1) + x2) + ..., each addition rounded to the dtype, on every member.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic

from runtime.comm.exchange import ALL_GATHER, ALL_REDUCE, BROADCAST, Exchange
from runtime.model.kernels.elements import (
    I32,
    I64,
    arguments_of,
    itemsize,
    narrowed,
    numbers,
    pointer,
    scalar_of,
    widened,
)

LANES = 8
FUTEX = 202
"""Number of the system call on x86-64."""
WAIT, WAKE = 0, 1
LOOKS = 32
"""Looks at a word, about 1 us, between two looks at the clock; then another process may have the core."""
SLEEP_NS = 1_000_000_000
"""Longest sleep before the time-out is compared again."""
MONOTONIC = 1
PAUSE = ir.FunctionType(ir.VoidType(), [])

exchange_arguments = arguments_of(Exchange)
memcpy = types.ExternalFunction("memcpy", types.int64(types.int64, types.int64, types.int64))
syscall = types.ExternalFunction("syscall", types.int64(*[types.int64] * 7))
sched_yield = types.ExternalFunction("sched_yield", types.int32())
clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.int64))


# ---- words that ranks share ----


@intrinsic  # type: ignore[untyped-decorator]
def load(typing: Any, address: Any) -> Any:
    """Return the int32 at an address; what its writer wrote before it is seen, too."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        value = builder.load_atomic(pointer(builder, args[0]), "acquire", 4, typ=I32)
        return builder.sext(value, I64)

    return types.int64(types.int64), code


@intrinsic  # type: ignore[untyped-decorator]
def store(typing: Any, address: Any, value: Any) -> Any:
    """Store an int32, after everything that was written before."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        word = builder.inttoptr(args[0], I32.as_pointer())
        builder.store_atomic(builder.trunc(args[1], I32), word, "release", 4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), code


@intrinsic  # type: ignore[untyped-decorator]
def decrease(typing: Any, address: Any) -> Any:
    """Subtract 1 from an int32 in one piece; return what it was."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        before = builder.atomic_rmw("sub", pointer(builder, args[0]), I32(1), "seq_cst")
        return builder.sext(before, I64)

    return types.int64(types.int64), code


@intrinsic  # type: ignore[untyped-decorator]
def fence(typing: Any) -> Any:
    """Let no load before what was stored."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), code


@intrinsic  # type: ignore[untyped-decorator]
def pause(typing: Any) -> Any:
    """Leave the core to its other thread for a moment, as in every loop that waits."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        builder.call(cgutils.get_or_insert_function(builder.module, PAUSE, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), code


@njit(error_model="numpy")  # type: ignore[untyped-decorator]
def now(scratch: Any) -> Any:
    """Return the time in ns; ``scratch``: address of two int64."""
    clock_gettime(np.int32(MONOTONIC), scratch)
    time = numbers(scratch)
    return time[0] * 1_000_000_000 + time[1]


@njit(error_model="numpy")  # type: ignore[untyped-decorator]
def wait(a: Any, word: Any, seen: Any, asleep: Any) -> Any:
    """Wait until a word is no more what was seen; return False where that takes too long."""
    looks = 0
    begin = np.int64(0)
    scratch = a.failed + 8
    while load(word) == seen:
        pause()
        looks += 1
        if looks % LOOKS == 0:
            time = now(scratch)
            if begin == 0:
                begin = time
            elif time - begin > a.spin_ns:
                break
            sched_yield()
    if load(word) != seen:
        return True
    while True:
        store(asleep, 1)
        fence()
        if load(word) != seen:
            break
        limit = numbers(scratch)
        limit[0], limit[1] = SLEEP_NS // 1_000_000_000, SLEEP_NS % 1_000_000_000
        syscall(FUTEX, word, WAIT, seen, scratch, 0, 0)
        if load(word) != seen:
            break
        if now(scratch) - begin > a.timeout_ns:
            return False
    store(asleep, 0)
    return True


@njit(error_model="numpy")  # type: ignore[untyped-decorator]
def wake(word: Any, asleep: Any) -> Any:
    """Wake who sleeps until a word changes, which it just did."""
    fence()
    if load(asleep) != 0:
        syscall(FUTEX, word, WAKE, 1, 0, 0, 0)


# ---- pieces ----


@njit(error_model="numpy")  # type: ignore[untyped-decorator]
def use_of(a: Any, rank: Any, slot: Any) -> Any:
    return a.segment + rank * a.outbox_bytes + a.uses_offset + 4 * slot


@njit(error_model="numpy")  # type: ignore[untyped-decorator]
def channel_of(a: Any, sender: Any, receiver: Any) -> Any:
    return a.segment + sender * a.outbox_bytes + a.channels_offset + receiver * a.channel_bytes


@njit(error_model="numpy")  # type: ignore[untyped-decorator]
def slot_of(a: Any, sender: Any, receiver: Any, number: Any) -> Any:
    """Return the slot of piece ``number`` of a channel, in bounds whatever the word has."""
    return load(channel_of(a, sender, receiver) + 8 + 4 * (number & (a.slots - 1))) & (a.slots - 1)


@njit(error_model="numpy")  # type: ignore[untyped-decorator]
def free(a: Any) -> Any:
    """Return a free slot of this rank's outbox, or -1."""
    first = numbers(a.counts)[0]
    for n in range(a.slots):
        slot = (first + n) & (a.slots - 1)
        if load(use_of(a, a.own, slot)) == 0:
            return slot
    return np.int64(-1)


@njit(error_model="numpy")  # type: ignore[untyped-decorator]
def send(a: Any, address: Any, nbytes: Any) -> Any:
    """Copy a piece into a free slot and push it to all other members; return False where no slot becomes free."""
    counts, members = numbers(a.counts), numbers(a.members)
    slot = free(a)
    while slot < 0:
        oldest = counts[0]
        seen = load(use_of(a, a.own, oldest))
        if seen != 0 and not wait(a, use_of(a, a.own, oldest), seen, use_of(a, a.own, a.slots)):
            return False
        slot = free(a)
    counts[0] = (slot + 1) & (a.slots - 1)
    memcpy(a.segment + a.own * a.outbox_bytes + slot * a.slot_bytes, address, nbytes)
    store(use_of(a, a.own, slot), a.size - 1)
    for n in range(a.size):
        receiver = members[n]
        if receiver != a.own:
            channel = channel_of(a, a.own, receiver)
            pushed = counts[1 + receiver]
            store(channel + 8 + 4 * (pushed & (a.slots - 1)), slot)
            counts[1 + receiver] = pushed + 1
            store(channel, pushed + 1)
            wake(channel, channel + 4)
    return True


@njit(error_model="numpy")  # type: ignore[untyped-decorator]
def take(a: Any, sender: Any) -> Any:
    """Return the slot of the next piece of a sender; -1 where none comes in time."""
    counts = numbers(a.counts)
    taken = counts[1 + a.num_ranks + sender]
    channel = channel_of(a, sender, a.own)
    seen = np.int64(np.int32(taken))
    if load(channel) == seen and not wait(a, channel, seen, channel + 4):
        return np.int64(-1)
    counts[1 + a.num_ranks + sender] = taken + 1
    return slot_of(a, sender, a.own, taken)


@njit(error_model="numpy")  # type: ignore[untyped-decorator]
def give_back(a: Any, sender: Any, slot: Any) -> Any:
    """Let a sender use a slot again, once all receivers have given it back."""
    use = use_of(a, sender, slot)
    if decrease(use) == 1:
        wake(use, use_of(a, sender, a.slots))


@njit(error_model="numpy")  # type: ignore[untyped-decorator]
def piece(a: Any, rank: Any, slot: Any) -> Any:
    return a.segment + rank * a.outbox_bytes + slot * a.slot_bytes


# ---- sums ----


@intrinsic  # type: ignore[untyped-decorator]
def add(typing: Any, data: Any, target: Any, left: Any, right: Any) -> Any:
    """Store the sums of LANES elements at two addresses, rounded to nearest, ties to even; a NaN stays a NaN."""
    return types.void(data, *[types.int64] * 3), _adder(LANES)


@intrinsic  # type: ignore[untyped-decorator]
def add_one(typing: Any, data: Any, target: Any, left: Any, right: Any) -> Any:
    """Store the sum of one element, as ``add`` does."""
    return types.void(data, *[types.int64] * 3), _adder(1)


def _adder(lanes: int) -> Any:
    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        element = signature.args[0].dtype
        vector, align = ir.VectorType(scalar_of(element), lanes), element.bitwidth // 8

        def value(address: Any) -> Any:
            return widened(builder, builder.load(pointer(builder, address), typ=vector, align=align), element)

        total = builder.fadd(value(args[2]), value(args[3]))
        builder.store(narrowed(builder, total, element), pointer(builder, args[1]), align=align)
        return context.get_dummy_value()

    return code


@njit(error_model="numpy")  # type: ignore[untyped-decorator]
def add_piece(data: Any, target: Any, left: Any, right: Any, nbytes: Any) -> Any:
    """Store the sums of the elements of two pieces; the target may be one of them."""
    step = LANES * itemsize(data)
    done = nbytes // step * step
    for offset in range(0, done, step):
        add(data, target + offset, left + offset, right + offset)
    for offset in range(done, nbytes, itemsize(data)):
        add_one(data, target + offset, left + offset, right + offset)


@njit(error_model="numpy")  # type: ignore[untyped-decorator]
def reduce_piece(data: Any, a: Any, offset: Any, nbytes: Any) -> Any:
    """Replace a piece of the own message by the sum of those of all members; return 0, or 1 + who is missing."""
    members, own = numbers(a.members), a.data + offset
    left, slot = own, np.int64(-1)
    if a.position != 0:
        slot = take(a, members[0])
        if slot < 0:
            return 1 + members[0]
        left = piece(a, members[0], slot)
    for n in range(1, a.size):
        sender, right, taken = members[n], own, np.int64(-1)
        if n != a.position:
            taken = take(a, sender)
            if taken < 0:
                return 1 + sender
            right = piece(a, sender, taken)
        target = own if n == a.size - 1 else a.partial
        add_piece(data, target, left, right, nbytes)
        if taken >= 0:
            give_back(a, sender, taken)
        if slot >= 0:
            give_back(a, members[0], slot)
            slot = np.int64(-1)
        left = target
    return np.int64(0)


@njit(error_model="numpy")  # type: ignore[untyped-decorator]
def gather_piece(a: Any, first: Any, last: Any, offset: Any, nbytes: Any) -> Any:
    """Copy a piece of the messages of members ``first`` to before ``last``; return 0, or 1 + who is missing."""
    members = numbers(a.members)
    for n in range(first, last):
        target = a.out + (n - first) * a.nbytes + offset
        if n == a.position:
            memcpy(target, a.data + offset, nbytes)
            continue
        slot = take(a, members[n])
        if slot < 0:
            return 1 + members[n]
        memcpy(target, piece(a, members[n], slot), nbytes)
        give_back(a, members[n], slot)
    return np.int64(0)


def exchange(data: Any) -> None:
    """Perform a collective; arguments: ``Exchange``. Pieces are sent ahead as far as there are free slots."""
    a = exchange_arguments(data)
    failed = numbers(a.failed)
    failed[0] = 0
    sends = a.operation != BROADCAST or a.position == a.source
    receives = a.operation != BROADCAST or a.position != a.source
    sent, received = np.int64(0) if sends else a.nbytes, np.int64(0) if receives else a.nbytes
    while sent < a.nbytes or received < a.nbytes:
        if sent < a.nbytes and (sent <= received or free(a) >= 0):
            nbytes = min(a.slot_bytes, a.nbytes - sent)
            if not send(a, a.data + sent, nbytes):
                failed[0] = 1 + a.own
                return
            sent += nbytes
            continue
        nbytes = min(a.slot_bytes, a.nbytes - received)
        if a.operation == ALL_REDUCE:
            missing = reduce_piece(data, a, received, nbytes)
        elif a.operation == ALL_GATHER:
            missing = gather_piece(a, np.int64(0), a.size, received, nbytes)
        else:
            missing = gather_piece(a, a.source, a.source + 1, received, nbytes)
        if missing != 0:
            failed[0] = missing
            return
        received += nbytes
