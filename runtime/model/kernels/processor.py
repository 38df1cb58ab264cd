"""Instructions of the processor that kernels are compiled for, which decide how elements are multiplied.

Numba compiles for the processor of this machine, unless NUMBA_CPU_NAME and NUMBA_CPU_FEATURES name another.
"""

import ctypes
import os
from functools import cache

import torch
from llvmlite import binding

SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA = 158, 0x1023, 18
"""Linux's system call on x86-64 by which a process asks for the use of AMX's tiles: include/uapi/asm/prctl.h."""


def target() -> str:
    """Return name and features of the processor, in LLVM's words."""
    features = os.environ.get("NUMBA_CPU_FEATURES")
    if features is None:
        features = binding.get_host_cpu_features().flatten()
    return f"{os.environ.get('NUMBA_CPU_NAME') or binding.get_host_cpu_name()} {features}"


@cache
def has(*features: str) -> bool:
    """Return True where the processor has all of these features, in LLVM's words."""
    return {f"+{feature}" for feature in features} <= set(target().partition(" ")[2].split(","))


def lanes() -> int:
    """Return the float32 values of a vector register."""
    return 16 if has("avx512f") else 8


def multiplies_pairs(dtype: torch.dtype) -> bool:
    """Return True where one instruction, vdpbf16ps, multiplies pairs of elements and adds both products to a float32.

    Elsewhere elements are converted to float32 first.
    """
    return dtype == torch.bfloat16 and has("avx512bf16", "avx512bw")


def multiplies_panels(dtype: torch.dtype) -> bool:
    """Return True where many rows are multiplied with panels of a weight: float32; where vectors have 8 lanes, halves.

    The latter become float32 as a panel is packed.
    """
    return has("avx2", "fma") and (dtype == torch.float32 or (dtype.itemsize == 2 and lanes() == 8))


@cache
def multiplies_tiles(dtype: torch.dtype) -> bool:
    """Return True where AMX multiplies tiles of elements: it is there, and Linux lets this process use it.

    The first call asks for that, for all threads and processes that this one forks; a program that one of them executes
    has to ask anew. Elements are multiplied in pairs elsewhere, as in scores.
    """
    return multiplies_pairs(dtype) and has("amx-tile", "amx-bf16") and _may_use_tiles()


def _may_use_tiles() -> bool:
    """Ask Linux for the use of tiles; False where it has no such call, or refuses."""
    system_call = ctypes.CDLL(None).syscall
    number, code, feature = (ctypes.c_long(n) for n in (SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA))
    return int(system_call(number, code, feature)) == 0


def instructions(dtype: torch.dtype) -> str:
    """Return the name of the instructions that multiply elements of a dtype, for reports."""
    if multiplies_tiles(dtype):
        return "AMX"
    if multiplies_pairs(dtype):
        return "AVX-512 BF16"
    if has("avx512f"):
        return "AVX-512"
    return "AVX2" if has("avx2", "fma") else "base instructions"
