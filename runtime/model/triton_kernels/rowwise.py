"""RMS norm of rows, and the gated activation; letters as in ``runtime.model.ops``."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plans.schema import Activation
from runtime.model.triton_kernels import launch
from runtime.model.triton_kernels.launch import ceil_div, power_of_two

RowNorm = tuple[Tensor, float, bool]
"""Weight [H], eps, and whether the weight is an offset from 1."""
VALUES = 1024
"""Least values of a program: rows that are short share one. Also the channels of a program of ``gate_kernel``."""


@triton.jit
def _normed(values, weight, column, columns, eps, OFFSET: tl.constexpr):
    """Return rows of float32 over their root mean square, times a weight, or one more than it."""
    factor = tl.rsqrt(tl.sum(values * values, 1) / columns + eps)[:, None]
    weights = tl.load(weight + column, mask=column < columns, other=0.0).to(tl.float32)
    if OFFSET:
        weights += 1.0
    return values * factor * weights


@triton.jit
def norm_kernel(
    x, weight, out, rows, x_stride, out_stride, columns, eps,
    OFFSET: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Norm some rows."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < columns)
    values = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    values = _normed(values, weight, column, columns, eps, OFFSET)
    tl.store(out + row * out_stride + column, values.to(out.dtype.element_ty), mask=inside)


@triton.jit
def residual_kernel(
    residual, x, weight, following, out, rows, x_stride, residual_stride, columns, eps, multiplier, following_eps,
    NORMS: tl.constexpr, OFFSET: tl.constexpr, FOLLOWED: tl.constexpr, FOLLOWING_OFFSET: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add some rows, or their norm, to a residual in its place, and write the norm of the sum that follows."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < columns)
    values = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    if NORMS:
        values = _normed(values, weight, column, columns, eps, OFFSET)
    target = residual + row * residual_stride + column
    total = (tl.load(target, mask=inside, other=0.0).to(tl.float32) + multiplier * values).to(residual.dtype.element_ty)
    tl.store(target, total, mask=inside)
    if FOLLOWED:
        values = _normed(total.to(tl.float32), following, column, columns, following_eps, FOLLOWING_OFFSET)
        tl.store(out + row * columns + column, values.to(out.dtype.element_ty), mask=inside)


def norm(x: Tensor, weight: Tensor, eps: float, *, offset: bool = False, out: Tensor | None = None) -> Tensor:
    """Return ``x`` [W, H] over its root mean square, times ``weight`` [H], or 1 + weight: ``offset``.

    ``out`` [W, H], whose rows may be apart, is filled.
    """
    (rows, columns), out = x.shape, torch.empty_like(x) if out is None else out
    assert weight.shape == (columns,)
    assert out.shape == x.shape
    assert x.stride(1) == out.stride(1) == 1
    together, block, warps = _of_rows(columns)
    launch.start(
        norm_kernel, (ceil_div(rows, together),), x, weight, out, rows, x.stride(0), out.stride(0), columns, eps,
        OFFSET=offset, ROWS=together, BLOCK=block, warps=warps,
    )  # fmt: skip
    return out


def add(
    residual: Tensor, x: Tensor, norm: RowNorm | None, multiplier: float, following: RowNorm | None
) -> Tensor | None:
    """Add ``multiplier`` * ``x`` [W, H], or of its norm, to ``residual`` [W, H]; return the sum's ``following`` norm.

    That is the norm of the sum as the residual holds it, so that it has the bits of ``norm``; None: there is none.
    """
    rows, columns = x.shape
    assert residual.shape == x.shape
    assert x.stride(1) == residual.stride(1) == 1
    weight, eps, offset = norm or (None, 0.0, False)
    next_weight, next_eps, next_offset = following or (None, 0.0, False)
    assert all(own is None or own.shape == (columns,) for own in (weight, next_weight))
    out = None if following is None else torch.empty_like(x)
    together, block, warps = _of_rows(columns)
    launch.start(
        residual_kernel, (ceil_div(rows, together),), residual, x, weight, next_weight, out, rows, x.stride(0),
        residual.stride(0), columns, eps, multiplier, next_eps, NORMS=norm is not None, OFFSET=offset,
        FOLLOWED=following is not None, FOLLOWING_OFFSET=next_offset, ROWS=together, BLOCK=block, warps=warps,
    )  # fmt: skip
    return out


@triton.jit
def join_kernel(
    tokens, table, parents, hidden, first_weight, second_weight, joined, kept, tokens_stride, table_stride,
    hidden_stride, columns, first_eps, second_eps,
    NORMS: tl.constexpr, GATHERS: tl.constexpr, KEEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the embedding of one token and a hidden state, or their norms, one behind the other."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)[None, :]
    inside = column < columns
    token, source = tl.load(tokens + row * tokens_stride), row
    if GATHERS:
        source = tl.load(parents + row)
    first = tl.load(table + token * table_stride + column, mask=inside, other=0.0)
    second = tl.load(hidden + source * hidden_stride + column, mask=inside, other=0.0)
    if KEEPS:
        tl.store(kept + row * columns + column, second, mask=inside)
    if NORMS:
        first = _normed(first.to(tl.float32), first_weight, column, columns, first_eps, False)
        second = _normed(second.to(tl.float32), second_weight, column, columns, second_eps, False)
    target = joined + row * (2 * columns) + column
    tl.store(target, first.to(joined.dtype.element_ty), mask=inside)
    tl.store(target + columns, second.to(joined.dtype.element_ty), mask=inside)


def join(
    tokens: Tensor, table: Tensor, hidden: Tensor, parents: Tensor | None, norms: tuple[RowNorm, RowNorm] | None, *,
    keep: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return [W, 2H]: rows ``tokens`` [W] of ``table`` [V, H] beside ``hidden`` [W, H], or its rows ``parents`` [W],
    each behind its norm; and the latter before it, which is only with ``keep`` another tensor than ``hidden``.
    """
    rows, columns = tokens.shape[0], table.shape[1]
    assert hidden.shape[1] == columns
    assert (hidden.shape[0] if parents is None else len(parents)) == rows
    assert parents is None or parents.is_contiguous()
    assert table.stride(1) == hidden.stride(1) == 1
    joined = hidden.new_empty(rows, 2 * columns)
    kept = hidden.new_empty(rows, columns) if keep and parents is not None else None
    (first, first_eps, _), (second, second_eps, _) = norms or ((None, 0.0, False), (None, 0.0, False))
    assert all(own is None or own.shape == (columns,) for own in (first, second))
    assert norms is None or not (norms[0][2] or norms[1][2]), "the norms of a drafter have no offset"
    launch.start(
        join_kernel, (rows,), tokens, table, parents, hidden, first, second, joined, kept, tokens.stride(0),
        table.stride(0), hidden.stride(0), columns, first_eps, second_eps, NORMS=norms is not None,
        GATHERS=parents is not None, KEEPS=kept is not None, BLOCK=power_of_two(columns),
        warps=8 if columns > 2048 else 4,
    )  # fmt: skip
    return joined, hidden if kept is None else kept


def _of_rows(columns: int) -> tuple[int, int, int]:
    """Return the rows of a program, the block that holds one, and its warps."""
    block = power_of_two(columns)
    return max(1, VALUES // block), block, 8 if columns > 2048 else 4


GATES = ("none", "silu", "gelu_pytorch_tanh", "clamped")
"""Activations of gates; kernels take their index."""


@triton.jit
def gated_channels(gate, up, limit, alpha, GATE: tl.constexpr):
    """Return act(gate) * up of float32 values; ``limit`` and ``alpha`` are those of a clamp (``products.Gate``)."""
    if GATE == 3:
        gate, up = tl.minimum(gate, limit), tl.minimum(tl.maximum(up, -limit), limit) + 1.0
        active = gate * tl.sigmoid(alpha * gate)
    elif GATE == 2:
        # gelu with tanh(y) = 2 sigmoid(2 y) - 1, and sqrt(2 / pi)
        active = gate * tl.sigmoid(2.0 * 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate))
    else:
        active = gate * tl.sigmoid(gate)
    return active * up


@triton.jit
def gate_kernel(
    both, out, rows, both_stride, channels, GATE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Multiply the activation of some gates by their ups."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (channel < channels)
    source = both + row * both_stride + channel
    gate = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(source + channels, mask=inside, other=0.0).to(tl.float32)
    values = gated_channels(gate, up, 0.0, 0.0, GATE)
    tl.store(out + row * channels + channel, values.to(out.dtype.element_ty), mask=inside)


def gated(both: Tensor, activation: Activation = "silu") -> Tensor:
    """Return act(gate) * up [W, m], of ``both`` [W, 2m]: gates, then ups."""
    rows, channels = both.shape[0], both.shape[1] // 2
    assert both.stride(1) == 1
    out = both.new_empty(rows, channels)
    block = min(VALUES, power_of_two(channels))
    together = VALUES // block
    launch.start(
        gate_kernel, (ceil_div(rows, together), ceil_div(channels, block)), both, out, rows, both.stride(0), channels,
        GATE=GATES.index(activation), ROWS=together, BLOCK=block,
    )  # fmt: skip
    return out
