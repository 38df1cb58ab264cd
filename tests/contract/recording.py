"""A captured step without a GPU: the operations of a step on a CPU, recorded once and replayed on the same memory.

As of a CUDA graph nothing is computed when a step is recorded, and what is replayed has the numbers of the host and the
shapes of that time: so a replay equals a step that is run exactly where all that differs between steps lies in tensors.
Launches of Triton kernels, which the interpreter runs, and collectives of ranks that are threads are recorded too.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from runtime.decode.graphs import Replay
from runtime.model.triton_kernels import launch
from tests.contract.ranks import ThreadCollectives

Operation = Callable[[], object]
_recording = threading.local()


class Recording(TorchDispatchMode):
    """Records what a rank computes; ``undo`` restores what was written meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self._own: dict[int, Tensor] = {}
        """A tensor of each storage that was made meanwhile; all are kept, so that no other takes its address."""
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        """Of each other storage that was written: a tensor of it, and its bytes before."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments):
            self._keep(inputs)
        out = func(*args, **kwargs)
        known = {_address(tensor) for tensor in inputs}
        made = [
            (number, leaf)
            for number, leaf in enumerate(tree_leaves(out))
            if isinstance(leaf, Tensor) and _address(leaf) not in known
        ]
        self._own.update({_address(tensor): tensor for _, tensor in made})

        def again() -> None:
            results = tree_leaves(func(*args, **kwargs))
            for number, tensor in made:
                tensor.copy_(results[number])

        self.operations.append(again)
        return out

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function whose operations are one, and which may write to any of its tensors; record it."""
        self._keep([leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)])
        with _disable_current_modes():
            out = function(*args, **kwargs)
            if isinstance(out, Tensor):
                self._own.setdefault(_address(out), out)

        def again() -> None:
            result = function(*args, **kwargs)
            if isinstance(out, Tensor) and result is not out:
                out.copy_(result)

        self.operations.append(again)
        return out

    def _keep(self, tensors: list[Tensor]) -> None:
        """Keep the bytes of storages that were there before and are written now."""
        with _disable_current_modes():
            for tensor in tensors:
                address = _address(tensor)
                if address not in self._own and address not in self._before:
                    self._before[address] = tensor, _bytes(tensor).clone()

    def undo(self) -> None:
        """Let nothing have been computed: what was written is as before, what was made is garbage."""
        for tensor, before in self._before.values():
            if not torch.equal(_bytes(tensor), before):  # an image, which a kernel reads, is mapped read-only
                _bytes(tensor).copy_(before)
        for tensor in self._own.values():
            _bytes(tensor).fill_(0x55)

    def replay(self) -> None:
        """Do what was recorded."""
        for operation in self.operations:
            operation()


@contextmanager
def capture() -> Iterator[Replay]:
    """Record a piece of a step (``graphs.Capture``)."""
    recording = Recording()
    _recording.now = recording
    try:
        with recording:
            yield recording.replay
    finally:
        _recording.now = None
    recording.undo()


@contextmanager
def recordable() -> Iterator[None]:
    """Let launches and collectives within this context be recorded as one operation each.

    Ranks, which are threads, launch in turn: the interpreter is not theirs alone.
    """
    lock, start = threading.Lock(), launch.start

    def locked(*operands: Any, **sizes: Any) -> None:
        with lock:
            start(*operands, **sizes)

    with (
        mock.patch.object(launch, "start", _recorded(locked)),
        mock.patch.object(ThreadCollectives, "broadcast", _recorded(ThreadCollectives.broadcast)),
        mock.patch.object(ThreadCollectives, "all_reduce", _recorded(ThreadCollectives.all_reduce)),
        mock.patch.object(ThreadCollectives, "all_gather", _recorded(ThreadCollectives.all_gather)),
    ):
        yield


def _recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        recording: Recording | None = getattr(_recording, "now", None)
        return function(*args, **kwargs) if recording is None else recording.call(function, *args, **kwargs)

    return call


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(tensor: Tensor) -> Tensor:
    """Return all bytes of a tensor's storage."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
