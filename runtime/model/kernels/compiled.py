"""Compilation of a kernel for a dtype by Numba; imported only where its code is not on disk (``code``)."""

import importlib
from types import FunctionType

import torch
from numba import cfunc
from numba.core import types

from runtime.model.kernels.code import KERNELS, PACKAGE
from runtime.model.kernels.elements import ELEMENTS, FLOATING


def object_code(kernel: str, dtype: torch.dtype) -> tuple[str, bytes]:
    """Return the symbol of a kernel, which takes the pointer to its arguments, and the ELF object that has it."""
    function = getattr(importlib.import_module(f"{PACKAGE}.{KERNELS[kernel]}"), kernel)
    own = FunctionType(function.__code__, function.__globals__)
    own.__module__, own.__qualname__ = function.__module__, f"{kernel}_{ELEMENTS[dtype]}"
    signature = types.void(types.CPointer(ELEMENTS[dtype]))
    compiled = cfunc(signature, fastmath=set(FLOATING), error_model="numpy")(own)
    return compiled.native_name, compiled._library._get_compiled_object()
