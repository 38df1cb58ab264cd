"""Buffers of one device, as ``plans.buffers`` lists them, allocated once, before the first token."""

from collections.abc import Sequence

import torch
from torch import Tensor

from plans.buffer import TERMS, Buffer, Term
from plans.buffers import device_buffers
from plans.schema import Plan
from runtime.image.dtypes import DTYPES


def fill(buffer: Tensor, values: Sequence[int]) -> None:
    """Copy numbers to a buffer; the host does not wait for a GPU, as the copy is from pinned memory.

    Torch does not use that memory again before the copy is done.
    """
    buffer.copy_(torch.tensor(values, dtype=buffer.dtype, pin_memory=buffer.is_cuda), non_blocking=True)


class Memory:
    """Zeroed buffers by name; entries of the table that bound temporaries are not allocated."""

    def __init__(self, plan: Plan, device_id: str, device: torch.device) -> None:
        self.device_id, self._device = device_id, device
        self._table = {buffer.name: buffer for buffer in device_buffers(plan, device_id)}
        self._allocated: dict[str, Tensor] = {}

    def buffer(self, name: str) -> Tensor:
        """Return the buffer of this name, in its shape."""
        entry = self._table[name]
        assert not entry.scratch, "temporaries are not allocated"
        if name not in self._allocated:
            self._allocated[name] = torch.zeros(entry.shape, dtype=DTYPES[entry.dtype], device=self._device)
        return self._allocated[name]

    def adopt(self, name: str, buffer: Tensor) -> None:
        """Take memory that was allocated elsewhere as the buffer of this name."""
        assert buffer.nbytes == self._table[name].nbytes, "the memory has the planned size"
        self._allocated[name] = buffer

    def planned_bytes(self, name: str) -> int:
        """Return the bytes of an entry of the table."""
        return self._table[name].nbytes

    def names(self, term: Term) -> list[str]:
        """Return the names of a term's buffers, in the order of the table."""
        return [name for name, buffer in self._table.items() if buffer.term == term]

    def begin_measuring(self) -> None:
        """Forget the peak of what the process allocated on a GPU before: from now on it is that of this engine."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def measured(self, pool_bytes: int = 0) -> dict[Term, int]:
        """Return the bytes allocated, term by term; on a GPU the peak of temporaries counts as step buffers.

        ``pool_bytes``: memory of captured steps, which counts too.
        """
        allocated: list[Buffer] = [self._table[name] for name in self._allocated]
        terms = {term: sum(buffer.nbytes for buffer in allocated if buffer.term == term) for term in TERMS}
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device) - torch.cuda.memory_allocated(self._device)
            terms["buffers"] += peak + pool_bytes
        return terms
