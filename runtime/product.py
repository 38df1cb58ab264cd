"""x @ weight for a few rows at a time, by what the machine multiplies fast.

A CPU without instructions for 16-bit floats multiplies them row by row, so that eight rows cost eight times one row's
time. There a block of the weight is widened to float32, which fits the cache, and all rows are multiplied with it:
16 rows then take a third of the time, and 60 a sixth (AVX2). What is chosen follows from machine, dtype and shape.
"""

from functools import cache

import torch
from torch import Tensor

WIDE_BYTES = 2 << 20
"""Of a widened block; it is part of the device's reserve."""
DIRECT_ROWS = 2
"""So few rows are multiplied as they are: to widen a weight costs about as much as to multiply it twice."""


@cache
def _narrow_is_fast(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies matrices of the dtype itself."""
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return True


def wide_block(dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """Memory for widened weights, float32 and flat; None where they are multiplied as they are."""
    if device.type != "cpu" or _narrow_is_fast(dtype):
        return None
    return torch.zeros(WIDE_BYTES // 4, dtype=torch.float32)


def product(x: Tensor, weight: Tensor, wide: Tensor | None, added: Tensor | None = None) -> Tensor:
    """``x`` [W, in] @ ``weight`` [in, out] + ``added`` [W or 1, out]; ``wide``: as ``wide_block`` gave it."""
    if wide is None or x.shape[0] <= DIRECT_ROWS or weight.shape[0] > wide.numel():
        return torch.mm(x, weight) if added is None else torch.addmm(added, x, weight)
    inputs, outputs = weight.shape
    columns, given = wide.numel() // inputs, x.float()
    out = x.new_empty(x.shape[0], outputs)
    for start in range(0, outputs, columns):
        block = slice(start, min(start + columns, outputs))
        count = block.stop - block.start
        widened = wide[: count * inputs].view(count, inputs).copy_(weight.t()[block])
        found = torch.mm(given, widened.t())
        out[:, block].copy_(found if added is None else found.add_(added[:, block]))
    return out
