"""Compilation of a kernel for a dtype, and the key of Numba's on-disk cache.

Numba decides by the file of the kernel alone whether compiled code is up to date, although a kernel calls functions of
other files. It also numbers the files of one kernel in the order in which they are written: of two processes that
compile for different dtypes or processors at the same time, one could load the other's code. So the name under which
the code of a kernel is kept holds everything that it depends on: the dtype, the processor, and a checksum of every
source file of this package. Code of other sources is never loaded; it stays on disk until the cache is deleted.
"""

import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from numba import cfunc
from numba.core import types
from numba.core.caching import FunctionCache

from runtime.model.kernels.cache_owner import require_private
from runtime.model.kernels.elements import ELEMENTS, FLOATING
from runtime.model.kernels.processor import target

Kernel = Callable[[Any], None]
"""A kernel before compilation; its argument is the pointer to its arguments."""


@cache
def compiled(kernel: Kernel, dtype: torch.dtype) -> int:
    """Return the address of a kernel's code for a dtype, from the on-disk cache or compiled now.

    Raise MachineError where another user can write the cache, before anything in it is read.
    """
    assert isinstance(kernel, FunctionType)
    own = FunctionType(kernel.__code__, kernel.__globals__)
    own.__module__ = kernel.__module__
    own.__qualname__ = f"{kernel.__name__}_{ELEMENTS[dtype]}_{_processor()}_{_sources()}"
    kept = FunctionCache(own)
    require_private(Path(kept.cache_path), kept._impl.filename_base)
    signature = types.void(types.CPointer(ELEMENTS[dtype]))
    return int(cfunc(signature, cache=True, fastmath=set(FLOATING), error_model="numpy")(own).address)


@cache
def _processor() -> str:
    """Return a checksum of the processor's name and features."""
    return _checksum(target().encode())


@cache
def _sources() -> str:
    """Return a checksum of the sources of all kernels and of what they call."""
    return _checksum(b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py"))))


def _checksum(content: bytes) -> str:
    return f"{zlib.crc32(content):08x}"
