"""The GPU path of a plan without a GPU: one rank's prefill and steps on meta tensors, which have shapes and no values.

The transports of collectives do nothing, and the step message is read as one that accepts some nodes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor

from plans.schema import Plan, Transport
from runtime.comm.groups import Group, groups
from runtime.comm.host_work import HostWork
from runtime.comm.progress import Phase, Progress
from runtime.decode.messages import Channel, Message, Notice, nothing
from runtime.decode.step import Stepper
from runtime.decode.work import Mode
from runtime.image.buffers import Memory
from runtime.model.triton_kernels import launch
from runtime.sampling import Sampling
from tests.runtime.meta import CUDA, META, AsCuda, Trace, Watch


class Silent:
    """A transport whose collectives do nothing: there are no values."""

    def broadcast(self, tensor: Tensor, source: int) -> None:
        pass

    def all_reduce(self, tensor: Tensor) -> None:
        pass

    def all_gather(self, own: Tensor, out: Tensor) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class SilentMaker:
    """Makes the groups of one rank; ``staged``: collectives pass through memory of the host."""

    rank: int
    progress: Progress
    host: HostWork = field(default_factory=HostWork)
    staged: bool = False

    def group(self, name: str, ranks: tuple[int, ...], transport: Transport) -> Group | None:
        if self.rank not in ranks:
            return None
        return Group(
            name=name, ranks=ranks, rank=self.rank, handle=None if transport == "local" else Silent(),
            staged=self.staged, progress=self.progress, host=self.host,
        )  # fmt: skip


class Phases(Progress):
    """Progress that tells a watch which phase begins."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def begin(self, phase: Phase) -> None:
        super().begin(phase)
        self._watch.phase = phase


class MetaSlots:
    """Slots of an image without bytes."""

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=META)


Kind = Literal["plain", "EAGLE"]


@dataclass
class Result:
    """Traces of one rank: of prefill, and of one step of each kind."""

    prefill: dict[Kind, Trace] = field(default_factory=dict)
    steps: dict[Kind, dict[str, Trace]] = field(default_factory=dict)
    """By phase."""
    reads: dict[Kind, int] = field(default_factory=dict)
    """How often the host waits for its device in one step: once for the message, and where collectives are staged."""
    peak: int = 0
    """Most bytes of temporaries."""
    step_peak: int = 0
    """Most bytes of temporaries of a step."""

    @property
    def traces(self) -> list[Trace]:
        return [*self.prefill.values(), *(trace for step in self.steps.values() for trace in step.values())]


@contextmanager
def silent_messages(accepted: int) -> Iterator[list[int]]:
    """Read every step message as one that accepts ``accepted`` nodes, as far as there are; yield the count of waits.

    That is how often the host waits for the queue of its device, as a read does.
    """
    waits, wait_and_read = [0], Channel.read

    def read(channel: Channel) -> tuple[list[Message], Notice]:
        wait_and_read(channel)
        nodes, kept = channel.nodes, channel.kept
        count = min(accepted, kept - 1)
        return [
            Message(accepted=count, path=list(range(kept)), tokens=[5] * nodes, parents=[0] * nodes)
            for _ in range(channel.wire.shape[0])
        ], nothing()

    def wait() -> None:
        waits[0] += 1

    queue = SimpleNamespace(synchronize=wait)
    with (
        mock.patch.object(Channel, "read", read),
        mock.patch.object(torch.cuda, "current_stream", return_value=queue),
    ):
        yield waits


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """A rank's stepper, what watches it, and how often the host has waited for the queue of its device."""

    stepper: Stepper
    watch: Watch
    waits: list[int]


@contextmanager
def stepper_on_meta(plan: Plan, rank: int, accepted: int, *, staged: bool = False) -> Iterator[Watched]:
    """Yield the stepper of a rank, whose work is watched within this context; arguments as in ``on_meta``."""
    watch = Watch()
    with silent_messages(accepted) as waits, torch.inference_mode(), AsCuda(watch):
        memory = Memory(plan, plan.devices[rank].id, CUDA)
        comm = groups(plan, SilentMaker(rank=rank, progress=Phases(watch), staged=staged))
        stepper = Stepper(plan, MetaSlots(), memory, comm, CUDA)
        with watch, mock.patch.object(launch, "start", watch.start):
            yield Watched(stepper=stepper, watch=watch, waits=waits)


def on_meta(
    plan: Plan,
    rank: int,
    lengths: Sequence[int],
    *,
    sampling: Sampling | None = None,
    cached: int = 0,
    ended: Sequence[int] = (),
    staged: bool = False,
) -> Result:
    """Run a rank's prefill of prompts of these lengths, and a step, plain and then with its drafter.

    ``cached``: positions of each prompt, as far as it has them, that the caches hold already. ``ended``: sequences that
    end with their first token. ``staged``: collectives pass through memory of the host, which waits for each.
    """
    run = Result()
    with stepper_on_meta(plan, rank, 3, staged=staged) as watched:
        stepper, watch = watched.stepper, watched.watch
        kinds: tuple[Kind, ...] = ("plain", "EAGLE") if stepper.drafts else ("plain",)
        for kind in kinds:
            mode, prompts = Mode(draft=kind == "EAGLE", accept=None), [tuple(range(length)) for length in lengths]
            _fill(stepper, [min(cached, length - 1) for length in lengths])
            watch.forget()
            stream = stepper.steps(prompts, [sampling] * len(lengths), mode, reuse=True)
            next(stream)
            run.prefill[kind] = _joined(watch.traces.values())
            run.peak = max(run.peak, watch.most)
            for sequence in ended:
                stepper.end(sequence)
            watch.forget()
            watched.waits[0] = 0
            next(stream)
            run.steps[kind], run.reads[kind] = watch.traces, watched.waits[0]
            run.peak, run.step_peak = max(run.peak, watch.most), max(run.step_peak, watch.most)
            watch.forget()
            stream.close()
    return run


def _fill(stepper: Stepper, cached: Sequence[int]) -> None:
    """Let the caches hold positions of each sequence, whose tokens are its numbers."""
    parts, sequences = stepper._parts, stepper._sequences
    batch = len(sequences.tokens)
    counts = [*cached, *[0] * (batch - len(cached))]
    sequences.tokens, sequences.drafted = [list(range(count)) for count in counts], list(counts)
    stage = None if parts.base is None else parts.base._stage
    for kv in [
        *([view.cache for view in stage.views] if stage else []),
        *([parts.drafter._cache] if parts.drafter else []),
    ]:
        kv._known = [counts[number] for number in kv.sequences]


def _joined(traces: Any) -> Trace:
    joined = Trace()
    for trace in traces:
        joined.kernels += trace.kernels
        for name in ("mixed", "waits"):
            getattr(joined, name).extend(getattr(trace, name))
        joined.attentions |= trace.attentions
    return joined
