"""Operands for kernels that Triton's interpreter runs (tests/conftest.py), and functions of kernels on their own."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


def seeded(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Return normally distributed values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape) + seed)).to(dtype)


def near(computed: Tensor, expected: Tensor, roundings: int = 1) -> bool:
    """Return whether the error is at most ``roundings`` roundings of the dtype, half a unit in the last place each."""
    step = torch.finfo(computed.dtype).eps * roundings * 0.51
    return bool(((computed.double() - expected).abs() <= step * expected.abs() + 3e-5).all())


@triton.jit
def _each(function: tl.constexpr, x, out, count, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, function(tl.load(x + at, mask=at < count, other=0)), mask=at < count)


def launched(function: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a kernel's function of each value."""
    out = torch.empty(x.shape, dtype=dtype)
    _each[(1,)](function, x, out, x.numel(), BLOCK=triton.next_power_of_2(x.numel()))
    return out
