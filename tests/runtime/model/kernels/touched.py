"""The bytes that each kernel reads and writes, from its arguments alone, and a run of kernels that compares them.

A kernel works on addresses, so neither torch nor Numba checks an index of it. ``touched`` is a second account of what
it accesses, row by row of the loops in ``runtime.model.kernels``; ``checked_run`` takes the place of ``ops._run`` and
``checked_run_layer`` of ``ops._run_layer``, and asserts that each access is within the tensor that its address was
taken from, before the kernel runs.

The numbers of a plan that the sizes come from, and what bounds them:

    rows, rows_per_sequence          batch, prefill_chunk, tree               plans.check_inputs
    inputs, outputs, channels        hidden size, heads, head_dim, channels,  plans.check_inputs; the slots of an image
                                     vocabulary, by the slots of an image     are the plan's: runtime.image.verify
    query_heads, kv_heads, head_dim  kv_heads of a run, kv_subgroups          plans.check; one attention in all layers
    seen, columns, tree_columns      context, tree, kv_axis                   plans.buffers makes T rows, KvCache has T
    written_index                    lengths of sequences, at most context    runtime.request; KvCache.append: below T
    row_index, ends, groups          num_experts, experts_per_token           plans.check_inputs; router [E, H]
    top_k, columns                   tree.top_k, draft_vocab_size             plans.check_inputs: top_k <= columns
    epsilon                          norm_eps                                 plans.check_inputs: below 2^63 units

Tokens index the embedding in torch, which checks them: prompts by runtime.request, drafted ones by ``d2t`` (verify).
"""

import ctypes
import struct
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from plans.dtypes import cached_width
from runtime.model import ops
from runtime.model.kernels.arguments import (
    CODED_ROWS,
    MANY_ROWS,
    STRIP_ROWS,
    Attend,
    CodedProduct,
    Codes,
    Forward,
    Gated,
    GroupedProduct,
    Highest,
    Layer,
    Merged,
    Norm,
    Product,
    Top,
    attend_floats,
)
from runtime.model.kernels.elements import LANES
from runtime.model.weights import Coded

Access = tuple[str, int, int]
"""Name of the tensor in ``ops``, first byte, and the byte behind the last."""


def rows(name: str, start: int, stride: int, count: int, nbytes: int) -> Iterator[Access]:
    """Yield the accesses of the first and the last of ``count`` rows: those between lie between them."""
    assert stride >= 0
    assert count >= 0
    if count and nbytes:
        yield name, start, start + nbytes
        yield name, start + (count - 1) * stride, start + (count - 1) * stride + nbytes


def words(address: int, count: int) -> list[int]:
    """Return int64 words in memory."""
    return list((ctypes.c_int64 * count).from_address(address))


def packed(start: int, count: int, inputs: int) -> Iterator[Access]:
    """Yield the accesses to rows of x that are packed for tiles: pairs of elements, without a gap."""
    yield "widened", start, start + count * -(-inputs // 32) * 64


def packed_rows(count: int, size: int) -> int:
    """Return the rows of scratch for many rows: whole strips, where products are with panels."""
    return -(-count // STRIP_ROWS) * STRIP_ROWS if (LANES == 8 or size == 4) and count >= MANY_ROWS else count


def product(a: Product, size: int, threads: int) -> Iterator[Access]:
    yield from rows("x", a.x, a.x_stride, a.rows, a.inputs * size)
    yield from rows("weight", a.weight, a.weight_stride, a.outputs, a.inputs * size)
    yield from rows("out", a.out, a.out_stride, a.rows, a.outputs * size)
    if a.added:
        yield from rows("added", a.added, a.added_stride, a.rows, a.outputs * size)
    if a.widened:
        count = threads * a.rows if a.widened_per_thread else packed_rows(a.rows, size)
        yield from rows("widened", a.widened, a.widened_stride, count, a.inputs * 4)
        yield from packed(a.widened + (count - a.rows) * a.widened_stride, a.rows, a.inputs)


def coded(a: CodedProduct, size: int, threads: int) -> Iterator[Access]:
    read = a.inputs
    if a.order:
        order = list((ctypes.c_int32 * a.inputs).from_address(a.order))
        yield "order", a.order, a.order + 4 * a.inputs
        assert min(order) >= -1
        read = max(order) + 1
    yield from rows("x", a.x, a.x_stride, a.rows, read * size)
    yield from in_codes("", a, a.outputs, a.inputs, a.values_stride)
    yield from rows("out", a.out, a.out_stride, a.rows, a.outputs * size)
    if a.added:
        yield from rows("added", a.added, a.added_stride, a.rows, a.outputs * size)
    blocks = -(-a.inputs // 32)
    count = threads * a.rows if a.widened_per_thread else a.rows
    yield from rows("widened", a.widened, a.widened_stride, count, (blocks * 32 + -(-blocks // LANES) * LANES) * 4)
    yield from rows("values", a.values, a.values_stride, threads * CODED_ROWS, blocks * 32 * 4)


def in_codes(prefix: str, a: CodedProduct | Codes, outputs: int, inputs: int, values_stride: int) -> Iterator[Access]:
    """Yield the accesses to a weight in codes; ``values_stride``: of the scratch of ``CodedProduct``."""
    half, groups = a.code in (0, 3), -(-inputs // a.group)
    assert a.group % 32 == 0 or a.group == inputs
    assert not half or inputs % 32 == 0
    yield from rows(f"{prefix}codes", a.codes, a.codes_stride, outputs, inputs // 2 if half else inputs)
    yield from rows(f"{prefix}scales", a.scales, a.scales_stride, outputs, groups * (2, 2, 4, 1)[a.scale])
    if a.zeros:
        yield from rows(f"{prefix}zeros", a.zeros, a.zeros_stride, outputs, groups)
    # of 16 rows, or of four behind four rows of numbers: scales, zero points, and scratch for one of these
    factors = 1 if groups == 1 and not a.zeros and a.code != 0 else -(-inputs // 32)
    assert (3 * 16 * factors + 2 * LANES) * 4 <= CODED_ROWS * values_stride
    assert (3 * 4 * factors + 2 * LANES) * 4 <= values_stride


def grouped(a: GroupedProduct, size: int, threads: int) -> Iterator[Access]:
    yield from rows("ends", a.ends, 8, a.groups, 8)
    ends = words(a.ends, a.groups)
    assert ends == sorted(ends)
    assert ends[0] >= 0
    assert ends[-1] == a.rows
    index = words(a.row_index, a.rows) if a.row_index else list(range(a.rows))
    if a.row_index:
        yield from rows("index", a.row_index, 8, a.rows, 8)
    for row in index:
        yield "x", a.x + row * a.x_stride, a.x + row * a.x_stride + a.inputs * size
    for group in range(a.groups):
        yield from rows("weights", a.weights + group * a.group_stride, a.weight_stride, a.outputs, a.inputs * size)
    yield from rows("out", a.out, a.out_stride, a.rows, a.outputs * size)
    if a.widened:
        yield from rows("widened", a.widened, a.widened_stride, a.rows, a.inputs * 4)
        for begin, end in pairwise([0, *ends]):
            yield from packed(a.widened + begin * a.widened_stride, end - begin, a.inputs)


def norm(a: Norm, size: int, threads: int) -> Iterator[Access]:
    yield from rows("x", a.x, a.x_stride, a.rows, a.inputs * size)
    yield from rows("weight", a.weight, 0, 1, a.inputs * size)
    yield from rows("out", a.out, a.out_stride, a.rows, a.inputs * size)
    assert 0 <= a.epsilon < 1 << 63


def gated(a: Gated, size: int, threads: int) -> Iterator[Access]:
    yield from rows("both", a.x, a.x_stride, a.rows, 2 * a.channels * size)
    yield from rows("out", a.out, a.out_stride, a.rows, a.channels * size)


def top(a: Top, size: int, threads: int) -> Iterator[Access]:
    yield from rows("logits", a.logits, a.logits_stride, a.rows, a.columns * size)
    yield from rows("best", a.best, 8 * a.top_k, a.rows, 8 * a.top_k)
    yield from rows("scores", a.scores, 4 * a.top_k, a.rows, 4 * a.top_k)
    if a.words:
        yield from rows("words", a.words, 8 * (2 * a.width + 2), a.rows, 8 * (2 * a.width + 2))
    assert a.top_k >= 1
    assert not a.words or a.width >= a.top_k


def highest(a: Highest, size: int, threads: int) -> Iterator[Access]:
    yield from rows("logits", a.logits, a.logits_stride, a.rows, a.columns * size)
    yield from rows("tokens", a.tokens, 8, a.rows, 8)
    if a.words:
        yield from rows("words", a.words, 16, a.rows, 16)
    assert a.columns >= 1


def merged(a: Merged, size: int, threads: int) -> Iterator[Access]:
    message = 8 * (2 * a.top_k + 2)
    yield from rows("gathered", a.gathered, message, a.members * a.rows, message)
    yield from rows("best", a.best, 8 * a.top_k, a.rows, 8 * a.top_k)
    yield from rows("scores", a.scores, 4 * a.top_k, a.rows, 4 * a.top_k)
    assert a.top_k >= 1


def attend(a: Attend, size: int, threads: int, *, kept: str | None = None) -> Iterator[Access]:
    head = a.head_dim * size
    cache_row = 2 * a.kv_heads * (cached_width(kept, a.head_dim) if kept else head)
    assert a.kv_heads >= 1
    assert a.query_heads % a.kv_heads == 0
    assert a.rows % a.rows_per_sequence == 0
    sequences = a.rows // a.rows_per_sequence
    all_heads = (a.query_heads + 2 * a.kv_heads) * head
    yield from rows("qkv", a.qkv, all_heads, a.rows, all_heads)
    for start in (a.cosines, a.cosines + a.sines_offset):
        yield from rows("rotary", start, head, a.rows, head)
    for sequence in range(sequences):
        seen = a.seen + sequence * a.sequence_stride
        yield from rows("cache", seen, a.row_stride, a.columns, cache_row)
        if not a.written_index:
            written = a.written + sequence * a.sequence_stride
            yield from rows("cache", written, a.row_stride, a.rows_per_sequence, cache_row)
        bias = a.bias + sequence * a.bias_sequence_stride
        yield from rows("bias", bias, a.bias_row_stride, a.rows_per_sequence, a.columns * size)
    if a.written_index:
        yield from rows("written", a.written_index, 8, a.rows, 8)
        for row in words(a.written_index, a.rows):
            yield "cache", a.all_rows + row * a.row_stride, a.all_rows + row * a.row_stride + cache_row
    assert 0 <= a.tree_columns <= a.columns
    if a.oldest:
        yield from rows("oldest", a.oldest, 8, sequences, 8)
        assert all(column >= a.tree_columns for column in words(a.oldest, sequences))
        assert a.ring or not a.tree_columns
    if a.positions:
        yield from rows("positions", a.positions, 8, a.rows, 8)
    yield from rows("out", a.out, a.query_heads * head, a.rows, a.query_heads * head)
    if a.sinks:
        yield "sinks", a.sinks, a.sinks + a.query_heads * size
    if a.factors:
        yield "factors", a.factors, a.factors + 8
    yield from rows("scratch", a.scratch, 0, 1, threads * attend_floats(a.head_dim, a.columns) * 4)


def kept_in(address: int, size: int) -> str | None:
    """Return the dtype of the caches that the kernel at an address attends to; None: that of activations."""
    for kept in ops.ATTEND_8_BITS if address else ():
        dtypes = (torch.float32,) if size == 4 else (torch.bfloat16, torch.float16)
        if any(ops.attend_8_bits_address(dtype, kept) == address for dtype in dtypes):
            return str(kept).removeprefix("torch.")
    return None


def layer(a: Layer, size: int, threads: int) -> Iterator[Access]:
    """Yield the accesses of a layer, by the names of ``WholeLayers.operands``."""
    f = Forward(*words(a.forward, len(Forward._fields)))
    width, heads, d = f.hidden_size * size, a.query_heads + 2 * a.kv_heads, a.head_dim
    for name, start in (("hidden", f.hidden), ("between", f.between)):
        yield from rows(name, start, width, f.rows, width)
    yield from rows("normed", f.normed, width, f.rows * (threads if f.normed_per_thread else 1), width)
    inputs = [f.hidden_size]
    if a.attends:
        assert (a.q_norm == 0) == (a.k_norm == 0)
        inputs += [a.query_heads * d]
        if a.attention_norm:
            assert a.inputs == f.hidden_size
            yield "attention_norm", a.attention_norm, a.attention_norm + width
        else:
            inputs += [a.inputs]
            yield from rows("x", f.x, a.inputs * size, f.rows, a.inputs * size)
        yield from matrix("qkv", f, (a.qkv, a.qkv_stride, a.qkv_codes), heads * d, a.inputs, size)
        yield from matrix("o", f, (a.o, a.o_stride, a.o_codes), f.hidden_size, a.query_heads * d, size)
        if a.qkv_bias:
            yield "qkv_bias", a.qkv_bias, a.qkv_bias + heads * d * size
        for name, start in (("q_norm", a.q_norm), ("k_norm", a.k_norm)):
            if start:
                yield name, start, start + d * size
        own_rows = a.cache + f.first_sequence * a.sequence_stride
        attending = Attend(
            qkv=f.inner, cosines=f.cosines, sines_offset=f.sines_offset, rows=f.rows,
            rows_per_sequence=f.rows_per_sequence, query_heads=a.query_heads, kv_heads=a.kv_heads, head_dim=d,
            seen=own_rows + f.first_seen * a.row_stride, sequence_stride=a.sequence_stride, row_stride=a.row_stride,
            all_rows=a.cache, written_index=f.written_index, written=own_rows + f.first_written * a.row_stride,
            columns=f.columns, tree_columns=f.tree_columns,
            oldest=f.oldest, positions=f.positions, ring=f.ring,
            bias=f.bias, bias_sequence_stride=f.bias_sequence_stride,
            bias_row_stride=f.bias_row_stride, out=f.inner + f.rows * heads * d * size, scratch=f.scratch,
            factors=a.factors, sinks=a.sinks,
        )  # fmt: skip
        own = {"qkv": "inner", "out": "inner", "written": "written_index", "scratch": "scores"}
        for name, start, stop in attend(attending, size, threads, kept=kept_in(f.attend_8_bits, size)):
            yield own.get(name, name), start, stop
    if a.feeds:
        inputs += [a.channels]
        yield "mlp_norm", a.mlp_norm, a.mlp_norm + width
        gate_up = (a.gate_up, a.gate_up_stride, a.gate_up_codes)
        yield from matrix("gate_up", f, gate_up, 2 * a.channels, f.hidden_size, size)
        yield from matrix("down", f, (a.down, a.down_stride, a.down_codes), f.hidden_size, a.channels, size)
        yield from rows("inner", f.inner, 3 * a.channels * size, f.rows, 3 * a.channels * size)
    if f.widened:
        count = threads * f.rows if f.widened_per_thread else packed_rows(f.rows, size)
        yield from rows("widened", f.widened, f.widened_stride, count, max(inputs) * 4)
        yield from packed(f.widened + (count - f.rows) * f.widened_stride, f.rows, max(inputs))
    codes = (a.qkv_codes, a.o_codes) if a.attends else ()
    codes += (a.gate_up_codes, a.down_codes) if a.feeds else ()
    for blocks in [-(-in_words(matrix_codes).inputs // 32) for matrix_codes in codes if matrix_codes]:
        yield from rows("widened", f.widened, f.widened_stride, f.rows, (blocks * 32 + -(-blocks // LANES) * LANES) * 4)
        yield from rows("values", f.values, f.values_stride, threads * CODED_ROWS, blocks * 32 * 4)


def matrix(
    name: str, f: Forward, weight: tuple[int, int, int], outputs: int, inputs: int, size: int
) -> Iterator[Access]:
    """Yield the accesses of a layer to a weight: its address and stride, or the address of its ``Codes``."""
    start, stride, codes = weight
    if codes:
        assert (start, stride) == (0, 0)
        assert f.values
        c = in_words(codes)
        assert c.inputs == inputs or c.order
        if c.order:
            order = list((ctypes.c_int32 * c.inputs).from_address(c.order))
            yield f"{name}.order", c.order, c.order + 4 * c.inputs
            assert min(order) >= -1
            assert max(order) < inputs
        yield from in_codes(f"{name}.", c, outputs, c.inputs, f.values_stride)
    else:
        yield from rows(name, start, stride, outputs, inputs * size)


def in_words(address: int) -> Codes:
    return Codes(*words(address, len(Codes._fields)))


TOUCHED: dict[type, Callable[[Any, int, int], Iterator[Access]]] = {
    CodedProduct: coded,
    Product: product,
    GroupedProduct: grouped,
    Norm: norm,
    Gated: gated,
    Highest: highest,
    Top: top,
    Merged: merged,
    Attend: attend,
    Layer: layer,
}


def touched(call: Any, dtype: torch.dtype, kernel: str = "") -> Iterator[Access]:
    """Yield all accesses of a kernel called with these arguments, of elements of ``dtype``."""
    kept = {name: str(kind).removeprefix("torch.") for kind, name in ops.ATTEND_8_BITS.items()}.get(kernel)
    if kept:
        yield from attend(call, dtype.itemsize, torch.get_num_threads(), kept=kept)
    else:
        yield from TOUCHED[type(call)](call, dtype.itemsize, torch.get_num_threads())


def extent(tensor: Tensor) -> tuple[int, int]:
    """Return the first byte of a tensor, and the byte behind its last: of a view those of the view alone."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return start, start + (last + 1) * tensor.itemsize if tensor.numel() else start


_run, _run_layer = ops._run, ops._run_layer


def checked_run(kernel: Any, dtype: torch.dtype, work: int, call: Any) -> None:
    """Run a kernel as ``ops._run`` does; assert first that it touches nothing but its operands.

    Called by a function of ``ops`` or ``weights``, whose local variables are the operands, or have them.
    """
    operands = dict(sys._getframe(1).f_locals)
    if isinstance(weight := operands.get("weight"), Coded):
        operands |= {"codes": weight.codes, "scales": weight.scales, "zeros": weight.zeros, "order": weight.order}
    _check(call, dtype, operands, kernel)
    _run(kernel, dtype, work, call)


def checked_run_layer(dtype: torch.dtype, work: int, packed: bytes) -> None:
    """Run layers as ``ops._run_layer`` does; assert first that they touch nothing but their operands.

    Called by ``WholeLayers.run`` and ``run_more``, whose scratch has the parts that the layers are given.
    """
    caller, count = sys._getframe(1).f_locals, len(Layer._fields)
    number, call = caller["number"], Layer(*struct.unpack(f"{count}q", packed))
    _check(call, dtype, caller["self"].operands(number))
    while call.following:
        number, call = number + 1, Layer(*words(call.following, count))
        _check(call, dtype, caller["self"].operands(number))
    _run_layer(dtype, work, packed)


def _check(call: Any, dtype: torch.dtype, operands: dict[str, Tensor], kernel: str = "") -> None:
    for name, start, stop in touched(call, dtype, kernel):
        first, end = extent(operands[name])
        assert first <= start, f"{type(call).__name__}: {name}: {first - start} bytes before it"
        assert stop <= end, f"{type(call).__name__}: {name}: {stop - end} bytes beyond it"
