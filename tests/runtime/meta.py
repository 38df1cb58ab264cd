"""The GPU path of a plan without a GPU: one rank's prefill and steps on meta tensors, which have shapes and no values.

Whatever is not on a CPU takes the branch that a GPU takes, so that each operation and each launch of a Triton kernel
can be looked at: its devices, copies from the host, and the bytes of temporaries. Collectives do nothing, and the step
message is read as one that accepts some nodes.
"""

import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from plans.schema import Plan, Transport
from runtime.comm.groups import Group, groups
from runtime.comm.host_work import HostWork
from runtime.comm.progress import Phase, Progress
from runtime.decode.messages import Channel, Message, Notice, nothing
from runtime.decode.step import Mode, Stepper
from runtime.image.buffers import Memory
from runtime.model.triton_kernels import launch
from runtime.sampling import Sampling

META = torch.device("meta")
aten = torch.ops.aten
ALLOCATIONS = {
    *(aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default, aten.new_empty.default),
    *(aten.new_empty_strided.default, aten.detach.default, aten._unsafe_view.default, aten._reshape_alias.default),
    aten.lift_fresh.default,
}
GRID = (2**31 - 1, 65535, 65535)
"""Most programs along each dimension of a grid (CUDA C++ Programming Guide)."""
READS = {
    *(aten._local_scalar_dense.default, aten.item.default, aten.nonzero.default, aten.masked_select.default),
    *(aten.equal.default, aten.is_nonzero.default, aten._unique2.default, aten.unique_consecutive.default),
    aten.repeat_interleave.Tensor, aten._linalg_check_errors.default,
}  # fmt: skip
"""Operations for whose result, or its shape, the host waits."""
MASKED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
"""Operations that first count the elements that a mask has."""
VECTOR_BYTES = 16
"""Widest load of a thread; Triton compiles another kernel for a pointer that is no multiple of it."""


@dataclass
class Trace:
    """Operations of one phase, with everything about them that a GPU would object to."""

    kernels: Counter[str] = field(default_factory=Counter)
    """Operations that compute, by name; views and allocations are not counted."""
    mixed: list[str] = field(default_factory=list)
    """Operations that mix devices, or compute on the host's; asynchronous copies are none."""
    waits: list[str] = field(default_factory=list)
    """Operations that the host waits for."""
    attentions: set[tuple[int, int, int]] = field(default_factory=set)
    """Rows, cache rows and splits of the attention kernel."""

    @property
    def count(self) -> int:
        return self.kernels.total()


class Watch(TorchDispatchMode):
    """Records every operation by phase, and the peak of live bytes of tensors made while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.phase, self.traces = "start", dict[str, Trace]()
        self.most = self._now = 0
        self._storages: set[int] = set()
        self._pinned: set[int] = set()
        """Storages of the host that a GPU copies from while the host goes on."""

    @property
    def trace(self) -> Trace:
        return self.traces.setdefault(self.phase, Trace())

    def forget(self) -> None:
        """Drop what was recorded, and measure the peak from here."""
        self.traces, self.most = {}, self._now

    def pin(self, tensor: Tensor) -> None:
        """Take a tensor of the host for one in pinned memory, as it is where there is a GPU."""
        storage = tensor.untyped_storage()
        self._pinned.add(storage._cdata)
        weakref.finalize(storage, self._pinned.discard, storage._cdata)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # in inference mode the dispatcher shows composite operations whole
        if _composite(func):
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        to_host = func is aten.copy_.default and args[0].device.type == "cpu" and args[1].device == META
        out = args[0] if to_host else func(*args, **kwargs)  # there are no values to copy
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self._record(func, inputs, outputs, args, kwargs)
        self._allocated(func, inputs, outputs)
        return out

    def _record(self, func: Any, inputs: list[Tensor], outputs: list[Tensor], args: Any, kwargs: Any) -> None:
        trace, name = self.trace, str(func).removeprefix("aten.")
        if func in READS or (
            func in MASKED and any(x.dtype == torch.bool for x in tree_leaves(args[1]) if x is not None)
        ):
            trace.waits.append(name)
        devices = {tensor.device.type for tensor in inputs + outputs}
        if func in (aten.copy_.default, aten._to_copy.default) and len(devices) > 1:
            asynchronous = kwargs.get("non_blocking") or (func is aten.copy_.default and len(args) > 2 and args[2])
            host = next(tensor for tensor in inputs + outputs if tensor.device.type == "cpu")
            if not asynchronous:
                trace.waits.append(f"{name} between {sorted(devices)}")
            elif host.untyped_storage()._cdata not in self._pinned:
                trace.waits.append(f"{name} between {sorted(devices)}, of memory that is not pinned")
            elif outputs[0].device == META:  # the copy of a step's message to the host is none of the step's launches
                trace.kernels.update([name])
            return
        if _is_view(func) or func in ALLOCATIONS or not devices:
            return
        if "meta" in devices and len(devices) > 1:
            trace.mixed.append(f"{name} {[tuple(tensor.shape) for tensor in inputs]}")
        if "meta" not in devices:
            return
        trace.kernels[name] += 1

    def start(self, kernel: Any, grid: tuple[int, ...], *operands: Any, **sizes: Any) -> None:
        """Record the launch of a Triton kernel, in place of ``launch.start``."""
        name, trace = kernel.__name__, self.trace
        devices = {operand.device.type for operand in operands if isinstance(operand, Tensor)}
        if 0 in grid:
            return
        if devices != {"meta"}:
            trace.mixed.append(f"{name} on {sorted(devices)}")
        if any(count > most for count, most in zip(grid, GRID, strict=False)):
            trace.mixed.append(f"{name} has a grid of {grid}")
        trace.kernels[name] += 1
        if name == "attend_kernel":
            trace.attentions.add((operands[0].shape[0], operands[1].shape[1], grid[2]))
            for operand in (*operands[:3], *operands[7:9]):  # qkv, cache, scales; out, sums
                if operand is not None and operand.storage_offset() * operand.itemsize % VECTOR_BYTES:
                    trace.mixed.append(f"{name} has a pointer that is no multiple of {VECTOR_BYTES} bytes")

    def _allocated(self, func: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Count the storages that are new."""
        known = {tensor.untyped_storage()._cdata for tensor in inputs}
        for tensor in outputs:
            storage = tensor.untyped_storage()
            key, nbytes = storage._cdata, -(-storage.nbytes() // 512) * 512  # the granule of torch's allocator
            if tensor.device != META or key in known or key in self._storages:
                continue
            self._storages.add(key)
            self._now += nbytes
            weakref.finalize(storage, self._freed, key, nbytes)
        self.most = max(self.most, self._now)

    def _freed(self, key: int, nbytes: int) -> None:
        self._storages.discard(key)
        self._now -= nbytes


class Factories(TorchFunctionMode):
    """Tells a watch of what the dispatcher of meta tensors does not show: numbers that become tensors of a device, and
    so are copied to it, indices among them; and memory of the host that is to be pinned."""

    MAKERS = (torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor, Tensor.new_tensor)
    INDEXING = (Tensor.__getitem__, Tensor.__setitem__)

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        pinned = kwargs.pop("pin_memory", None) is not None  # only a machine with a GPU pins memory
        out = func(*args, **kwargs)
        if func in self.INDEXING:
            copies = args[0].device == META and _has_numbers(args[1])
        else:
            numbers = func is Tensor.new and any(
                isinstance(x, list | tuple) and not isinstance(x, torch.Size) for x in args
            )
            makes = func in self.MAKERS or numbers
            copies = makes and out.device == META
        if copies:
            self._watch.trace.waits.append(f"{func.__name__} on a device")
        if pinned and out.device.type == "cpu":
            self._watch.pin(out)
        return out


def _has_numbers(index: Any) -> bool:
    """Return True where an index, or one of several, is a sequence of numbers."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, list | tuple | range) for part in parts)


@cache
def _composite(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


@cache
def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


@dataclass(frozen=True, kw_only=True, slots=True)
class SilentGroup(Group):
    """A group whose collectives do nothing: there are no values."""

    def broadcast(self, tensor: Tensor, source: int) -> None:
        pass

    def all_reduce(self, tensor: Tensor) -> None:
        pass

    def all_gather(self, tensor: Tensor, out: Tensor | None = None) -> Tensor:
        return tensor.new_empty((len(self.ranks), *tensor.shape)) if out is None else out


@dataclass(frozen=True, kw_only=True)
class SilentMaker:
    """Makes the groups of one rank."""

    rank: int
    progress: Progress
    host: HostWork = field(default_factory=HostWork)

    def group(self, name: str, ranks: tuple[int, ...], transport: Transport) -> Group | None:
        if self.rank not in ranks:
            return None
        handle: Any = None if transport == "local" else object()  # only asked whether it is there
        return SilentGroup(name=name, ranks=ranks, rank=self.rank, handle=handle)


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
    """Step messages read by the host in one step."""
    peak: int = 0
    """Most bytes of temporaries."""
    step_peak: int = 0
    """Most bytes of temporaries of a step."""

    @property
    def traces(self) -> list[Trace]:
        return [*self.prefill.values(), *(trace for step in self.steps.values() for trace in step.values())]


@contextmanager
def silent_messages(accepted: int) -> Iterator[list[int]]:
    """Read every step message as one that accepts ``accepted`` nodes, as far as there are; yield the count of reads."""
    reads = [0]

    def read(channel: Channel) -> tuple[list[Message], Notice]:
        reads[0] += 1
        nodes, kept = channel.nodes, channel.kept
        count = min(accepted, kept - 1)
        return [
            Message(accepted=count, path=list(range(kept)), tokens=[5] * nodes, parents=[0] * nodes)
            for _ in range(channel.wire.shape[0])
        ], nothing()

    with mock.patch.object(Channel, "read", read):
        yield reads


def as_cuda() -> AbstractContextManager[Any]:
    """Let meta tensors say that they are of CUDA, for code that asks them and not their device."""
    return mock.patch.object(Tensor, "is_cuda", property(lambda tensor: tensor.device == META))


def on_meta(
    plan: Plan,
    rank: int,
    lengths: Sequence[int],
    *,
    sampling: Sampling | None = None,
    cached: int = 0,
    ended: Sequence[int] = (),
) -> Result:
    """Run a rank's prefill of prompts of these lengths, and a step, plain and then with its drafter.

    ``cached``: positions of each prompt, as far as it has them, that the caches hold already. ``ended``: sequences that
    end with their first token.
    """
    watch, run = Watch(), Result()
    progress = Phases(watch)
    with silent_messages(3) as reads, torch.inference_mode(), Factories(watch), as_cuda():
        memory = Memory(plan, plan.devices[rank].id, META)
        comm = groups(plan, SilentMaker(rank=rank, progress=progress))
        stepper = Stepper(plan, MetaSlots(), memory, comm, META)
        with watch, mock.patch.object(launch, "start", watch.start):
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
                reads[0] = 0
                next(stream)
                run.steps[kind], run.reads[kind] = watch.traces, reads[0]
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
