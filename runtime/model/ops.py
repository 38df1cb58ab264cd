"""The operations of a layer, as the device does them: on a CPU ``kernels``, on a GPU ``triton_kernels`` and cuBLAS.

Letters as in ``layers``: W rows, H hidden size, t rows of the KV cache that a forward looks at, D head dim, h query
heads, k KV heads, g = h / k query heads of a KV head, m MLP channels. Which one runs follows from the device alone, and
on a CPU from the dtype of the KV cache; nothing is tried and nothing falls back. Triton is imported when an operation
first runs on a GPU: torch brings it there.

A CPU kernel reads and writes by addresses. Here the sizes from which it computes them are those of its operands, or are
asserted to agree with them; tests/runtime/model/kernels/touched.py has the bytes that each kernel touches.
"""

import ctypes
import resource
import struct
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from plans.schema import Activation
from runtime.errors import MachineError
from runtime.model.kernels import code
from runtime.model.kernels.arguments import (
    EPSILON_UNIT,
    LEAST_STACK_BYTES,
    MANY_ROWS,
    STRIP_ROWS,
    Attend,
    Gated,
    GroupedProduct,
    Highest,
    Merged,
    Norm,
    Product,
    Top,
    attend_floats,
)
from runtime.model.kernels.processor import multiplies_pairs, multiplies_panels, multiplies_tiles
from runtime.model.kv_codes import stored_dims
from runtime.model.mask import Mask

PARALLEL_WORK = 1 << 16
"""Multiply-adds below which an operation runs on one thread: starting a team of threads would take longer."""
WIDENED_ROWS = 16
"""Most rows, over all threads, that each thread widens for itself, so that it waits for no other. Where a plan's
forward has fewer rows, this scratch is part of the device's reserve."""
FLOAT_BYTES = 4
"""Bytes of a float32."""
PADDING = 16
"""Values between widened rows: rows that lie a power of two apart share a few lines of the processor's cache. Packed
rows, of 2 bytes an element, are up to 31 elements longer than x, and fit in too."""
PRODUCT = "product"
"""Kernel of products with plain weights."""
EXCHANGE = "exchange"
"""Kernel of messages through shared memory, which only ranks that share some need."""
CODED = "coded"
"""Kernel of products with quantized weights."""
ATTEND_8_BITS = {torch.int8: "attend_int8", torch.float8_e4m3fn: "attend_float8"}
"""Kernels of attention to a KV cache of 8 bits, by its dtype."""
# a named tuple's __new__ takes fields by name in half of the time that its class does, which makes a dict of them first
_product, _grouped = partial(Product.__new__, Product), partial(GroupedProduct.__new__, GroupedProduct)
_norm, _gated = partial(Norm.__new__, Norm), partial(Gated.__new__, Gated)
_highest, _top = partial(Highest.__new__, Highest), partial(Top.__new__, Top)
_merged, _attend = partial(Merged.__new__, Merged), partial(Attend.__new__, Attend)

KERNELS = "preparing the CPU kernels"
"""Phase in which kernels are loaded, or compiled where they are not in the cache."""


def prepare(
    dtype: torch.dtype, *, codes: bool, kv_dtype: str | None = None, report: Callable[[str], object] | None = None
) -> None:
    """Compile the kernels of layers for a dtype, or load those that were compiled before; raise MachineError.

    ``codes``: that too which only models with quantized weights need. ``kv_dtype``: of the KV cache; None: ``dtype``.
    ``report``: called with a phase before each kernel that is compiled.
    """
    stack_bytes, _ = resource.getrlimit(resource.RLIMIT_STACK)
    if 0 <= stack_bytes < LEAST_STACK_BYTES:  # unlimited is negative
        raise MachineError(
            f"stack of a thread: found {stack_bytes >> 10} KiB, expected at least {LEAST_STACK_BYTES >> 10}: "
            f"ulimit -s {LEAST_STACK_BYTES >> 10}"
        )
    others = {kernel for kept, kernel in ATTEND_8_BITS.items() if str(kept) != f"torch.{kv_dtype}"}
    left = {EXCHANGE} | ({CODED} if not codes else set()) | others
    kernels = [kernel for kernel in code.KERNELS if kernel not in left]
    missing = [kernel for kernel in kernels if not code.is_kept(kernel, dtype)]
    for kernel in kernels:
        if kernel in missing and report is not None:
            number = missing.index(kernel) + 1
            report(f"{KERNELS} (compiling {number} of {len(missing)}, once for this processor and dtype)")
        _prepare(kernel, dtype)


def prepare_products(dtype: torch.dtype) -> None:
    """Compile the kernel of products with plain weights for a dtype, or load it."""
    _prepare(PRODUCT, dtype)


def prepare_exchange(dtype: torch.dtype) -> None:
    """Compile the exchange through shared memory, or load it: for a dtype, partial results, and weights of a draw."""
    for reduced in {dtype, torch.float32, torch.float64}:
        _prepare(EXCHANGE, reduced)


def exchange(dtype: torch.dtype) -> Callable[[bytes], None]:
    """Return the compiled exchange through shared memory, whose sums are of this dtype; it takes a packed `Exchange`.

    The interpreter's lock is free while it runs.
    """
    return _entry(EXCHANGE, dtype)[1]


def _prepare(kernel: str, dtype: torch.dtype) -> None:
    try:
        _entry(kernel, dtype)
    except OSError as error:
        raise MachineError(
            f"the CPU kernels cannot be kept: {error}: set NUMBA_CACHE_DIR to a directory that can be written"
        ) from error
    except AttributeError as error:
        raise MachineError(f"the CPU kernels want libgomp, which torch brings on Linux: {error}") from error


def is_cpu(x: Tensor) -> bool:
    """Return True for a tensor of a CPU, whose operations are those of ``kernels``; a GPU's are Triton's, cuBLAS's."""
    return x.is_cpu


@cache
def on_gpu(module: str) -> Any:
    """Return a module of ``triton_kernels``."""
    return import_module(f"runtime.model.triton_kernels.{module}")


def counters(device: torch.device) -> Tensor:
    """Return the counters of a product with codes on a GPU (``weights.Coded``)."""
    return torch.zeros(on_gpu("products").COUNTERS, dtype=torch.int32, device=device)


def widens(dtype: torch.dtype, rows: int = 0) -> bool:
    """Return True where products do not read their input as it is: halves that the processor does not multiply become
    float32, and those of which it multiplies tiles are packed, as are many ``rows`` for panels."""
    if multiplies_panels(dtype) and rows >= MANY_ROWS:
        return True
    return dtype.itemsize < 4 and (multiplies_tiles(dtype) or not multiplies_pairs(dtype))


def packed_rows(rows: int, dtype: torch.dtype) -> int:
    """Return the rows of scratch for x: whole strips, where many rows are packed for panels."""
    return -(-rows // STRIP_ROWS) * STRIP_ROWS if multiplies_panels(dtype) and rows >= MANY_ROWS else rows


def widened_scratch(rows: int, inputs: int) -> tuple[Tensor, bool]:
    """Return scratch for x, float32 or packed, and True where each thread has its own: of few rows (WIDENED_ROWS)."""
    threads = torch.get_num_threads()
    per_thread = threads * rows <= WIDENED_ROWS
    return torch.empty(threads * rows if per_thread else rows, inputs + PADDING), per_thread


def product(x: Tensor, weight: Tensor, added: Tensor | None = None) -> Tensor:
    """Return ``x`` [W, in] @ ``weight`` [in, out] + ``added`` [W or 1, out]; ``weight`` is the transpose of a slot."""
    if not is_cpu(x):
        if added is None:
            return torch.mm(x, weight)
        # a vector is added by the product itself, and rows by a copy before it
        return torch.addmm(added[0] if added.shape[0] == 1 else added, x, weight)
    (rows, inputs), (weight_inputs, outputs), size = x.shape, weight.shape, x.itemsize
    assert weight_inputs == inputs
    assert added is None or (added.shape[1] == outputs and added.shape[0] in (1, rows))
    out = torch.empty(rows, outputs, dtype=x.dtype)
    scratch_rows = packed_rows(rows, x.dtype)
    widened, per_thread = widened_scratch(scratch_rows, inputs) if widens(x.dtype, rows) else (None, False)
    call = _product(
        x=x.data_ptr(),
        x_stride=size * x.stride(0),
        weight=weight.data_ptr(),
        weight_stride=size * weight.stride(1),
        added=0 if added is None else added.data_ptr(),
        added_stride=0 if added is None or added.shape[0] == 1 else size * added.stride(0),
        out=out.data_ptr(),
        out_stride=size * outputs,
        rows=rows,
        inputs=inputs,
        outputs=outputs,
        widened=0 if widened is None else widened.data_ptr(),
        widened_stride=FLOAT_BYTES * (inputs + PADDING),
        widened_per_thread=per_thread,
    )
    _run(PRODUCT, x.dtype, rows * inputs * outputs, call)
    return out


def product_onto(residual: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return ``residual`` [W, out] + ``x`` @ ``weight``; on a GPU in the residual's place: nothing is copied."""
    return product(x, weight, residual) if is_cpu(x) else residual.addmm_(x, weight)


def grouped(x: Tensor, index: Tensor | None, weights: Tensor, ends: Tensor) -> Tensor:
    """Return rows ``index`` [R] of ``x``, or all of them, each times its group's weight: [R, out], on a CPU.

    ``weights`` [G, out, in], one per group, are transposed in the product. Of the R rows, those from ends[g - 1] to
    ends[g] - 1 belong to group g, ``ends`` [G] int64. The weight of a group without rows is not read.
    """
    groups, outputs, inputs = weights.shape
    rows, size = x.shape[0] if index is None else index.shape[0], x.itemsize
    assert (x.shape[1], ends.shape[0]) == (inputs, groups)
    out = torch.empty(rows, outputs, dtype=x.dtype)
    widened = torch.empty(rows, inputs + PADDING) if widens(x.dtype) or index is not None else None
    call = _grouped(
        x=x.data_ptr(),
        x_stride=size * x.stride(0),
        row_index=0 if index is None else index.data_ptr(),
        weights=weights.data_ptr(),
        group_stride=size * weights.stride(0),
        weight_stride=size * weights.stride(1),
        ends=ends.data_ptr(),
        out=out.data_ptr(),
        out_stride=size * outputs,
        rows=rows,
        groups=groups,
        inputs=inputs,
        outputs=outputs,
        widened=0 if widened is None else widened.data_ptr(),
        widened_stride=FLOAT_BYTES * (inputs + PADDING),
    )
    _run("grouped", x.dtype, rows * inputs * outputs, call)
    return out


def norm(x: Tensor, weight: Tensor, eps: float, *, offset: bool = False) -> Tensor:
    """Return ``x`` [W, H] over its root mean square, times ``weight`` [H], or 1 + weight: ``offset``."""
    if not is_cpu(x):
        normed: Tensor = on_gpu("rowwise").norm(x, weight, eps, offset=offset)
        return normed
    if offset:
        return norm(x.float(), 1.0 + weight.float(), eps).to(x.dtype)
    (rows, inputs), size, out = x.shape, x.itemsize, torch.empty_like(x)
    assert weight.shape[0] == inputs
    call = _norm(
        x=x.data_ptr(),
        x_stride=size * x.stride(0),
        weight=weight.data_ptr(),
        epsilon=round(eps / EPSILON_UNIT),
        out=out.data_ptr(),
        out_stride=size * out.stride(0),
        rows=rows,
        inputs=inputs,
    )
    _run("norm", x.dtype, rows * inputs, call)
    return out


def norm_into(out: Tensor, x: Tensor, weight: Tensor, eps: float, *, offset: bool) -> None:
    """Fill ``out`` [W, H], whose rows may be apart, with ``norm`` on a GPU."""
    on_gpu("rowwise").norm(x, weight, eps, offset=offset, out=out)


def normed_onto(
    residual: Tensor, x: Tensor, weight: Tensor, eps: float, *, offset: bool = False, multiplier: float | None = None
) -> Tensor:
    """Return residual + multiplier * norm(x) [W, H] on a CPU; ``multiplier`` None: 1."""
    out = norm(x, weight, eps, offset=offset)
    return (out if multiplier is None else out.mul_(multiplier)).add_(residual)


RowNorm = tuple[Tensor, float, bool]
"""Weight [H] of a norm, eps, and whether the weight is an offset from 1."""


def add_in_place(
    residual: Tensor, x: Tensor, norm: RowNorm | None, multiplier: float | None, following: RowNorm | None
) -> Tensor | None:
    """Add ``multiplier`` * ``x`` [W, H], or of its norm, to ``residual`` on a GPU; return the sum's ``following`` norm.

    ``multiplier`` None: 1. ``following`` None: nothing is returned.
    """
    normed: Tensor | None = on_gpu("rowwise").add(
        residual, x, norm, 1.0 if multiplier is None else multiplier, following
    )
    return normed


def join(
    tokens: Tensor, table: Tensor, hidden: Tensor, parents: Tensor | None, norms: tuple[RowNorm, RowNorm] | None, *,
    keep: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return on a GPU [W, 2H]: rows ``tokens`` [W] of ``table`` [V, H] beside ``hidden`` [W, H], or its rows
    ``parents`` [W], each behind its norm; and with ``keep`` the latter before it.
    """
    both: tuple[Tensor, Tensor] = on_gpu("rowwise").join(tokens, table, hidden, parents, norms, keep=keep)
    return both


def gated(both: Tensor, activation: Activation = "silu") -> Tensor:
    """Return act(gate) * up [W, m], of ``both`` [W, 2m]: gates, then ups."""
    if not is_cpu(both):
        product_of_both: Tensor = on_gpu("rowwise").gated(both, activation)
        return product_of_both
    (rows, width), size = both.shape, both.itemsize
    out = torch.empty(rows, width // 2, dtype=both.dtype)
    call = _gated(
        x=both.data_ptr(),
        x_stride=size * both.stride(0),
        out=out.data_ptr(),
        out_stride=size * (width // 2),
        rows=rows,
        channels=width // 2,
        gelu=activation == "gelu_pytorch_tanh",
    )
    _run("gated", both.dtype, 4 * both.numel(), call)
    return out


def highest(logits: Tensor, words: Tensor | None = None, first: int = 0) -> Tensor:
    """Return on a CPU the column of the highest of each row of logits [W, V], of equal ones the first: [W].

    ``words`` float64 [W, 2] is filled with these logits, and their columns plus ``first``.
    """
    (rows, columns), size, tokens = logits.shape, logits.itemsize, torch.empty(logits.shape[0], dtype=torch.int64)
    assert columns > 0
    assert words is None or (words.shape == (rows, 2) and words.dtype == torch.float64 and words.is_contiguous())
    call = _highest(
        logits=logits.data_ptr(),
        logits_stride=size * logits.stride(0),
        tokens=tokens.data_ptr(),
        words=0 if words is None else words.data_ptr(),
        first=first,
        rows=rows,
        columns=columns,
    )
    _run("highest", logits.dtype, logits.numel(), call)
    return tokens


def top(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the ``count`` highest of each row of logits [W, V], best first: columns, and log-softmax in float32."""
    if not is_cpu(logits):
        highest: tuple[Tensor, Tensor] = on_gpu("top").top(logits, count)
        return highest
    return _run_top(logits, count, None, 0, 0)


def candidates(logits: Tensor, count: int, first: int) -> Tensor:
    """Return on a CPU a member's message [W, 2 * count + 2], as ``plans.step.CandidateLayout`` has it, of its logits.

    ``first``: token of the first column. Where there are fewer than ``count`` columns, the rest scores -inf.
    """
    words = torch.empty(logits.shape[0], 2 * count + 2, dtype=torch.float64)
    _run_top(logits, min(count, logits.shape[1]), words, count, first)
    return words


def _run_top(logits: Tensor, count: int, words: Tensor | None, width: int, first: int) -> tuple[Tensor, Tensor]:
    (rows, columns), size = logits.shape, logits.itemsize
    assert 0 < count <= columns
    best = torch.empty(rows, count, dtype=torch.int64)
    scores = torch.empty(rows, count, dtype=torch.float32)
    call = _top(
        logits=logits.data_ptr(),
        logits_stride=size * logits.stride(0),
        best=best.data_ptr(),
        scores=scores.data_ptr(),
        words=0 if words is None else words.data_ptr(),
        width=width,
        first=first,
        rows=rows,
        columns=columns,
        top_k=count,
    )
    _run("top", logits.dtype, 4 * logits.numel(), call)
    return best, scores


def merged(gathered: Tensor, count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the ``count`` best of all members' candidates [members, W, 2 * count + 2], best first, on a CPU.

    Tokens [W, count], and their log-softmax over all members in float32. ``dtype``: of the kernels that are loaded.
    """
    members, rows, words = gathered.shape
    assert (words, gathered.dtype) == (2 * count + 2, torch.float64)
    assert gathered.is_contiguous()
    best = torch.empty(rows, count, dtype=torch.int64)
    scores = torch.empty(rows, count, dtype=torch.float32)
    call = _merged(
        gathered=gathered.data_ptr(),
        members=members,
        best=best.data_ptr(),
        scores=scores.data_ptr(),
        rows=rows,
        top_k=count,
    )
    _run("merged", dtype, gathered.numel(), call)
    return best, scores


def fused(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, weights: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Attend without materialised scores: [B, n, h, D].

    ``q`` [B, h, n, D], ``k`` and ``v`` [B, k, t, D] of the same dtype, ``bias`` [B, 1, n, t]. ``weights`` [B, h, n]
    float32 is filled with the log-sum-exp of the scores of each row. A row that sees nothing has zeros, and 0 as that.
    ``scale``: of the scores; None: 1 / sqrt(D).

    The kernels know no grouped queries. Either the KV heads of one sequence become the batch, and the g query heads of
    each read its keys and the mask through a stride of 0; or, where that is fewer calls, all sequences are attended to
    by one query head of each KV head at a time. Nothing but the result is copied.
    """
    batch, heads, n, dims = q.shape
    kv_heads, t = k.shape[1], k.shape[2]
    group = heads // kv_heads
    q = q.unflatten(1, (kv_heads, group))  # [B, k, g, n, D]
    out = q.new_empty(batch, n, kv_heads, group, dims)
    log_sums = None if weights is None else weights.view(batch, kv_heads, group, n)
    if batch <= group:
        for b in range(batch):
            keys, values = (x[b].unsqueeze(1).expand(kv_heads, group, t, dims) for x in (k, v))
            mask = bias[b].unsqueeze(0).expand(kv_heads, group, n, t)
            part, log_sum = _attend_fused(q[b], keys, values, mask, scale=scale)
            out[b].copy_(part.permute(2, 0, 1, 3))
            if log_sums is not None:
                log_sums[b].copy_(log_sum)
    else:
        mask = bias.expand(batch, kv_heads, n, t)
        for member in range(group):
            part, log_sum = _attend_fused(q[:, :, member], k, v, mask, scale=scale)
            out[:, :, :, member].copy_(part.transpose(1, 2))
            if log_sums is not None:
                log_sums[:, :, member].copy_(log_sum)
    return out.view(batch, n, heads, dims)


def _attend_fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, *, scale: float | None) -> tuple[Tensor, Tensor]:
    """Run torch's fused kernel of a CPU by its name, so that no other can be chosen; return the output and the
    log-sum-exp of each row's scores.

    ``q`` [X, Y, n, D], ``k`` and ``v`` [X, Y, t, D], ``bias`` [X, Y, n, t]. Its temporaries are bounded by
    `scratch.attention` in plans/layer_buffers.py.
    """
    out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=bias, scale=scale)
    return out, log_sum


def packed(visible: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return on a GPU the words of ``visible`` [b, n, c] bool (``mask.Mask``), and the positions of its rows [b * n].

    A row's position is ``lengths`` [b, 1] of its sequence, and one less than the number of columns that it sees.
    """
    both: tuple[Tensor, Tensor] = on_gpu("masks").packed(visible, lengths)
    return both


def rotate_and_store(
    qkv: Tensor, query_heads: int, cache: Tensor, rotary: Tensor, mask: Mask, written: slice | Tensor, first: int,
    norms: tuple[Tensor, Tensor, float, bool] | None, factors: Tensor | None,
) -> None:  # fmt: skip
    """Norm and rotate the heads of ``qkv`` [W, h + 2k, D] on a GPU, its queries in place, its keys into the cache.

    ``rotary`` [2, P, D] and ``factors`` [P] of all positions; others as in ``attend``. ``norms``: weights of queries
    and of keys, [D] of each head or [h * D] and [k * D] of all together, eps, and whether they are offsets from 1.
    """
    on_gpu("heads").rotate_and_store(
        qkv, query_heads, cache, rotary, mask.positions, written, first, norms=norms, factors=factors
    )


def attend_by_mask(
    qkv: Tensor, query_heads: int, cache: Tensor, first: int, mask: Mask, scale: float, softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:  # fmt: skip
    """Attend on a GPU with the rotated queries of ``qkv`` [W, h + 2k, D]: [W, h * D]; arguments as in ``attend``."""
    out: Tensor = on_gpu("attention").attend(
        qkv, query_heads, cache, first, mask, scale=scale, softcap=softcap, sinks=sinks
    )
    return out


def attend_to_part(
    qkv: Tensor, cache: Tensor, first: int, mask: Mask, out: Tensor, scale: float, softcap: float | None
) -> None:
    """Fill ``out`` [W, h, D + 1] float32 on a GPU: attention to a part of the positions, and its log-sum-exp."""
    on_gpu("attention").attend_to_part(qkv, cache, first, mask, out, scale=scale, softcap=softcap)


def merge_parts(parts: Tensor, out: Tensor, columns: tuple[int, int], sinks: Tensor | None) -> None:
    """Fill ``out`` [W, columns] with some columns of the average of ``parts`` [P, W, h, D + 1], as ``attend_to_part``
    fills them, on a GPU.
    """
    on_gpu("attention").merge(parts[..., :-1], parts[..., -1], out, columns=columns, sinks=sinks)


def attends(qkv: Tensor, cache: Tensor) -> bool:
    """Return whether ``attend`` applies: on a CPU whose KV cache has the dtype of the activations, or 8 bits."""
    return is_cpu(qkv) and cache.dtype in (qkv.dtype, *ATTEND_8_BITS)


def attend(
    qkv: Tensor, query_heads: int, cache: Tensor, rotary: Tensor, bias: Tensor, seen: int, tree: int,
    written: slice | Tensor, first: int, oldest: Tensor | None = None,
    factors: Tensor | None = None, sinks: Tensor | None = None, positions: Tensor | None = None, ring: int = 0,
) -> Tensor:  # fmt: skip
    """Rotate ``qkv`` [W, h + 2k, D] in place, write its keys and values to the cache, and attend: [W, h * D].

    ``cache`` [B, T, 2k, D], in codes as ``kv_codes`` has it, of which the sequences from ``first`` on take part;
    ``rotary`` [2, W, 1, D] and ``bias`` [b, 1, n, t] as in ``layers.Rows``. ``seen``: the first of the t cache rows;
    the first ``tree`` are tree rows. Keys and values go to ``written``: n rows of each sequence, or W of all sequences'
    rows. ``oldest``, ``positions`` and ``ring`` as in ``Rows``; ``factors`` and ``sinks`` as in ``scores.Scores``.
    """
    (rows, all_heads, head_dim), size, (sequences, _, n, columns) = qkv.shape, qkv.itemsize, bias.shape
    kv_heads = (all_heads - query_heads) // 2
    # the kernel computes every address from these sizes
    assert cache.shape[2:] == (2 * kv_heads, stored_dims(cache.dtype, head_dim))
    assert rotary.shape == (2, rows, 1, head_dim)
    assert (sequences * n, query_heads % kv_heads) == (rows, 0)
    assert first + sequences <= cache.shape[0]
    assert seen + columns <= cache.shape[1]
    assert tree <= columns
    assert n == written.stop - written.start if isinstance(written, slice) else written.shape[0] == rows
    assert oldest is None or oldest.shape == (sequences,)
    assert oldest is None or not tree or (ring > 0 and positions is not None)
    assert positions is None or (positions.shape == (rows,) and positions.is_contiguous())
    assert factors is None or (factors.shape == (2,) and factors.dtype == torch.float32)
    assert sinks is None or (sinks.shape == (query_heads,) and sinks.dtype == qkv.dtype and sinks.is_contiguous())
    out = torch.empty(rows, query_heads * head_dim, dtype=qkv.dtype)
    scratch = torch.empty(torch.get_num_threads() * attend_floats(head_dim, columns))
    all_rows, (sequence_stride, row_stride) = cache.data_ptr(), (cache.itemsize * n for n in cache.stride()[:2])
    own_rows = all_rows + first * sequence_stride
    call = _attend(
        qkv=qkv.data_ptr(),
        cosines=rotary.data_ptr(),
        sines_offset=size * rotary.stride(0),
        rows=rows,
        rows_per_sequence=n,
        query_heads=query_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        seen=own_rows + seen * row_stride,
        sequence_stride=sequence_stride,
        row_stride=row_stride,
        all_rows=all_rows,
        written_index=0 if isinstance(written, slice) else written.data_ptr(),
        written=own_rows + written.start * row_stride if isinstance(written, slice) else 0,
        columns=columns,
        tree_columns=tree,
        oldest=0 if oldest is None else oldest.data_ptr(),
        positions=0 if positions is None else positions.data_ptr(),
        ring=ring,
        bias=bias.data_ptr(),
        bias_sequence_stride=size * bias.stride(0),
        bias_row_stride=size * bias.stride(2),
        out=out.data_ptr(),
        scratch=scratch.data_ptr(),
        factors=0 if factors is None else factors.data_ptr(),
        sinks=0 if sinks is None else sinks.data_ptr(),
    )
    _run(
        ATTEND_8_BITS.get(cache.dtype, "attend"),
        qkv.dtype,
        2 * rows * query_heads * columns * head_dim,
        call,
    )
    return out


_function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@cache
def _parallel() -> Callable[..., None]:
    """Return libgomp's GOMP_parallel, which torch brings and uses, so that there is one team of threads."""
    parallel: Callable[..., None] = ctypes.CDLL(None).GOMP_parallel
    return parallel


def attend_8_bits_address(dtype: torch.dtype, kv_dtype: torch.dtype) -> int:
    """Return the address of the code of the kernel that layers with a cache of 8 bits call; 0 for other caches."""
    return code.address(ATTEND_8_BITS[kv_dtype], dtype) if kv_dtype in ATTEND_8_BITS else 0


def coded_address(dtype: torch.dtype) -> int:
    """Return the address of the code of the kernel ``coded``, which layers with weights in codes call."""
    return code.address(CODED, dtype)


@cache
def _entry(kernel: str, dtype: torch.dtype) -> tuple[ctypes.c_void_p, Callable[[Any], None]]:
    """Return a compiled kernel as libgomp takes it, and as one thread calls it."""
    _parallel()
    address = code.address(kernel, dtype)
    return ctypes.c_void_p(address), _function(address)


@cache
def _packer(count: int) -> Callable[..., bytes]:
    """Return the packing of ``count`` int64: in a third of the time that an array of ctypes takes to fill."""
    return struct.Struct(f"{count}q").pack


def _run(kernel: str, dtype: torch.dtype, work: int, call: tuple[int, ...]) -> None:
    """Run a kernel on its arguments, with all of torch's threads from ``work`` = PARALLEL_WORK multiply-adds on."""
    _start(kernel, dtype, work, _packer(len(call))(*call))


def _run_layer(dtype: torch.dtype, work: int, words: bytes) -> None:
    """Run a layer on its words, as ``_run`` does; what they point to is ``whole_layers``' to keep."""
    _start("layer", dtype, work, words)


def _start(kernel: str, dtype: torch.dtype, work: int, words: bytes) -> None:
    shared, alone = _entry(kernel, dtype)
    threads = torch.get_num_threads()
    if threads > 1 and work >= PARALLEL_WORK:
        _parallel()(shared, words, threads, 0)
    else:
        alone(words)
