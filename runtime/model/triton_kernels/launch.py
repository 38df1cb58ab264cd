"""The launch of a kernel: the only call of Triton's runtime, which tests replace to count launches without a GPU."""

from typing import Any

import torch

Operand = torch.Tensor | int | float | None


def start(
    kernel: Any, grid: tuple[int, ...], *operands: Operand, warps: int = 4, stages: int = 2, **sizes: Any
) -> None:
    """Launch a kernel on the device of its first operand, a tensor; ``sizes`` are compiled in."""
    first = operands[0]
    assert isinstance(first, torch.Tensor)
    if 0 in grid:
        return
    with torch.cuda.device_of(first):  # another thread may have another current device
        kernel[grid](*operands, num_warps=warps, num_stages=stages, **sizes)


def power_of_two(count: int) -> int:
    """Return the least power of two that is at least ``count``: blocks have such sizes, and the rest is masked."""
    return 1 << max(0, count - 1).bit_length()


def ceil_div(count: int, size: int) -> int:
    """Return the number of blocks of ``size`` that hold ``count``."""
    return -(-count // size)
