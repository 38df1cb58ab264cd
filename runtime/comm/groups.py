"""Groups of ranks, as the plan names them, and the three collectives of a step: all-reduce, all-gather, broadcast.

    group      members                                  collectives
    embed      devices of the embedding                 all_reduce of looked-up rows
    stage      devices of one stage                     all_reduce after o and down
    subgroup   members of a stage that share KV heads   context: all_gather of partial attention; head_dim: all_reduce
                                                        of scores
    head       devices of the lm_head                   all_gather of the best tokens
    hop        leader of the previous group + a group   broadcast of hidden state and features: embed, stages, head
    draft      devices of the drafter                   all_reduce, all_gather of candidates; subgroups as in a stage
    feature    leader of the lm_head + the drafter's    broadcast of accepted features
    world      all devices                              broadcast of the step message

A group of one is local: its collectives do nothing. So is a hop whose receivers are the very devices that hold the
data. The transport is the plan's; nothing is probed. A device may be in any of these groups. There is no deadlock,
because all ranks go through their groups in one order: embed, each stage after the hop into it, head after its hop,
feature, draft, world.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from plans.kv import kv_division
from plans.schema import DraftPlacement, Plan, Stage, Transport
from runtime.comm.host_work import HostWork
from runtime.comm.progress import Progress
from runtime.comm.shared_memory import SharedGroup
from runtime.errors import PeerError

CUDA_IN_NCCL = "ncclUnhandledCudaError"
"""Code in the message of NCCL about an error of CUDA on this rank's own device."""


def _nothing() -> None:
    """Sum nothing: there is one member."""


class Collectives(Protocol):
    """Collectives of a group over its transport. They raise RuntimeError where it fails, as torch's do."""

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Fill ``tensor`` on all members with its value on rank ``source``."""
        ...

    def all_reduce(self, tensor: Tensor) -> None:
        """Sum over the members, in place."""
        ...

    def all_gather(self, own: Tensor, out: Tensor) -> None:
        """Fill ``out`` [members, ...] with the tensors of all members, in the order of the group."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Ordered ranks, the first of which is the leader; ``rank`` is that of this process."""

    name: str
    ranks: tuple[int, ...]
    rank: int
    handle: Collectives | None
    """Its transport; None: local. A local group of several ranks is one whose members all hold the data already."""
    waits: bool = False
    """True: the host waits in a collective, until it is done; otherwise it is put into the queue of the device."""
    staged: bool = False
    """True: tensors are copied through memory of the host, as the transport knows only that, and the device has its
    own."""
    progress: Progress = field(default_factory=Progress)
    host: HostWork = field(default_factory=HostWork)
    wires: dict[tuple[int, torch.Size, torch.dtype], Tensor] = field(default_factory=dict, compare=False)
    """Memory of the host that staged tensors pass through, by number of an operand, shape and dtype: kept, since a
    captured step has its address."""

    @property
    def sends(self) -> bool:
        """True in a hop where this rank has what the others need."""
        return self.handle is not None and self.leads

    @property
    def receives(self) -> bool:
        """True in a hop where this rank needs what the leader has."""
        return self.handle is not None and not self.leads

    @property
    def leads(self) -> bool:
        return self.rank == self.ranks[0]

    @property
    def index(self) -> int:
        return self.ranks.index(self.rank)

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Fill ``tensor`` on all members with its value on rank ``source``."""
        if self.handle is None:
            return
        broadcast = partial(self.handle.broadcast, source=source)
        own = self.rank == source
        self._run(broadcast, (tensor,), read=(own,), written=(not own,), inside=False)

    def all_reduce(self, tensor: Tensor) -> None:
        """Sum over the members, in place."""
        if self.handle is not None:
            self._run(self.handle.all_reduce, (tensor,), read=(True,), written=(True,), inside=True)

    def sum_of(self, tensor: Tensor) -> Callable[[], None]:
        """Return ``all_reduce`` of a tensor, whose memory the caller keeps, for many calls: of a CPU through shared
        memory it is written down once.
        """
        if self.handle is None:
            return _nothing
        if not isinstance(self.handle, SharedGroup) or self.staged:
            return partial(self.all_reduce, tensor)
        summed = self.progress.summing(self.name, self.handle.sum_of(tensor))

        def run() -> None:
            try:
                summed()
            except RuntimeError as error:
                raise self._error(error) from error

        return run

    def all_gather(self, tensor: Tensor, out: Tensor | None = None) -> Tensor:
        """Return all members' tensors, stacked in the order of the group: [members, ...], in ``out`` if it is given."""
        if self.handle is None:
            return tensor.unsqueeze(0)
        out = tensor.new_empty((len(self.ranks), *tensor.shape)) if out is None else out
        self._run(self.handle.all_gather, (tensor, out), read=(True, False), written=(False, True), inside=True)
        return out

    def _run(
        self, collective: Callable[..., None], tensors: tuple[Tensor, ...], *, read: tuple[bool, ...],
        written: tuple[bool, ...], inside: bool,
    ) -> None:  # fmt: skip
        """Run a collective on tensors, of which it reads some and writes some. Raises PeerError.

        ``inside``: the time belongs to the part of a step that is running, which the other members run too; otherwise
        it is that of a message between parts. Staged tensors are copied to the host, which waits for them, and back:
        the copies are the device's work, also where a step is captured.
        """
        if not self.staged:
            self._reported(collective, tensors, inside)
            return
        wires = tuple(self._wire(number, tensor) for number, tensor in enumerate(tensors))
        for wire, tensor, reads in zip(wires, tensors, read, strict=True):
            if reads:
                wire.copy_(tensor, non_blocking=True)
        device = tensors[0].device

        def on_host() -> None:
            if device.type == "cuda":
                with self.progress.reading():
                    torch.cuda.current_stream(device).synchronize()
            self._reported(collective, wires, inside)

        self.host(on_host)
        for wire, tensor, writes in zip(wires, tensors, written, strict=True):
            if writes:
                tensor.copy_(wire, non_blocking=True)

    def _wire(self, number: int, tensor: Tensor) -> Tensor:
        """Return memory of the host for an operand of a collective."""
        key = number, tensor.shape, tensor.dtype
        if key not in self.wires:
            self.wires[key] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return self.wires[key]

    def _reported(self, collective: Callable[..., None], tensors: tuple[Tensor, ...], inside: bool) -> None:
        try:
            with self.progress.collective(self.name, inside=inside, queued=not self.waits):
                collective(*tensors)
        except RuntimeError as error:
            if is_device_error(error):
                raise
            raise self._error(error) from error

    def _error(self, error: RuntimeError) -> PeerError:
        reason = str(error).partition("\n")[0]
        return PeerError(f"group {self.name} (ranks {', '.join(map(str, self.ranks))}): {reason}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Comm:
    """Groups of this rank; None for a group that it is not in."""

    rank: int
    progress: Progress
    embed: Group | None
    stages: tuple[Group | None, ...]
    subgroup: Group | None
    """Subgroup of this rank in its stage, where members divide the KV of their heads; over the stage's transport."""
    head: Group | None
    hops: tuple[Group | None, ...]
    """``hops[s]``: into stage s, from the previous stage or the embedding; the last one: into the lm_head."""
    draft: Group | None
    draft_subgroup: Group | None
    """Subgroup of this rank in the drafter."""
    feature: Group | None
    world: Group
    host: HostWork = field(default_factory=HostWork)
    outbox: Tensor | None = None
    """Outbox of this rank in the memory that it shares with others, uint8; None: it shares none."""
    resources: ExitStack = field(default_factory=ExitStack)
    """Connections of the rank, closed at its end."""


class Maker(Protocol):
    """Factory of the groups of a rank: torch's, or a test's."""

    @property
    def rank(self) -> int: ...

    @property
    def progress(self) -> Progress:
        """Progress of the rank, to which its collectives are reported."""
        ...

    @property
    def host(self) -> HostWork:
        """Work of the rank's host, some of its collectives."""
        ...

    def group(self, name: str, ranks: tuple[int, ...], transport: Transport) -> Group | None:
        """Return the group of these ranks, in the plan's order; None on a rank that is not among them."""
        ...


def groups(plan: Plan, maker: Maker) -> Comm:
    """Return the plan's groups, made in one order on every rank."""
    ranks = {device.id: number for number, device in enumerate(plan.devices)}
    drafter = plan.draft_placement

    def of(names: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(ranks[name] for name in names)

    embed, stages, head = of(plan.embed.devices), [of(stage.devices) for stage in plan.stages], of(plan.head.devices)
    draft = of(drafter.devices) if drafter else ()
    subgroups = [
        maker.group(f"stages[{s}].subgroup", of(members), stage.transport)
        for s, stage in enumerate(plan.stages)
        for members in exchanging(stage)
    ]
    draft_subgroups = [
        maker.group("draft.subgroup", of(members), placed.transport)
        for placed in ([drafter] if drafter else [])
        for members in exchanging(placed)
    ]
    world = maker.group("world", tuple(ranks.values()), plan.message_transport)
    assert world is not None, "every rank is in the world"
    return Comm(
        rank=maker.rank,
        progress=maker.progress,
        host=maker.host,
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
        draft=maker.group("draft", draft, drafter.transport) if drafter else None,
        draft_subgroup=next((group for group in draft_subgroups if group is not None), None),
        feature=maker.group("draft.feature", _with(head[0], draft), drafter.feature_transport) if drafter else None,
        world=world,
    )


def is_device_error(error: Exception) -> bool:
    """Return True for an error of this rank's own device, which NCCL may report, too: it is not that of a peer."""
    if isinstance(error, torch.AcceleratorError | torch.OutOfMemoryError):
        return True
    return isinstance(error, dist.DistBackendError) and CUDA_IN_NCCL in str(error)


def exchanging(group: Stage | DraftPlacement) -> list[tuple[str, ...]]:
    """Return the subgroups of a stage, or of the drafter, whose members exchange parts of their attention."""
    divided = kv_division(group)
    if divided.axis not in ("context", "head_dim"):
        return []
    every = [group.devices[i : i + size] for i, size in zip(divided.starts, divided.subgroups, strict=True)]
    return [members for members in every if len(members) > 1]


def _with(leader: int, members: tuple[int, ...]) -> tuple[int, ...]:
    """Return the ranks of a hop: the sender, then the receivers."""
    return (leader, *(rank for rank in members if rank != leader))
