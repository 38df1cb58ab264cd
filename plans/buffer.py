"""One entry of the table of ``plans.buffers``."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from plans.dtypes import BUFFER_BYTES
from plans.step import (
    ALIGN_BYTES,
    round_up,
)

Term = Literal["kv", "draft_kv", "buffers", "comm"]
TERMS: tuple[Term, ...] = get_args(Term)
"""Terms of ``schema.MEMORY_TERMS`` that this table counts; the others are weights (``plans.slot_bytes``)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Buffer:
    """One allocation: its name within the device, the memory term it belongs to, and its shape."""

    name: str
    term: Term
    dtype: str
    shape: tuple[int, ...]

    @property
    def scratch(self) -> bool:
        """True where the entry bounds temporaries and is not allocated."""
        return "scratch." in self.name

    @property
    def nbytes(self) -> int:
        """Bytes, rounded up to the allocator's granule."""
        return round_up(math.prod(self.shape) * BUFFER_BYTES[self.dtype], ALIGN_BYTES)
