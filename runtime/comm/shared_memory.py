"""Collectives through memory that the ranks of a machine share: its file without a name, and the groups in it.

``plans.shared_memory`` says which ranks share memory, and what lies where; ``exchange`` what the compiled code is
given. No port is opened, and only processes of this user can open the file. A rank that waits does so in compiled code,
without the interpreter's lock: first it looks, and lets others run between two looks; after ``LOOK_NS`` it sleeps. On a
virtual machine of two cores whoever wakes another takes 30 to 55 us for it, which the slowest rank then does amid a
step, and 5 us where the other looks; who is woken is 50 to 85 us late. No core is busy for longer: where ranks with
unequal shares wait longer in each layer, they sleep. Whoever watches the ranks ends those that wait for one that died
or hangs, as in any other group.
"""

import ctypes
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from plans import shared_memory as layout
from runtime.comm.exchange import ALL_GATHER, ALL_REDUCE, BROADCAST, Exchange
from runtime.errors import MachineError

TIMEOUT_NS = 600 * 10**9
"""Time-out of one piece of a message, in ns; the watchdog ends a run long before."""
SUMMED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Dtypes of sums: those that the kernels know. Other messages are bytes, of any dtype."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NAMELESS = "the memory that ranks share"
_pack = struct.Struct(f"{len(Exchange._fields)}q").pack

Kernels = Callable[[torch.dtype], Callable[[bytes], None]]
"""The compiled exchange for a dtype: a function of packed `Exchange`."""


class SharedMemory:
    """Memory of the ranks of one machine, as one of them has it."""

    def __init__(self, path: str, ranks: tuple[int, ...], rank: int, kernels: Kernels) -> None:
        """Map the file at ``path``, which ``unnamed_memory`` has made for ``ranks``. Raises OSError, MachineError."""
        self.ranks, self._kernels = ranks, kernels
        self._own, size = ranks.index(rank), layout.outbox_bytes(len(ranks))
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            _require_nameless(path, os.fstat(descriptor), len(ranks) * size)
            mapped = mmap.mmap(descriptor, len(ranks) * size)
        finally:
            os.close(descriptor)
        self._segment = torch.frombuffer(mapped, dtype=torch.uint8)
        self.outbox = self._segment[self._own * size : (self._own + 1) * size]
        self._counts = torch.zeros(1 + 2 * len(ranks), dtype=torch.int64)
        self._failed = (ctypes.c_int64 * 3)()
        self._partial = torch.zeros(layout.SLOT_BYTES, dtype=torch.uint8)

    def exchange(
        self, operation: int, data: Tensor, members: Tensor, position: int, *, out: Tensor, source: int = 0
    ) -> None:
        """Perform a collective of the ranks ``members``, of which this is the one at ``position``.

        Raises RuntimeError where a rank neither sends nor takes a message for TIMEOUT_NS.
        """
        self.bound(operation, data, members, position, out=out, source=source)()

    def bound(
        self, operation: int, data: Tensor, members: Tensor, position: int, *, out: Tensor, source: int = 0
    ) -> Callable[[], None]:
        """Return ``exchange`` of these operands, whose memory the caller keeps, written down once for many calls.

        Behind a layer, whose weights drive the interpreter's code out of the caches, the writing takes 20 to 40 us.
        """
        assert data.is_contiguous(), "a message is one piece of memory"
        assert out.is_contiguous(), "a message is one piece of memory"
        words = Exchange(
            segment=self._segment.data_ptr(),
            outbox_bytes=self.outbox.nbytes,
            slots=layout.SLOTS,
            slot_bytes=layout.SLOT_BYTES,
            uses_offset=layout.USES_OFFSET,
            channels_offset=layout.CHANNELS_OFFSET,
            channel_bytes=layout.CHANNEL_BYTES,
            own=self._own,
            counts=self._counts.data_ptr(),
            num_ranks=len(self.ranks),
            members=members.data_ptr(),
            size=members.shape[0],
            position=position,
            operation=operation,
            source=source,
            data=data.data_ptr(),
            nbytes=data.nbytes,
            out=out.data_ptr(),
            partial=self._partial.data_ptr(),
            spin_ns=layout.LOOK_NS,
            timeout_ns=TIMEOUT_NS,
            failed=ctypes.addressof(self._failed),
        )
        packed, failed = _pack(*words), self._failed
        kernel = self._kernels(data.dtype if operation == ALL_REDUCE else torch.float32)

        def run() -> None:
            kernel(packed)
            if failed[0]:
                raise RuntimeError(f"rank {self.ranks[failed[0] - 1]} took no part for {TIMEOUT_NS // 10**9} s")

        return run


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedGroup:
    """A group of ranks that share memory. Sums are taken in its order: ((x0 + x1) + x2) + ..., on every member."""

    memory: SharedMemory
    ranks: tuple[int, ...]
    members: Tensor
    """int64 [members]: their numbers in the memory."""
    position: int
    """Position of this rank in the group."""

    @classmethod
    def of(cls, memory: SharedMemory, ranks: tuple[int, ...], rank: int) -> "SharedGroup":
        members = torch.tensor([memory.ranks.index(member) for member in ranks])
        return cls(memory=memory, ranks=ranks, members=members, position=ranks.index(rank))

    def broadcast(self, tensor: Tensor, source: int) -> None:
        self.memory.exchange(
            BROADCAST, tensor, self.members, self.position, out=tensor, source=self.ranks.index(source)
        )

    def all_reduce(self, tensor: Tensor) -> None:
        self.sum_of(tensor)()

    def sum_of(self, tensor: Tensor) -> Callable[[], None]:
        """Return the all-reduce of a tensor, whose memory the caller keeps, for many calls."""
        assert tensor.dtype in SUMMED, f"{tensor.dtype} has no sum through shared memory"
        return self.memory.bound(ALL_REDUCE, tensor, self.members, self.position, out=tensor)

    def all_gather(self, own: Tensor, out: Tensor) -> None:
        assert out.nbytes == len(self.ranks) * own.nbytes, "a row for every member"
        self.memory.exchange(ALL_GATHER, own, self.members, self.position, out=out)


@contextmanager
def unnamed_memory(ranks: int) -> Iterator[str]:
    """Yield a path by which processes of this user open zeroed memory for the outboxes of so many ranks of a machine.

    It has no name, and so is never left behind; its size cannot be changed. Raises MachineError where there is not as
    much memory.
    """
    descriptor = os.memfd_create("ranks", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    size = ranks * layout.outbox_bytes(ranks)
    try:
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            raise MachineError(f"{NAMELESS}: {size} bytes cannot be had: {error.strerror}") from error
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        yield f"/proc/{os.getpid()}/fd/{descriptor}"
    finally:
        os.close(descriptor)


def address_of(path: str) -> str:
    """Return the words by which a process of the same machine finds an unnamed file, and another one that it cannot."""
    _, _, pid, _, descriptor = path.split("/")
    return f"{_boot_id()} {pid} {descriptor}"


def path_of(address: str) -> str | None:
    """Return the path of an unnamed file of this machine; None for one of another machine, or for no address."""
    match address.split(" "):
        case [boot, pid, descriptor] if boot == _boot_id() and pid.isdecimal() and descriptor.isdecimal():
            return f"/proc/{int(pid)}/fd/{int(descriptor)}"
    return None


def _boot_id() -> str:
    return BOOT_ID.read_text().strip()


def _require_nameless(path: str, status: os.stat_result, size: int) -> None:
    """Raise MachineError for a file that ``unnamed_memory`` has not made for this user."""
    expected = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_nlink == 0
    if not expected or status.st_size != size:
        raise MachineError(f"{NAMELESS}: {path} is not a file of {size} bytes of this user, without a name")
