"""Groups of ranks, exactly as the plan names them, and the three collectives that a step is made of.

    embed    the devices of the embedding             all_reduce of looked-up rows
    stage    the devices of one stage                 all_reduce after o and down
    subgroup those of a stage that share KV heads     context: all_gather of partial attention; head_dim: all_reduce of
                                                      scores
    head     the devices of the lm_head               all_gather of the best tokens
    hop      leader of the group before + a group     broadcast of hidden state and features: embed, stages, head
    draft    the devices with a share of the draft    all_reduce, all_gather of candidates; its subgroups as a stage's
    feature  leader of the head + draft               broadcast of accepted features
    world    all devices                              broadcast of the step's message

A group of one is local: its collectives do nothing; so is a hop to the very devices that have what would be sent. The
transport is the plan's; nothing is probed. A device may be in any of these groups. No two ranks wait for each other,
as all go through their groups in one order: embed, each stage behind the hop into it, head likewise, feature, draft,
world.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore, Store, TCPStore

from plans import codec
from plans.kv import kv_division
from plans.schema import DraftPlacement, Plan, Stage, Transport
from runtime.comm.progress import Progress
from runtime.errors import PeerError

TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendezvous:
    """Where the ranks of a run meet: a file that all of them can open, or a store that listens somewhere."""

    file: str | None = None
    address: tuple[str, int] | None = None

    def store(self, world: int) -> Store:
        """Waits for one that is not there yet; raises RuntimeError where none comes."""
        if self.file is not None:
            return FileStore(self.file, world)
        assert self.address is not None, "ranks meet somewhere"
        return TCPStore(*self.address, timeout=TIMEOUT, wait_for_workers=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Ordered ranks, the first of which leads; ``rank`` is this process."""

    name: str
    ranks: tuple[int, ...]
    rank: int
    staged: bool
    """Messages of accelerators go through host memory, because the transport only knows that."""
    handle: dist.ProcessGroup | None
    """None: local. A group of several that is local is one to which nothing is sent: each has it already."""
    progress: Progress = field(default_factory=Progress)

    @property
    def sends(self) -> bool:
        """Of a hop: whether this rank has what the others need."""
        return self.handle is not None and self.leads

    @property
    def receives(self) -> bool:
        """Of a hop: whether this rank needs what the first has."""
        return self.handle is not None and not self.leads

    @property
    def leads(self) -> bool:
        return self.rank == self.ranks[0]

    @property
    def index(self) -> int:
        return self.ranks.index(self.rank)

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Fill ``tensor`` everywhere with what rank ``source`` has in it."""
        if self.handle is None:
            return
        with self._link(tensor, inside=False) as wire:
            dist.broadcast(wire, source, group=self.handle)

    def all_reduce(self, tensor: Tensor) -> None:
        """Sum in place."""
        if self.handle is None:
            return
        with self._link(tensor, inside=True) as wire:
            dist.all_reduce(wire, group=self.handle)

    def all_gather(self, tensor: Tensor, out: Tensor | None = None) -> Tensor:
        """Every member's tensor, stacked in the order of the group: [members, ...], in ``out`` where it is given."""
        if self.handle is None:
            return tensor.unsqueeze(0)
        out = tensor.new_empty((len(self.ranks), *tensor.shape)) if out is None else out
        with self._link(out, inside=True) as wire:
            # torch numbers a group's members in ascending order
            places = [wire[self.ranks.index(rank)] for rank in sorted(self.ranks)]
            dist.all_gather(places, tensor.to(wire.device), group=self.handle)
        return out

    @contextmanager
    def _link(self, tensor: Tensor, *, inside: bool) -> Iterator[Tensor]:
        """The tensor as the transport takes it; what the collective leaves there goes back into it.

        ``inside``: the time is that of the part of a step that is being done, as others do it too; else it is spent on
        a message.
        """
        staged = self.staged and tensor.is_cuda
        wire = tensor.cpu() if staged else tensor
        try:
            with self.progress.collective(self.name, inside=inside):
                yield wire
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise PeerError(f"group {self.name} (ranks {', '.join(map(str, self.ranks))}): {reason}") from error
        if staged:
            tensor.copy_(wire)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comm:
    """The groups this rank is in; None where it is not."""

    rank: int
    progress: Progress
    embed: Group | None
    stages: tuple[Group | None, ...]
    subgroup: Group | None
    """Of this rank in its stage, where its members divide the KV of their heads; over the stage's transport."""
    head: Group | None
    hops: tuple[Group | None, ...]
    """``hops[s]``: into stage s, from the stage before or from the embedding; the last one: into the head."""
    draft: Group | None
    draft_subgroup: Group | None
    """As ``subgroup``, of this rank in the draft."""
    feature: Group | None
    world: Group


class Maker(Protocol):
    """Makes the groups of a rank."""

    @property
    def rank(self) -> int: ...

    @property
    def progress(self) -> Progress:
        """Of the rank."""
        ...

    def group(self, name: str, ranks: tuple[int, ...], transport: Transport) -> Group | None:
        """The group of these ranks, whose order is the plan's; None on a rank that is not among them."""
        ...


def connect(plan: Plan, rank: int, rendezvous: Rendezvous | None, progress: Progress) -> Comm:
    """Join the other ranks and make the plan's groups; raise PeerError where one does not come or has another plan.

    ``rendezvous``: None where there is but one rank.
    """
    world = len(plan.devices)
    if rendezvous is not None and world > 1:
        try:
            store = rendezvous.store(world)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=TIMEOUT)
            progress.tick()
            _agree(plan, rank)
        except (RuntimeError, ValueError) as error:
            raise PeerError(f"rank {rank} of {world}: the ranks did not meet: {error}") from error
    return groups(plan, _Maker(rank=rank, progress=progress, made={}))


def groups(plan: Plan, maker: Maker) -> Comm:
    """The plan's groups, made in one order on every rank."""
    ranks = {device.id: number for number, device in enumerate(plan.devices)}
    place = plan.draft_placement

    def of(names: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(ranks[name] for name in names)

    embed, stages, head = of(plan.embed.devices), [of(stage.devices) for stage in plan.stages], of(plan.head.devices)
    draft = of(place.devices) if place else ()
    subgroups = [
        maker.group(f"stages[{s}].subgroup", of(members), stage.transport)
        for s, stage in enumerate(plan.stages)
        for members in exchanging(stage)
    ]
    draft_subgroups = [
        maker.group("draft.subgroup", of(members), placed.transport)
        for placed in ([place] if place else [])
        for members in exchanging(placed)
    ]
    world = maker.group("world", tuple(ranks.values()), plan.message_transport)
    assert world is not None, "every rank is in the world"
    return Comm(
        rank=maker.rank,
        progress=maker.progress,
        embed=maker.group("embed", embed, plan.embed.transport),
        stages=tuple(maker.group(f"stages[{s}]", stage, plan.stages[s].transport) for s, stage in enumerate(stages)),
        subgroup=next((group for group in subgroups if group is not None), None),
        head=maker.group("head", head, plan.head.transport),
        hops=(
            *(
                maker.group(f"stages[{s}].hop", _with(before[0], stages[s]), plan.stages[s].hop_transport)
                for s, before in enumerate([embed, *stages[:-1]])
            ),
            maker.group("head.hop", _with(stages[-1][0], head), plan.head.hop_transport),
        ),
        draft=maker.group("draft", draft, place.transport) if place else None,
        draft_subgroup=next((group for group in draft_subgroups if group is not None), None),
        feature=maker.group("draft.feature", _with(head[0], draft), place.feature_transport) if place else None,
        world=world,
    )


def transports(plan: Plan) -> set[Transport]:
    """Of all groups of a plan."""
    stages = [transport for stage in plan.stages for transport in (stage.transport, stage.hop_transport)]
    place = plan.draft_placement
    draft = [place.transport, place.feature_transport] if place else []
    return {plan.message_transport, plan.embed.transport, plan.head.transport, plan.head.hop_transport, *stages, *draft}


def exchanging(group: Stage | DraftPlacement) -> list[tuple[str, ...]]:
    """The subgroups of a stage, or of the draft, whose members tell each other of their attention."""
    divided = kv_division(group)
    if divided.axis not in ("context", "head_dim"):
        return []
    starts = [sum(divided.subgroups[:i]) for i in range(len(divided.subgroups))]
    every = [group.devices[i : i + size] for i, size in zip(starts, divided.subgroups, strict=True)]
    return [members for members in every if len(members) > 1]


def _agree(plan: Plan, rank: int) -> None:
    """Raise PeerError where another rank has read another plan."""
    mine = torch.frombuffer(bytearray.fromhex(codec.digest(plan)), dtype=torch.uint8)
    every = [torch.empty_like(mine) for _ in plan.devices]
    dist.all_gather(every, mine)
    for other, found in enumerate(every):
        if not torch.equal(found, mine):
            raise PeerError(
                f"rank {other} has plan {bytes(found.tolist()).hex()[:16]}, rank {rank} {codec.digest(plan)[:16]}: "
                "give all hosts the same plan"
            )


def disconnect() -> None:
    """Leave the run."""
    if dist.is_initialized():
        dist.destroy_process_group()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Maker:
    """Makes each group once, in the same order on every rank, as torch requires."""

    rank: int
    progress: Progress
    made: dict[tuple[tuple[int, ...], str], dist.ProcessGroup]

    def group(self, name: str, ranks: tuple[int, ...], transport: Transport) -> Group | None:
        handle = self._handle(ranks, transport) if transport != "local" else None
        if self.rank not in ranks:
            return None
        staged = transport == "gloo"
        return Group(name=name, ranks=ranks, rank=self.rank, staged=staged, handle=handle, progress=self.progress)

    def _handle(self, ranks: tuple[int, ...], transport: Transport) -> dist.ProcessGroup:
        key = (tuple(sorted(ranks)), transport)
        if key not in self.made:
            made = self.made[key] = dist.new_group(list(key[0]), backend=transport, timeout=TIMEOUT)
            self.progress.tick()
            if transport == "nccl" and self.rank in ranks:
                # its buffers and connections, which it would make in the first step
                dist.all_reduce(torch.zeros(1, device="cuda"), group=made)
                torch.cuda.synchronize()
                self.progress.tick()
        return self.made[key]


def _with(leader: int, members: tuple[int, ...]) -> tuple[int, ...]:
    return (leader, *(rank for rank in members if rank != leader))
