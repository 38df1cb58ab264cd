"""The GPU path of a plan without a GPU: one rank's prefill and steps on meta tensors, which have shapes and no values.

Meta tensors say that they are of CUDA, so that code takes the branch that it takes on a GPU, whichever way it asks.
Each operation and each launch of a Triton kernel can be looked at: its devices, copies from the host, and the bytes of
temporaries. The transports of collectives do nothing, and the step message is read as one that accepts some nodes.
"""

import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any, ClassVar, Literal, Self
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
from runtime.decode.step import Stepper
from runtime.decode.work import Mode
from runtime.image.buffers import Memory
from runtime.model.triton_kernels import launch
from runtime.sampling import Sampling

META = torch.device("meta")
CUDA = torch.device("cuda", 0)
"""What meta tensors say that they are of (``AsCuda``), and what stands for the meta device wherever one is named."""
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


def device_of(tensor: Tensor) -> torch.device:
    """Return the device that a tensor is of, whatever it says."""
    with torch._C.DisableTorchFunction():
        return tensor.device


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

    def wait(self, device: object = None) -> None:
        """Record that the host waits for a device, in place of ``torch.cuda.synchronize``."""
        self.trace.waits.append("torch.cuda.synchronize")

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
        to_host = func is aten.copy_.default and device_of(args[0]) != META and device_of(args[1]) == META
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
        devices = {device_of(tensor).type for tensor in inputs + outputs}
        if func in (aten.copy_.default, aten._to_copy.default) and len(devices) > 1:
            asynchronous = kwargs.get("non_blocking") or (func is aten.copy_.default and len(args) > 2 and args[2])
            host = next(tensor for tensor in inputs + outputs if device_of(tensor) != META)
            if not asynchronous:
                trace.waits.append(f"{name} between {sorted(devices)}")
            elif host.untyped_storage()._cdata not in self._pinned:
                trace.waits.append(f"{name} between {sorted(devices)}, of memory that is not pinned")
            elif (
                device_of(outputs[0]) == META
            ):  # the copy of a step's message to the host is none of the step's launches
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
        devices = {device_of(operand).type for operand in operands if isinstance(operand, Tensor)}
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
            if device_of(tensor) != META or key in known or key in self._storages:
                continue
            self._storages.add(key)
            self._now += nbytes
            weakref.finalize(storage, self._freed, key, nbytes)
        self.most = max(self.most, self._now)

    def _freed(self, key: int, nbytes: int) -> None:
        self._storages.discard(key)
        self._now -= nbytes


class AsCuda(TorchFunctionMode):
    """Lets meta tensors say that they are of a GPU, and makes them where tensors of a GPU are asked for.

    Tells a watch of what the dispatcher of meta tensors does not show: numbers that become tensors of a device, and so
    are copied to it, indices among them; memory of the host that is to be pinned; and waits for a device by name. Waits
    for its queue are those of whoever reads from it (``silent_messages``).
    """

    ANSWERS: ClassVar[dict[Any, object]] = {
        Tensor.device.__get__: CUDA, Tensor.is_cuda.__get__: True, Tensor.is_meta.__get__: False, Tensor.get_device: 0,
    }  # fmt: skip
    """What a meta tensor answers, by the function that is asked."""
    MAKERS = (torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor, Tensor.new_tensor)
    INDEXING = (Tensor.__getitem__, Tensor.__setitem__)

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch, self._patches = watch, ExitStack()

    def __enter__(self) -> Self:
        self._patches.enter_context(mock.patch.object(torch.cuda, "is_available", return_value=True))
        self._patches.enter_context(mock.patch.object(torch.cuda, "synchronize", self._watch.wait))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.ANSWERS and device_of(args[0]) == META:
            return self.ANSWERS[func]
        if func is not torch.device:
            args = tuple(_on_meta(value) for value in args)
        kwargs = {name: _on_meta(value) for name, value in (kwargs or {}).items()}
        pinned = kwargs.pop("pin_memory", None) is not None  # only a machine with a GPU pins memory
        out = func(*args, **kwargs)
        if func in self.INDEXING:
            copies = device_of(args[0]) == META and _has_numbers(args[1])
        else:
            numbers = func is Tensor.new and any(
                isinstance(x, list | tuple) and not isinstance(x, torch.Size) for x in args
            )
            makes = func in self.MAKERS or numbers
            copies = makes and device_of(out) == META
        if copies:
            self._watch.trace.waits.append(f"{func.__name__} on a device")
        if pinned and device_of(out) != META:
            self._watch.pin(out)
        return out


def _on_meta(value: Any) -> Any:
    """Return the meta device for one of CUDA, and any other argument as it is."""
    named = (isinstance(value, torch.device) and value.type == "cuda") or (
        isinstance(value, str) and value.startswith("cuda")
    )
    return META if named else value


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
