"""Products with the weights of a layer: plain ones, or quantized ones as codes, scales and zero points.

Kernels widen codes in registers: on a CPU ``coded``, on a GPU those of ``triton_kernels.products``. Letters as in
``ops``.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as functional
from torch import Tensor

from plans.quantized import code_bytes, coded_columns, groups, is_half
from plans.schema import WeightFormat
from runtime.model import ops
from runtime.model.kernels.arguments import CODED_ROWS, CODES, SCALES, CodedProduct, Codes
from runtime.model.ops import FLOAT_BYTES, PADDING

INT8_ZERO = 128
"""Code of 0 in int8 without zero points."""
_coded = partial(CodedProduct.__new__, CodedProduct)


@dataclass(frozen=True, kw_only=True, slots=True)
class Coded:
    """A quantized weight [out, in], or one of each expert [E, out, in], as views of an image (``plans.quantized``)."""

    form: WeightFormat
    codes: Tensor
    """uint8 [..., out, bytes of in codes]"""
    scales: Tensor
    """[..., out, groups]"""
    zeros: Tensor | None
    """uint8 [..., out, groups]"""
    inputs: int
    """Columns of x, the input."""
    order: Tensor | None = None
    """int32 [..., in]: columns of x in the order of the codes, -1 where x counts as 0; None: their own order."""
    counters: Tensor | None = None
    """int32 [``products.COUNTERS``], zeros: parts of a product on a GPU that are written; None: on a CPU, of experts.
    """

    @property
    def held_columns(self) -> int:
        """in: columns of the image, ``inputs``, and more where some of ``order`` are -1."""
        return self.codes.shape[-1] * (2 if is_half(self.form) else 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the values that x is multiplied with, [inputs, out]; of experts [E, out, inputs]."""
        *experts, out, _ = self.codes.shape
        return (*experts, out, self.inputs) if experts else (self.inputs, out)

    def words(self) -> Codes:
        """Return the words of a weight, not of experts, from whose sizes a kernel computes every address."""
        form, (outputs, nbytes), count = self.form, self.codes.shape, groups(self.form, self.held_columns)
        assert nbytes == code_bytes(form, self.held_columns)
        assert self.held_columns == self.inputs or self.order is not None
        assert self.order is None or (self.order.shape == (self.held_columns,) and self.order.is_contiguous())
        assert self.scales.shape == (outputs, count)
        assert self.zeros is None or self.zeros.shape == (outputs, count)
        return Codes(
            code=CODES.index(form.code),
            codes=self.codes.data_ptr(),
            codes_stride=self.codes.stride(0),
            scale=SCALES.index(form.scale),
            scales=self.scales.data_ptr(),
            scales_stride=self.scales.itemsize * self.scales.stride(0),
            zeros=0 if self.zeros is None else self.zeros.data_ptr(),
            zeros_stride=0 if self.zeros is None else self.zeros.stride(0),
            group=form.group or self.held_columns,
            order=0 if self.order is None else self.order.data_ptr(),
            inputs=self.held_columns,
        )

    def rows(self, start: int, stop: int) -> "Coded":
        """Return some rows of a weight that is not of experts."""
        zeros = None if self.zeros is None else self.zeros[start:stop]
        return replace(self, codes=self.codes[start:stop], scales=self.scales[start:stop], zeros=zeros)

    def expert(self, number: int) -> "Coded":
        """Return the weight of one expert."""
        zeros = None if self.zeros is None else self.zeros[number]
        order = None if self.order is None else self.order[number]
        return replace(self, codes=self.codes[number], scales=self.scales[number], zeros=zeros, order=order)


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """Weights [in, out] of several formats that are multiplied with one input; their outputs lie side by side."""

    parts: tuple[Tensor | Coded, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all as one, [in, out]."""
        return (self.parts[0].shape[0], sum(part.shape[1] for part in self.parts))


def product(x: Tensor, weight: Tensor | Coded | Beside, added: Tensor | None = None) -> Tensor:
    """Return ``x`` [W, in] @ ``weight`` [in, out] + ``added`` [W or 1, out]."""
    if isinstance(weight, Beside):
        parts = weight.parts
        rest = [None] * len(parts) if added is None else added.split([part.shape[1] for part in parts], 1)
        return torch.cat([product(x, part, own) for part, own in zip(parts, rest, strict=True)], 1)
    return coded(x, weight, added) if isinstance(weight, Coded) else ops.product(x, weight, added)


def product_onto(residual: Tensor, x: Tensor, weight: Tensor | Coded | Beside) -> Tensor:
    """Return ``residual`` [W, out] + ``x`` @ ``weight``; the residual may be overwritten."""
    if not isinstance(weight, Tensor):
        return product(x, weight, residual)
    return ops.product_onto(residual, x, weight)


def coded(x: Tensor, weight: Coded, added: Tensor | None = None) -> Tensor:
    """Return ``x`` [W, in] @ values.t() + ``added`` [W or 1, out], of a quantized weight's values in float32."""
    if not ops.is_cpu(x):
        product_of_codes: Tensor = ops.on_gpu("products").product(x, weight, added)
        return product_of_codes
    (rows, inputs), size, outputs = x.shape, x.itemsize, weight.codes.shape[0]
    assert inputs == weight.inputs
    assert added is None or (added.shape[1] == outputs and added.shape[0] in (1, rows))
    out = torch.empty(rows, outputs, dtype=x.dtype)
    columns = coded_columns(weight.held_columns)
    widened, per_thread = ops.widened_scratch(rows, columns)
    values = torch.empty(torch.get_num_threads() * CODED_ROWS, columns + PADDING)
    words = weight.words()._asdict()
    call = _coded(
        x=x.data_ptr(),
        x_stride=size * x.stride(0),
        **words,
        added=0 if added is None else added.data_ptr(),
        added_stride=0 if added is None or added.shape[0] == 1 else size * added.stride(0),
        out=out.data_ptr(),
        out_stride=size * outputs,
        rows=rows,
        outputs=outputs,
        widened=widened.data_ptr(),
        widened_stride=FLOAT_BYTES * (columns + PADDING),
        widened_per_thread=per_thread,
        values=values.data_ptr(),
        values_stride=FLOAT_BYTES * (columns + PADDING),
        parts=1,
    )
    ops._run(ops.CODED, x.dtype, rows * inputs * outputs, call)
    return out


def look_up(tokens: Tensor, table: Tensor | Coded, dtype: torch.dtype) -> Tensor:
    """Return the rows ``tokens`` [W] of a table [V', H], of one in codes their values in float32, rounded: [W, H]."""
    if isinstance(table, Tensor):
        return functional.embedding(tokens, table)
    assert (table.form.code, table.form.group, table.zeros) == ("int8", None, None), "embeddings have no other codes"
    if not ops.is_cpu(tokens):
        looked_up: Tensor = ops.on_gpu("tables").look_up(tokens, table.codes, table.scales, dtype)
        return looked_up
    values = table.codes.index_select(0, tokens).float().sub_(INT8_ZERO)
    return values.mul_(table.scales.index_select(0, tokens).float()).to(dtype)


def grouped(x: Tensor, index: Tensor | None, weights: Tensor | Coded, ends: Tensor) -> Tensor:
    """Return rows ``index`` [R] of ``x``, or all of them, each times its group's weight, on a CPU (``ops.grouped``)."""
    if isinstance(weights, Tensor):
        return ops.grouped(x, index, weights, ends)
    return _grouped_codes(x if index is None else x.index_select(0, index), weights, ends)


def _grouped_codes(x: Tensor, weights: Coded, ends: Tensor) -> Tensor:
    """Return each row of ``x`` times the quantized weight of its group; the numbers of rows are read by the host."""
    out, first = x.new_empty(x.shape[0], weights.shape[1]), 0
    for number, last in enumerate(ends.tolist()):
        if last > first:
            out[first:last] = coded(x[first:last], weights.expert(number))
        first = last
    return out
