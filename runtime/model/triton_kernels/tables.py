"""Look-up of rows of an embedding table in codes of 8 bits with a scale for each row; letters as in ``ops``."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.model.triton_kernels import launch
from runtime.model.triton_kernels.launch import ceil_div

COLUMNS = 1024
"""Columns of a program."""


@triton.jit
def look_up_kernel(
    tokens, codes, scales, out, columns, tokens_stride, codes_stride, scales_stride, out_stride, BLOCK: tl.constexpr
):  # fmt: skip
    """Write some columns of one row: (code - 128) * scale."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    token, inside = tl.load(tokens + row * tokens_stride), column < columns
    numbers = tl.load(codes + token * codes_stride + column, mask=inside, other=0).to(tl.float32) - 128.0
    values = numbers * tl.load(scales + token * scales_stride).to(tl.float32)
    tl.store(out + row * out_stride + column, values.to(out.dtype.element_ty), mask=inside)


def look_up(tokens: Tensor, codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the values of rows ``tokens`` [W] of ``codes`` uint8 [V', H] with ``scales`` [V', 1]: [W, H].

    ``tokens`` may have a stride: of a plain step they are a column of its message.
    """
    rows, columns = tokens.shape[0], codes.shape[1]
    assert scales.shape == (codes.shape[0], 1)
    assert codes.stride(1) == 1
    out = torch.empty(rows, columns, dtype=dtype, device=codes.device)
    launch.start(
        look_up_kernel, (rows, ceil_div(columns, COLUMNS)), tokens, codes, scales, out, columns,
        tokens.stride(0), codes.stride(0), scales.stride(0), out.stride(0), BLOCK=COLUMNS, warps=4,
    )  # fmt: skip
    return out
