"""Tensors without values that say that they are of CUDA, and what a GPU would object to in operations on them.

Code takes the branch that it takes on a GPU, whichever way it asks. Each operation and each launch of a Triton kernel
can be looked at: its devices, copies from the host, and the bytes of temporaries.
"""

import weakref
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Self
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
