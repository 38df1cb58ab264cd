"""Whole layers as one kernel: a team of threads is started once, and its threads wait for each other in between.

    norm ── qkv ┆ rotate, write to the cache ┆ attend ┆ o + residual ┆ norm ── gate, up, product ┆ down + residual

At each ┆ all threads wait. A norm of few rows is computed by every thread for itself, so that none waits for it; of
many rows each thread computes some, and all wait. Threads divide rows, items of attention, or outputs of a product; of
gate and up a thread has the same channels. Each step has the bits of its own kernel. Products with weights in codes are
the kernel ``coded``, which every thread calls, and attention to a cache of 8 bits is ``attend_int8`` or
``attend_float8``.
"""

from typing import Any

import numpy as np
from numba.core import types

from runtime.model.kernels.arguments import Attend, CodedProduct, Codes, Forward, Layer, Product
from runtime.model.kernels.attention import attend_all, rotate_and_write
from runtime.model.kernels.elements import arguments_at, arguments_of, itemsize, run_kernel
from runtime.model.kernels.multiply import multiply
from runtime.model.kernels.multiply_panels import multiply_panels, pack_strips, panels_apply
from runtime.model.kernels.products import arrange
from runtime.model.kernels.rowwise import gate_row, norm_row
from runtime.model.kernels.subroutines import subroutine
from runtime.model.kernels.team import barrier, thread, threads

layer_arguments, layer_at, codes_at = arguments_of(Layer), arguments_at(Layer), arguments_at(Codes)
forward_arguments = arguments_at(Forward)


def layer(data: Any) -> None:
    """Run a layer, or one of its halves, and those that follow it; arguments: ``Layer``."""
    a = layer_arguments(data)
    me, team = np.int64(thread()), np.int64(threads())
    _layer(data, a, me, team)
    while a.following:
        barrier()
        a = layer_at(a.following)
        _layer(data, a, me, team)


@subroutine(apart=True)
def _layer(data: Any, a: Any, me: Any, team: Any) -> None:
    """Run a layer, or one of its halves."""
    f = forward_arguments(a.forward)
    if a.attends:
        x = f.x
        if a.attention_norm:
            x = _normed(data, f, f.hidden, a.attention_norm, a.attention_epsilon, me, team)
        heads = a.query_heads + 2 * a.kv_heads
        outputs, qkv = heads * a.head_dim, (a.qkv, a.qkv_stride, a.qkv_codes)
        _product(data, f, x, a.inputs, qkv, a.qkv_bias, 0, f.inner, outputs, 1, me, team)
        barrier()
        if a.q_norm:
            _norm_heads(data, a, f, me, team)
        attending = _attending(a, f, itemsize(data))
        if f.attend_8_bits:
            run_kernel(data, f.attend_8_bits, attending)
        else:
            rotate_and_write(data, data, attending, me, team)
            barrier()
            attend_all(data, data, attending, me, team)
        barrier()
        inputs, residual = a.query_heads * a.head_dim, f.hidden if f.adds else np.int64(0)
        stride, o = f.hidden_size * itemsize(data), (a.o, a.o_stride, a.o_codes)
        _product(data, f, attending.out, inputs, o, residual, stride, f.between, f.hidden_size, 1, me, team)
    if a.attends and a.feeds:
        barrier()
    if a.feeds:
        x = _normed(data, f, f.between, a.mlp_norm, a.mlp_epsilon, me, team)
        _gate_up(data, a, f, x, me, team)
        barrier()
        residual, stride = f.between if f.adds else np.int64(0), f.hidden_size * itemsize(data)
        x, down = f.inner + f.rows * 2 * a.channels * itemsize(data), (a.down, a.down_stride, a.down_codes)
        _product(data, f, x, a.channels, down, residual, stride, f.hidden, f.hidden_size, 1, me, team)


@subroutine(types.int64, apart=True)
def _normed(data: Any, f: Any, x: Any, weight: Any, epsilon: Any, me: Any, team: Any) -> Any:
    """Compute the norm of the hidden states ``x``; return the address of the result that this thread may read."""
    stride = f.hidden_size * itemsize(data)
    if f.normed_per_thread:
        out = f.normed + me * f.rows * stride
        for row in range(f.rows):
            norm_row(data, x + row * stride, weight, epsilon, out + row * stride, f.hidden_size)
        return out
    for row in range(me, f.rows, team):
        norm_row(data, x + row * stride, weight, epsilon, f.normed + row * stride, f.hidden_size)
    barrier()
    return f.normed


@subroutine()
def _norm_heads(data: Any, a: Any, f: Any, me: Any, team: Any) -> None:
    """Norm each query and key of this thread's rows in place."""
    head = a.head_dim * itemsize(data)
    for row in range(me, f.rows, team):
        start = f.inner + row * (a.query_heads + 2 * a.kv_heads) * head
        for number in range(a.query_heads + a.kv_heads):
            weight, place = a.q_norm if number < a.query_heads else a.k_norm, start + number * head
            norm_row(data, place, weight, a.head_epsilon, place, a.head_dim)


@subroutine(apart=True)
def _product(
    data: Any, f: Any, x: Any, inputs: Any, weight: Any, added: Any, added_stride: Any, out: Any, outputs: Any,
    parts: Any, me: Any, team: Any,
) -> None:  # fmt: skip
    """Compute this thread's outputs of a product of ``x`` [W, inputs]; all threads have written x.

    ``weight``: its address, stride and ``Codes``. Of each of ``parts`` equal parts of the outputs a thread has the same
    range.
    """
    x_stride, out_stride, of_part = inputs * itemsize(data), outputs * itemsize(data), outputs // parts
    start, weight_stride, codes = weight
    if codes:
        c = codes_at(codes)
        product = CodedProduct(
            x=x, x_stride=x_stride, code=c.code, codes=c.codes, codes_stride=c.codes_stride, scale=c.scale,
            scales=c.scales, scales_stride=c.scales_stride, zeros=c.zeros, zeros_stride=c.zeros_stride, group=c.group,
            order=c.order, added=added, added_stride=added_stride, out=out, out_stride=out_stride, rows=f.rows,
            inputs=c.inputs, outputs=outputs, parts=parts, widened=f.widened, widened_stride=f.widened_stride,
            widened_per_thread=0, values=f.values, values_stride=f.values_stride,
        )  # fmt: skip
        run_kernel(data, f.coded, product)
    else:
        in_panels = f.widened != 0 and panels_apply(data, f.rows, inputs, of_part // team)
        if in_panels:
            pack_strips(data, x, x_stride, f.widened, f.widened_stride, inputs, me, f.rows, team)
            barrier()
            x, x_stride = f.widened, f.widened_stride
        elif f.widened and f.widened_per_thread:
            own = f.widened + me * f.rows * f.widened_stride
            arrange(data, data, x, x_stride, own, f.widened_stride, inputs, 0, f.rows, 1)
            x, x_stride = own, f.widened_stride
        elif f.widened:
            arrange(data, data, x, x_stride, f.widened, f.widened_stride, inputs, me, f.rows, team)
            barrier()
            x, x_stride = f.widened, f.widened_stride
        a = _as_product(f, inputs, start, weight_stride, added, added_stride, out, out_stride, outputs)
        for part in range(parts):
            first, last = part * of_part + of_part * me // team, part * of_part + of_part * (me + 1) // team
            if in_panels:
                multiply_panels(data, a, x, x_stride, first, last)
            else:
                multiply(data, a, x, x_stride, first, last)


@subroutine(apart=True)
def _gate_up(data: Any, a: Any, f: Any, x: Any, me: Any, team: Any) -> None:
    """Compute gate and up of this thread's channels, and silu(gate) * up."""
    size, m, weight = itemsize(data), a.channels, (a.gate_up, a.gate_up_stride, a.gate_up_codes)
    _product(data, f, x, f.hidden_size, weight, 0, 0, f.inner, 2 * m, 2, me, team)
    first, last = m * me // team, m * (me + 1) // team
    for row in range(f.rows):
        gates = f.inner + (row * 2 * m + first) * size
        gate_row(data, gates, gates + m * size, f.inner + ((2 * f.rows + row) * m + first) * size, last - first)


@subroutine(types.NamedUniTuple(types.int64, len(Product._fields), Product))
def _as_product(
    f: Any, inputs: Any, weight: Any, weight_stride: Any, added: Any, added_stride: Any, out: Any, out_stride: Any,
    outputs: Any,
) -> Any:  # fmt: skip
    return Product(
        x=0, x_stride=0, weight=weight, weight_stride=weight_stride, added=added, added_stride=added_stride, out=out,
        out_stride=out_stride, rows=f.rows, inputs=inputs, outputs=outputs, widened=0, widened_stride=0,
        widened_per_thread=0,
    )  # fmt: skip


@subroutine(types.NamedUniTuple(types.int64, len(Attend._fields), Attend))
def _attending(a: Any, f: Any, size: Any) -> Any:
    attended = f.inner + f.rows * (a.query_heads + 2 * a.kv_heads) * a.head_dim * size
    own_rows = a.cache + f.first_sequence * a.sequence_stride
    return Attend(
        qkv=f.inner, cosines=f.cosines, sines_offset=f.sines_offset, rows=f.rows, rows_per_sequence=f.rows_per_sequence,
        query_heads=a.query_heads, kv_heads=a.kv_heads, head_dim=a.head_dim,
        seen=own_rows + f.first_seen * a.row_stride, sequence_stride=a.sequence_stride, row_stride=a.row_stride,
        all_rows=a.cache, written_index=f.written_index,
        written=own_rows + f.first_written * a.row_stride, columns=f.columns, tree_columns=f.tree_columns,
        oldest=f.oldest, positions=f.positions, ring=f.ring, bias=f.bias, bias_sequence_stride=f.bias_sequence_stride,
        bias_row_stride=f.bias_row_stride, out=attended, scratch=f.scratch,
        factors=a.factors, sinks=a.sinks,
    )  # fmt: skip
