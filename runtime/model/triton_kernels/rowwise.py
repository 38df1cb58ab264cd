"""RMS norm of rows, and the gated activation; letters as in ``runtime.model.ops``."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plans.schema import Activation
from runtime.model.triton_kernels import launch
from runtime.model.triton_kernels.launch import ceil_div, power_of_two

VALUES = 1024
"""Least values of a program: rows that are short share one. Also the channels of a program of ``gate_kernel``."""


@triton.jit
def norm_kernel(
    x, weight, residual, out, rows, x_stride, residual_stride, out_stride, columns, eps, multiplier,
    OFFSET: tl.constexpr, ADDS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Norm some rows, with their weight or one more than it, and add them to a residual."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < columns)
    values = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(values * values, 1) / columns + eps)[:, None]
    weights = tl.load(weight + column, mask=column < columns, other=0.0).to(tl.float32)
    if OFFSET:
        weights += 1.0
    values = values * factor * weights
    if ADDS:
        added = tl.load(residual + row * residual_stride + column, mask=inside, other=0.0).to(tl.float32)
        values = added + multiplier * values
    tl.store(out + row * out_stride + column, values.to(out.dtype.element_ty), mask=inside)


def norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    offset: bool = False,
    residual: Tensor | None = None,
    multiplier: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """Return ``x`` [W, H] over its root mean square, times ``weight`` [H], or 1 + weight: ``offset``.

    With a ``residual`` [W, H]: residual + multiplier * norm. ``out`` [W, H], whose rows may be apart, is filled.
    """
    (rows, columns), out = x.shape, torch.empty_like(x) if out is None else out
    assert weight.shape == (columns,)
    assert out.shape == x.shape
    assert residual is None or residual.shape == x.shape
    assert x.stride(1) == out.stride(1) == 1
    block = power_of_two(columns)
    together = max(1, VALUES // block)
    launch.start(
        norm_kernel, (ceil_div(rows, together),), x, weight, residual, out, rows, x.stride(0),
        0 if residual is None else residual.stride(0), out.stride(0), columns, eps, multiplier, OFFSET=offset,
        ADDS=residual is not None, ROWS=together, BLOCK=block, warps=8 if columns > 2048 else 4,
    )  # fmt: skip
    return out


@triton.jit
def gate_kernel(
    both, out, rows, both_stride, channels, limit, alpha,
    GELU: tl.constexpr, CLAMPS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Multiply the activation of some gates by their ups."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (channel < channels)
    source = both + row * both_stride + channel
    gate = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(source + channels, mask=inside, other=0.0).to(tl.float32)
    if CLAMPS:
        gate, up = tl.minimum(gate, limit), tl.minimum(tl.maximum(up, -limit), limit) + 1.0
        active = gate * tl.sigmoid(alpha * gate)
    elif GELU:
        # gelu with tanh(y) = 2 sigmoid(2 y) - 1, and sqrt(2 / pi)
        active = gate * tl.sigmoid(2.0 * 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate))
    else:
        active = gate * tl.sigmoid(gate)
    tl.store(out + row * channels + channel, (active * up).to(out.dtype.element_ty), mask=inside)


def gated(both: Tensor, activation: Activation = "silu", clamp: tuple[float, float] | None = None) -> Tensor:
    """Return act(gate) * up [W, m], of ``both`` [W, 2m]: gates, then ups.

    With a ``clamp``, limit and alpha: (up + 1) * gate * sigmoid(alpha * gate), of gates of at most the limit and ups
    between its negative and it.
    """
    rows, channels = both.shape[0], both.shape[1] // 2
    assert both.stride(1) == 1
    out = both.new_empty(rows, channels)
    limit, alpha = clamp or (0.0, 0.0)
    block = min(VALUES, power_of_two(channels))
    together = VALUES // block
    launch.start(
        gate_kernel, (ceil_div(rows, together), ceil_div(channels, block)), both, out, rows, both.stride(0), channels,
        limit, alpha, GELU=activation == "gelu_pytorch_tanh", CLAMPS=clamp is not None, ROWS=together, BLOCK=block,
    )  # fmt: skip
    return out
