"""Connection of the ranks of a run: where they meet, and the transports of their groups.

    parent has all ranks    one plan for all; memory and, for gloo and NCCL, a store in files without a name
    torchrun                a store of torchrun's: digests of the plans, the address of the memory of each machine, and
                            those of gloo and NCCL

Ranks whose groups are all ``shm`` open no port.
"""

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import FileStore, Store, TCPStore

from plans import codec
from plans.schema import Device, Plan, Transport
from plans.shared_memory import sharing
from runtime.comm.groups import Collectives, Comm, Group, groups, is_device_error
from runtime.comm.host_work import HostWork
from runtime.comm.progress import Progress
from runtime.comm.shared_memory import Kernels, SharedGroup, SharedMemory, address_of, path_of, unnamed_memory
from runtime.comm.torch_groups import TorchGroup
from runtime.errors import MachineError, MeetingError, PeerError

UNCONNECTED = (
    "a firewall or another network interface may be in between, a process may have died, or another program may have "
    'connected to a port of the run (runtime/README.md, "Network")'
)
"""Reasons why ranks do not connect that nobody can tell apart."""
TIMEOUT = timedelta(minutes=10)
"""Time-out of a collective; the watchdog, which can tell who hangs, ends a run long before."""
MOST_SHOWN = 80
"""Characters of a value of the store that a message shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendezvous:
    """Meeting point of the ranks of a run: files that all of them open, or the address of a store."""

    file: str | None = None
    """Path of the file of the store."""
    memory: tuple[str | None, ...] = ()
    """Paths of the memory that each rank shares, by rank; None: a rank shares none."""
    address: tuple[str, int] | None = None

    def store(self, world: int) -> Store:
        """Return the store; wait for one that is not there yet, and raise RuntimeError where none comes."""
        if self.file is not None:
            return FileStore(self.file, world)
        assert self.address is not None, "a rendezvous has a file or an address"
        return TCPStore(*self.address, timeout=TIMEOUT, wait_for_workers=False)


def machines(plan: Plan) -> dict[int, tuple[int, ...]]:
    """Return, for each rank that shares memory, the ranks that it shares it with, itself included."""
    numbers = {device: rank for rank, device in enumerate(plan.placed)}
    shared = {rank: tuple(numbers[other] for other in sharing(plan, device)) for device, rank in numbers.items()}
    return {rank: ranks for rank, ranks in shared.items() if ranks}


@contextmanager
def shared_by_ranks(plan: Plan) -> Iterator[tuple[str | None, ...]]:
    """Yield the paths of the memory that each rank of a plan shares, all made by this process. Raises MachineError."""
    of_rank = machines(plan)
    with ExitStack() as resources:
        paths = {
            ranks: resources.enter_context(unnamed_memory(len(ranks))) for ranks in dict.fromkeys(of_rank.values())
        }
        yield tuple(paths[of_rank[rank]] if rank in of_rank else None for rank in range(len(plan.placed)))


def connect(plan: Plan, rank: int, rendezvous: Rendezvous | None, progress: Progress, kernels: Kernels) -> Comm:
    """Connect to the other ranks and make the plan's groups.

    ``rendezvous``: None where there is only one rank. ``kernels``: compiled code of the exchange through shared memory.
    Raises MeetingError where the ranks do not connect, PeerError where one has another plan, and MachineError where
    ranks that share memory in the plan are on different machines.
    """
    world = len(plan.devices)
    if rendezvous is None or world == 1:
        return groups(plan, _maker(plan, rank, progress, None))
    with ExitStack() as resources:
        try:
            stored = plan.transports & {"gloo", "nccl"}
            store = rendezvous.store(world) if stored or rendezvous.address is not None else None
            if store is not None and rendezvous.address is not None:
                _agree(store, plan, rank)
            if store is not None and stored:
                dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=TIMEOUT)
                resources.callback(_disconnect)
                progress.tick()
            memory = _share(plan, rank, rendezvous, store, kernels, resources)
            comm = groups(plan, _maker(plan, rank, progress, memory))
        except (RuntimeError, ValueError) as error:
            if is_device_error(error):
                raise
            reason = str(error).partition("\n")[0]
            raise MeetingError(
                f"rank {rank} of {world} did not connect to the others: {reason}: {UNCONNECTED}"
            ) from error
        outbox = None if memory is None else memory.outbox
        return replace(comm, outbox=outbox, resources=resources.pop_all())


def _agree(store: Store, plan: Plan, rank: int) -> None:
    """Compare the digests of all ranks' plans; raise PeerError where one differs."""
    own = codec.digest(plan)
    store.set(f"plan/{rank}", own)
    for other in range(len(plan.devices)):
        digest = store.get(f"plan/{other}").decode("ascii", "replace")
        if digest != own:
            theirs = ascii(digest[:16])[1:-1]
            raise PeerError(f"rank {other} has plan {theirs}, rank {rank} {own[:16]}: give all hosts the same plan")


def _share(
    plan: Plan, rank: int, rendezvous: Rendezvous, store: Store | None, kernels: Kernels, resources: ExitStack
) -> SharedMemory | None:
    """Return the memory that a rank shares; under torchrun the first of its ranks makes it and tells the others."""
    ranks = machines(plan).get(rank)
    if ranks is None:
        return None
    if rendezvous.address is None:
        path = rendezvous.memory[rank]
    else:
        assert store is not None, "under torchrun there is a store"
        key = f"memory/{ranks[0]}"
        if rank == ranks[0]:
            path = resources.enter_context(unnamed_memory(len(ranks)))
            store.set(key, address_of(path))
        else:
            path = path_of(store.get(key).decode("ascii", "replace")[:MOST_SHOWN])
    if path is not None:
        with contextlib.suppress(FileNotFoundError, PermissionError):
            return SharedMemory(path, ranks, rank, kernels)
    first = plan.devices[ranks[0]]
    raise MachineError(
        f"device {plan.devices[rank].id} (rank {rank}) shares memory with {first.id} (rank {ranks[0]}) in the plan, "
        "and cannot open it: start the ranks of a host on one machine, as one user, in one container; hosts that are "
        "different machines have a network of another class than shm"
    )


def _disconnect() -> None:
    """Leave the groups of torch."""
    if dist.is_initialized():
        dist.destroy_process_group()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Maker:
    """Factory that makes each of torch's groups once, in the same order on every rank, as torch requires."""

    rank: int
    device: Device
    progress: Progress
    host: HostWork
    memory: SharedMemory | None
    handles: dict[tuple[tuple[int, ...], str], dist.ProcessGroup]
    """By ascending ranks and transport."""

    def group(self, name: str, ranks: tuple[int, ...], transport: Transport) -> Group | None:
        collectives = self._collectives(ranks, transport)
        if self.rank not in ranks:
            return None
        waits = transport in ("gloo", "shm")
        return Group(
            name=name, ranks=ranks, rank=self.rank, handle=collectives, waits=waits,
            staged=waits and self.device.kind == "cuda", progress=self.progress, host=self.host,
        )  # fmt: skip

    def _collectives(self, ranks: tuple[int, ...], transport: Transport) -> Collectives | None:
        if transport == "local":
            return None
        if transport == "shm":
            if self.rank not in ranks:
                return None
            assert self.memory is not None, "ranks of a group over shared memory share some"
            return SharedGroup.of(self.memory, ranks, self.rank)
        return TorchGroup(handle=self._handle(ranks, transport), ranks=ranks)

    def _handle(self, ranks: tuple[int, ...], transport: Transport) -> dist.ProcessGroup:
        key = (tuple(sorted(ranks)), transport)
        if key not in self.handles:
            handle = self.handles[key] = dist.new_group(list(key[0]), backend=transport, timeout=TIMEOUT)
            self.progress.tick()
            if transport == "nccl" and self.rank in ranks:
                # makes its buffers and connections now rather than in the first step
                dist.all_reduce(torch.zeros(1, device="cuda"), group=handle)
                torch.cuda.synchronize()
                self.progress.tick()
        return self.handles[key]


def _maker(plan: Plan, rank: int, progress: Progress, memory: SharedMemory | None) -> _Maker:
    """Return the factory of a rank's groups."""
    device = plan.devices[rank]
    return _Maker(rank=rank, device=device, progress=progress, host=HostWork(), memory=memory, handles={})
