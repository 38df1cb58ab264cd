"""Products with quantized weights, and of rows with their experts' weights; letters as in ``runtime.model.ops``.

A product of few rows reads its weight once: where its outputs alone are too few programs to load all memory channels
of a GPU, its columns are divided too, and each part's sum is kept in float32. Of the programs that have the same
outputs the last one to write its part adds up all parts, in their order: which one that is changes no bit. How many
parts there are follows from the shape of the weight, up to FEW_ROWS rows; of more rows nothing is divided.

A product with gates and ups applies the activation itself: a program has the outputs of channels one beside the other,
gate and up, rounds them as they would be stored, and stores a value for each channel.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from plans.quantized import is_half
from plans.schema import Activation, WeightFormat
from runtime.model.triton_kernels import launch
from runtime.model.triton_kernels.codes import CODES, tile_product
from runtime.model.triton_kernels.launch import ceil_div, power_of_two
from runtime.model.triton_kernels.rowwise import GATES, gated_channels
from runtime.model.weights import Coded

OUTPUTS = 64
"""Outputs of a program."""
MOST_COLUMNS = 128
"""Columns of a tile; of a format with groups at most those that share a scale."""
FEW_ROWS, MOST_ROWS = 64, 64
"""Rows up to which a product may be divided by columns, and those of a program."""
PROGRAMS = 256
"""Programs that load all memory channels of the largest GPUs, about two for each of their processors."""
MOST_REGISTERS = 160
"""Registers of a thread of a product of more than 32 rows with codes of int8: ptxas, left to itself, takes 128 of them
for compute capability 12.0, and spills four."""
COUNTERS = PROGRAMS // 2
"""Most blocks of outputs of a product whose columns are divided."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """What becomes of the outputs of a weight of gates, then ups [2m, in]: act(gate) * up.

    With a ``clamp``, limit and alpha: (up + 1) * gate * sigmoid(alpha * gate), of gates of at most the limit and ups
    between its negative and it.
    """

    activation: Activation = "silu"
    clamp: tuple[float, float] | None = None

    @property
    def number(self) -> int:
        return GATES.index(self.activation if self.clamp is None else "clamped")


def _gate(gate: Gate | None) -> tuple[int, float, float]:
    """Return the number of an activation in ``GATES``, limit and alpha."""
    return (0 if gate is None else gate.number, *((gate and gate.clamp) or (0.0, 0.0)))


@triton.jit
def _outputs(number, outputs, GATE: tl.constexpr):
    """Return the rows of the weight that outputs of a program are of: in turn a gate and its up."""
    if GATE > 0:
        return number // 2 + number % 2 * (outputs // 2)
    return number


@triton.jit
def _store(
    out, acc, row, live, first, outputs, limit, alpha, GATE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):  # fmt: skip
    """Store outputs from the number ``first`` on of some rows, or the values of their channels."""
    if GATE > 0:
        both = acc.to(out.dtype.element_ty).to(tl.float32)
        gate, up = tl.split(tl.reshape(both, [BM, BN // 2, 2]))
        column, width = first // 2 + tl.arange(0, BN // 2), outputs // 2
        values = gated_channels(gate, up, limit, alpha, GATE)
    else:
        column, width, values = first + tl.arange(0, BN), outputs, acc
    place = out + row[:, None] * width + column[None, :]
    tl.store(place, values.to(out.dtype.element_ty), mask=live[:, None] & (column < width)[None, :])


@triton.jit
def product_kernel(
    x, codes, scales, zeros, order, added, out, partial, counters, rows, inputs, outputs, x_stride, codes_stride,
    scales_stride, zeros_stride, added_stride, split_columns, limit, alpha,
    CODE: tl.constexpr, GROUP: tl.constexpr, ZEROS: tl.constexpr, EXPONENTS: tl.constexpr, ORDERED: tl.constexpr,
    ADDS: tl.constexpr, PARTS: tl.constexpr, GATE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Multiply some rows with some rows of the weight, over one part of the columns; add up the parts where it is the
    last.
    """
    number = tl.program_id(0) * BN + tl.arange(0, BN)
    output = _outputs(number, outputs, GATE)
    row = tl.program_id(1) * BM + tl.arange(0, BM)
    split = tl.program_id(2)
    live, has_output = row < rows, number < outputs
    acc = tl.zeros([BM, BN], tl.float32)
    at = output.to(tl.int64)
    for begin in range(split * split_columns, tl.minimum((split + 1) * split_columns, inputs), BK):
        acc = tile_product(
            x, row.to(tl.int64) * x_stride, live, codes, scales, zeros, order, at * codes_stride, at * scales_stride,
            at * zeros_stride, has_output, begin, inputs, acc, CODE, GROUP, BK, ZEROS, EXPONENTS, ORDERED,
        )  # fmt: skip
    inside = live[:, None] & has_output[None, :]
    target = row[:, None] * outputs + number[None, :]
    arrived = PARTS - 1
    if PARTS > 1:
        tl.store(partial + split * rows * outputs + target, acc, mask=inside)
        tl.debug_barrier()  # all threads have written before one of them releases what they wrote, and acquires
        arrived = tl.atomic_add(counters + tl.program_id(0), 1, sem="acq_rel", scope="gpu")
    if arrived == PARTS - 1:
        if PARTS > 1:
            acc = tl.zeros([BM, BN], tl.float32)
            for part in range(PARTS):
                acc += tl.load(partial + part * rows * outputs + target, mask=inside, other=0.0, cache_modifier=".cg")
            tl.store(counters + tl.program_id(0), 0)  # for the next launch
        if ADDS:
            acc += tl.load(added + row[:, None] * added_stride + output[None, :], mask=inside, other=0.0).to(tl.float32)
        _store(out, acc, row, live, tl.program_id(0) * BN, outputs, limit, alpha, GATE, BM, BN)


@triton.jit
def grouped_kernel(
    x, picks, codes, scales, zeros, order, bias, ends, out, inputs, outputs, x_stride, codes_stride, scales_stride,
    zeros_stride, codes_group, scales_group, zeros_group, limit, alpha,
    CODE: tl.constexpr, GROUP: tl.constexpr, ZEROS: tl.constexpr, EXPONENTS: tl.constexpr, ORDERED: tl.constexpr,
    PICKED: tl.constexpr, ADDS: tl.constexpr, GATE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Multiply the rows of one expert with some rows of its weight; an expert without rows is not read."""
    expert = tl.program_id(1).to(tl.int64)
    number = tl.program_id(0) * BN + tl.arange(0, BN)
    output = _outputs(number, outputs, GATE)
    has_output, at = number < outputs, output.to(tl.int64)
    start = tl.load(ends + tl.maximum(expert - 1, 0), mask=expert > 0, other=0)
    stop = tl.load(ends + expert)
    codes += expert * codes_group
    if CODE != 4:
        scales += expert * scales_group
    if ZEROS:
        zeros += expert * zeros_group
    if ORDERED:
        order += expert * inputs
    for first in range(start, stop, BM):
        row = first + tl.arange(0, BM)
        live = row < stop
        pick = tl.load(picks + row, mask=live, other=0)
        if PICKED > 0:
            source, target = pick // PICKED, row
        else:
            source, target = row, pick
        acc = tl.zeros([BM, BN], tl.float32)
        for begin in range(0, inputs, BK):
            acc = tile_product(
                x, source * x_stride, live, codes, scales, zeros, order, at * codes_stride, at * scales_stride,
                at * zeros_stride, has_output, begin, inputs, acc, CODE, GROUP, BK, ZEROS, EXPONENTS, ORDERED,
            )  # fmt: skip
        if ADDS:
            acc += tl.load(bias + expert * outputs + output, mask=has_output, other=0.0).to(tl.float32)[None, :]
        _store(out, acc, target, live, tl.program_id(0) * BN, outputs, limit, alpha, GATE, BM, BN)


def _tile_columns(form: WeightFormat | None, itemsize: int) -> int:
    """Return the columns of a tile: a power of two, which divides a group. What a tile has fits into registers."""
    most = MOST_COLUMNS // (1 if itemsize == 2 else 2) // (2 if form is not None and is_half(form) else 1)
    if form is None or form.group is None:
        return most
    return min(most, form.group & -form.group)


def _splits(outputs: int, inputs: int, columns: int) -> int:
    """Return the parts of the columns of a weight: enough programs, each with eight tiles or more."""
    wanted = PROGRAMS // max(1, ceil_div(outputs, OUTPUTS))
    return max(1, min(wanted, inputs // (8 * columns)))


def _sizes(form: WeightFormat | None, columns: int, *, zeros: bool, ordered: bool) -> dict[str, object]:
    return {
        "CODE": CODES.index("plain" if form is None else form.code),
        "GROUP": 0 if form is None else form.group or 0,
        "ZEROS": zeros,
        "ORDERED": ordered,
        "EXPONENTS": form is not None and form.scale == "float8_e8m0",
        "BN": OUTPUTS,
        "BK": columns,
    }


def _strides(weight: Coded, dim: int) -> tuple[int, int, int]:
    """Return the strides of codes, scales and zero points along a dimension."""
    return weight.codes.stride(dim), weight.scales.stride(dim), 0 if weight.zeros is None else weight.zeros.stride(dim)


def product(x: Tensor, weight: Coded, added: Tensor | None = None, gate: Gate | None = None) -> Tensor:
    """Return ``x`` [W, in] @ values.t() + ``added`` [W or 1, out] of a quantized weight, with one rounding.

    With a ``gate`` the values of its channels [W, out / 2], with another one.
    """
    rows, inputs, outputs = x.shape[0], weight.held_columns, weight.codes.shape[0]
    assert x.shape[1] == weight.inputs
    assert weight.order is None or (weight.order.shape == (inputs,) and weight.order.is_contiguous())
    assert x.stride(1) == 1
    assert added is None or (added.shape[1] == outputs and added.shape[0] in (1, rows))
    number, limit, alpha = _gate(gate)
    assert gate is None or outputs % 2 == 0
    out = x.new_empty(rows, outputs if gate is None else outputs // 2)
    columns = _tile_columns(weight.form, x.itemsize)
    splits = _splits(outputs, inputs, columns) if rows <= FEW_ROWS else 1
    block = min(MOST_ROWS, max(16, power_of_two(rows)))
    added_stride = 0 if added is None or added.shape[0] == 1 else added.stride(0)
    blocks = ceil_div(outputs, OUTPUTS)
    partial = counters = None
    if splits > 1:
        partial, counters = torch.empty(splits, rows, outputs, dtype=torch.float32, device=x.device), weight.counters
        assert counters is not None
        assert blocks <= len(counters)
    launch.start(
        product_kernel, (blocks, ceil_div(rows, block), splits), x, weight.codes, weight.scales, weight.zeros,
        weight.order, added, out, partial, counters, rows, inputs, outputs, x.stride(0), *_strides(weight, 0),
        added_stride, ceil_div(inputs, splits * columns) * columns, limit, alpha, ADDS=added is not None, PARTS=splits,
        GATE=number, BM=block, warps=8 if block > 32 else 4, stages=3,
        **({"maxnreg": MOST_REGISTERS} if block > 32 and weight.form.code == "int8" else {}),
        **_sizes(weight.form, columns, zeros=weight.zeros is not None, ordered=weight.order is not None),
    )  # fmt: skip
    return out


def grouped(
    x: Tensor, weights: Tensor | Coded, order: Tensor, ends: Tensor, *, picked: int | None, bias: Tensor | None = None,
    gate: Gate | None = None,
) -> Tensor:  # fmt: skip
    """Return the rows of picks, each times its expert's weight [E, out, in], + ``bias`` [E, out]: [R, out].

    ``order`` [R] int64 has picks sorted by expert; those of expert e are from ends[e - 1] to ends[e] - 1, ``ends`` [E].
    ``picked``: experts of each row of ``x`` [R / picked, in]; the result has the sorted picks. None: ``x`` [R, in] has
    them, and the result the picks in their own order. With a ``gate`` the values of its channels [R, out / 2].
    """
    coded = weights if isinstance(weights, Coded) else None
    (experts, outputs, inputs), rows = weights.shape, order.shape[0]
    assert x.shape == (rows // (picked or 1), inputs)
    assert ends.shape == (experts,)
    assert x.stride(1) == 1
    assert bias is None or (bias.shape == (experts, outputs) and bias.is_contiguous())
    number, limit, alpha = _gate(gate)
    assert gate is None or outputs % 2 == 0
    out = x.new_empty(rows, outputs if gate is None else outputs // 2)
    form: WeightFormat | None = None
    scales: Tensor | None = None
    zeros: Tensor | None = None
    columns_of_x: Tensor | None = None
    if coded is None:
        assert isinstance(weights, Tensor)
        codes = weights
        rows_apart, apart = (weights.stride(1), 0, 0), (weights.stride(0), 0, 0)
    else:
        form, codes, scales, zeros, columns_of_x = coded.form, coded.codes, coded.scales, coded.zeros, coded.order
        assert coded.held_columns == inputs
        assert coded.order is None or (coded.order.shape == (experts, inputs) and coded.order.is_contiguous())
        rows_apart, apart = _strides(coded, 1), _strides(coded, 0)
    columns, block = _tile_columns(form, x.itemsize), min(MOST_ROWS, max(16, power_of_two(ceil_div(rows, experts))))
    launch.start(
        grouped_kernel, (ceil_div(outputs, OUTPUTS), experts), x, order, codes, scales, zeros, columns_of_x, bias, ends,
        out, inputs, outputs, x.stride(0), *rows_apart, *apart, limit, alpha, PICKED=picked or 0, ADDS=bias is not None,
        GATE=number, BM=block, warps=8 if block > 32 else 4, stages=3,
        **_sizes(form, columns, zeros=zeros is not None, ordered=columns_of_x is not None),
    )  # fmt: skip
    return out
