"""All ranks of a plan as threads of this process: the product's code, with collectives in memory.

The members of a group put their tensors into a table, meet at a barrier and read what they need. A rank that fails
breaks every barrier, so that all ranks end.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from plans.buffer import Term
from plans.schema import Plan, Transport
from runtime.comm.groups import Comm, Group, groups
from runtime.comm.host_work import HostWork
from runtime.comm.progress import Progress
from runtime.decode.step import Stepper
from runtime.decode.work import Mode
from runtime.image.buffers import Memory
from runtime.image.slots import Image, open_image
from runtime.processes.machine import torch_device
from runtime.processes.rank import Rank

T = TypeVar("T")
WAIT_S = 60


@dataclass(frozen=True, kw_only=True)
class Table:
    """Meeting point of the members of a group."""

    barrier: threading.Barrier
    tensors: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ThreadCollectives:
    """Collectives of a group whose members are threads."""

    name: str
    ranks: tuple[int, ...]
    rank: int
    table: Table

    def _all(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors of all members, in the order of the group, once all have put theirs into the table."""
        self.table.tensors[self.rank] = tensor.clone()
        self.table.barrier.wait(WAIT_S)
        values = [self.table.tensors[rank] for rank in self.ranks]
        self.table.barrier.wait(WAIT_S)
        return values

    def broadcast(self, tensor: Tensor, source: int) -> None:
        tensor.copy_(self._all(tensor)[self.ranks.index(source)])

    def all_reduce(self, tensor: Tensor) -> None:
        tensor.copy_(torch.stack(self._all(tensor)).sum(0))

    def all_gather(self, own: Tensor, out: Tensor) -> None:
        out.copy_(torch.stack(self._all(own)))


@dataclass(frozen=True, kw_only=True)
class ThreadMaker:
    """Makes the groups of one rank; equal groups of all ranks share one table."""

    rank: int
    kind: str
    """Of the rank's device; what is a GPU in a plan has its messages over gloo or shm staged, wherever it runs."""
    progress: Progress
    host: HostWork
    tables: dict[tuple[str, tuple[int, ...]], Table]

    def group(self, name: str, ranks: tuple[int, ...], transport: Transport) -> Group | None:
        if self.rank not in ranks:
            return None
        if transport == "local":
            return Group(name=name, ranks=ranks, rank=self.rank, handle=None)
        table = self.tables.setdefault((name, ranks), Table(barrier=threading.Barrier(len(ranks))))
        waits = transport in ("gloo", "shm")
        handle = ThreadCollectives(name=name, ranks=ranks, rank=self.rank, table=table)
        return Group(
            name=name, ranks=ranks, rank=self.rank, waits=waits, staged=waits and self.kind == "cuda", handle=handle,
            progress=self.progress, host=self.host,
        )  # fmt: skip


def on_all_ranks(plan: Plan, directory: Path, work: Callable[[Image, Comm], T]) -> list[T]:
    """Return what ``work`` returns on each rank of a compiled plan, from its image and its groups."""
    tables: dict[tuple[str, tuple[int, ...]], Table] = {}

    def serve(rank: int) -> T:
        try:
            torch.set_num_threads(1)
            device = plan.devices[rank]
            image = open_image(plan, directory, device.id, torch_device(device), verify=False)
            progress, host = Progress(), HostWork()
            maker = ThreadMaker(rank=rank, kind=device.kind, progress=progress, host=host, tables=tables)
            return work(image, groups(plan, maker))
        except BaseException:
            for table in list(tables.values()):
                table.barrier.abort()
            raise

    with ThreadPoolExecutor(len(plan.devices)) as pool:
        ranks = [pool.submit(serve, rank) for rank in range(len(plan.devices))]
        failures = [error for rank in ranks if (error := rank.exception()) is not None]
    first = [error for error in failures if not isinstance(error.__cause__ or error, threading.BrokenBarrierError)]
    for error in [*first, *failures]:
        raise error
    return [rank.result() for rank in ranks]


def with_engines(plan: Plan, directory: Path, work: Callable[[Rank], T]) -> list[T]:
    """Return what ``work`` returns on each `Rank` of a compiled plan."""
    return on_all_ranks(plan, directory, lambda image, comm: work(Rank(plan, directory, image, comm)))


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """Output of a rank for prompts that were decoded together."""

    tokens: list[list[int]]
    accepted: list[list[int]]
    trees: list[list[tuple[list[int], list[int]]]]
    """Per prompt and step, the tokens and parents of the tree that was drafted in the step."""
    measured: dict[Term, int]


def decoded(
    plan: Plan, directory: Path, prompts: Sequence[tuple[int, ...]], counts: Sequence[int], *, draft: bool
) -> list[Decoded]:
    """Decode ``counts`` tokens of each prompt; return tokens, accepted lengths and trees of every rank."""

    def work(image: Image, comm: Comm) -> Decoded:
        device = torch_device(plan.devices[comm.rank])
        memory = Memory(plan, plan.devices[comm.rank].id, device)
        with torch.inference_mode():
            stepper = Stepper(plan, image, memory, comm, device)
        tokens: list[list[int]] = [[] for _ in prompts]
        accepted: list[list[int]] = [[] for _ in prompts]
        trees: list[list[tuple[list[int], list[int]]]] = [[] for _ in prompts]
        steps = stepper.steps(prompts, [None] * len(prompts), Mode(draft=draft, accept=None), reuse=False)
        for step in steps:
            for sequence, taken in enumerate(step):
                if taken is not None and len(tokens[sequence]) < counts[sequence]:
                    tokens[sequence] += taken.tokens
                    accepted[sequence] += [] if taken.joined else [taken.message.accepted]
                    trees[sequence].append((taken.message.tokens, taken.message.parents))
                    if len(tokens[sequence]) >= counts[sequence]:
                        stepper.end(sequence)
            if all(len(done) >= count for done, count in zip(tokens, counts, strict=True)):
                break
        truncated = [done[:count] for done, count in zip(tokens, counts, strict=True)]
        return Decoded(tokens=truncated, accepted=accepted, trees=trees, measured=memory.measured())

    return on_all_ranks(plan, directory, work)
