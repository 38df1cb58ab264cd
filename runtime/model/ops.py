"""The steps of a layer, as the device does them: on a CPU by ``kernels``, elsewhere by torch.

W rows, H hidden size, t rows of the KV cache that a forward looks at, D head dim, h query heads, k KV heads, m MLP
channels. Which it is follows from the device alone, and on a CPU from the dtype of the KV cache; nothing is tried.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from runtime.errors import MachineError
from runtime.model import kernels

WORTH = 1 << 16
"""Multiplications from which on threads divide a step: fewer take less time than to meet."""
OWN_ROWS = 16
"""So many rows may be widened in all where each thread has them for itself, and waits for no other; where a plan's
forward has fewer, they are part of the device's reserve."""
APART = 16
"""Values between widened rows: rows that lie a power of two apart share a few lines of the processor's cache."""
KERNELS = (kernels.product, kernels.grouped, kernels.norm, kernels.gated, kernels.top, kernels.attend)


def prepare(dtype: torch.dtype) -> None:
    """Compile the kernels for a dtype, or load those that were compiled before; raise MachineError."""
    try:
        for kernel in KERNELS:
            _entry(kernel, dtype)
    except RuntimeError as error:
        raise MachineError(
            f"the CPU kernels cannot be kept: {error}: set NUMBA_CACHE_DIR to a directory that can be written"
        ) from error
    except AttributeError as error:
        raise MachineError(f"the CPU kernels want libgomp, which torch brings on Linux: {error}") from error


def product(x: Tensor, weight: Tensor, added: Tensor | None = None) -> Tensor:
    """``x`` [W, in] @ ``weight`` [in, out] + ``added`` [W or 1, out]; ``weight`` is the transpose of a slot."""
    if not x.is_cpu:
        return torch.mm(x, weight) if added is None else torch.addmm(added, x, weight)
    (rows, inputs), outputs, size = x.shape, weight.shape[1], x.itemsize
    out = torch.empty(rows, outputs, dtype=x.dtype)
    threads = torch.get_num_threads()
    own = threads * rows <= OWN_ROWS
    copy = None if size == 4 else torch.empty(threads * rows if own else rows, inputs + APART)
    _call(
        kernels.product, x.dtype, rows * inputs * outputs,
        x.data_ptr(), size * x.stride(0), weight.data_ptr(), size * weight.stride(1),
        0 if added is None else added.data_ptr(),
        0 if added is None or added.shape[0] == 1 else size * added.stride(0),
        out.data_ptr(), size * outputs, rows, inputs, outputs,
        0 if copy is None else copy.data_ptr(), 4 * (inputs + APART), own,
    )  # fmt: skip
    return out


def grouped(x: Tensor, index: Tensor | None, weights: Tensor, ends: Tensor) -> Tensor:
    """Rows ``index`` [R] of ``x``, or all of them, each @ a weight of ``weights`` [G, out, in], transposed: [R, out].

    Those of one weight lie side by side; ``ends`` [G] int64: where each weight's end. Nothing is read of a weight
    without rows.
    """
    if not x.is_cpu:
        chosen = x if index is None else x.index_select(0, index)
        return functional.grouped_mm(chosen, weights.transpose(1, 2), offs=ends.int())
    groups, outputs, inputs = weights.shape
    rows, size = x.shape[0] if index is None else index.shape[0], x.itemsize
    out = torch.empty(rows, outputs, dtype=x.dtype)
    copy = None if size == 4 and index is None else torch.empty(rows, inputs + APART)
    _call(
        kernels.grouped, x.dtype, rows * inputs * outputs,
        x.data_ptr(), size * x.stride(0), 0 if index is None else index.data_ptr(),
        weights.data_ptr(), size * weights.stride(0), size * weights.stride(1), ends.data_ptr(),
        out.data_ptr(), size * outputs, rows, groups, inputs, outputs,
        0 if copy is None else copy.data_ptr(), 4 * (inputs + APART),
    )  # fmt: skip
    return out


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x`` [W, H] over its root mean square, times ``weight`` [H]."""
    if not x.is_cpu:
        return functional.rms_norm(x, weight.shape, weight, eps)
    (rows, inputs), size, out = x.shape, x.itemsize, torch.empty_like(x)
    _call(
        kernels.norm, x.dtype, rows * inputs,
        x.data_ptr(), size * x.stride(0), weight.data_ptr(), round(eps / kernels.EPSILON_UNIT),
        out.data_ptr(), size * out.stride(0), rows, inputs,
    )  # fmt: skip
    return out


def gated(both: Tensor) -> Tensor:
    """silu(gate) * up [W, m], of ``both`` [W, 2m]."""
    if not both.is_cpu:
        gate, up = both.chunk(2, dim=1)
        return functional.silu(gate).mul_(up)
    (rows, width), size = both.shape, both.itemsize
    out = torch.empty(rows, width // 2, dtype=both.dtype)
    _call(
        kernels.gated, both.dtype, 4 * both.numel(),
        both.data_ptr(), size * both.stride(0), out.data_ptr(), size * (width // 2), rows, width // 2,
    )  # fmt: skip
    return out


def top(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` highest of each row of logits [W, V], best first: their columns, and log-softmax in float32."""
    if not logits.is_cpu:
        found = logits.float().topk(count, 1)
        return found.indices, found.values - logits.float().logsumexp(1, keepdim=True)
    (rows, columns), size = logits.shape, logits.itemsize
    best = torch.empty(rows, count, dtype=torch.int64)
    scores = torch.empty(rows, count, dtype=torch.float32)
    _call(
        kernels.top, logits.dtype, 4 * logits.numel(),
        logits.data_ptr(), size * logits.stride(0), best.data_ptr(), scores.data_ptr(), rows, columns, count,
    )  # fmt: skip
    return best, scores


def attends(qkv: Tensor, cache: Tensor) -> bool:
    """Whether ``attend`` does it: on a CPU, where keys and values are kept in the dtype that they are computed in."""
    return qkv.is_cpu and cache.dtype == qkv.dtype


def attend(
    qkv: Tensor, heads: int, cache: Tensor, rotary: Tensor, bias: Tensor, seen: int, tree: int,
    written: slice | Tensor, first: int,
) -> Tensor:  # fmt: skip
    """Rotate ``qkv`` [W, h + 2k, D] in place, store its keys and values, and attend: [W, h * D].

    ``cache`` [B, T, 2k, D]: of its sequences those from ``first`` on. ``rotary`` [2, W, 1, D] and ``bias`` [b, 1, n, t]
    as layers have them; ``seen``: the first of the t rows, and ``tree``: how many of them are a tree's. Keys and values
    go to ``written``: n rows of each sequence, or W of all sequences' rows.
    """
    (rows, every, dims), size, (_, _, n, columns) = qkv.shape, qkv.itemsize, bias.shape
    out = torch.empty(rows, heads * dims, dtype=qkv.dtype)
    place = torch.empty(torch.get_num_threads() * kernels.ITEMS * (2 * dims + columns))
    start, sequence, row = cache.data_ptr(), size * cache.stride(0), size * cache.stride(1)
    own = start + first * sequence
    index, target = (0, own + written.start * row) if isinstance(written, slice) else (written.data_ptr(), 0)
    _call(
        kernels.attend, qkv.dtype, 2 * rows * heads * columns * dims,
        qkv.data_ptr(), rotary.data_ptr(), size * rotary.stride(0), rows, n, heads, (every - heads) // 2, dims,
        own + seen * row, sequence, row, start, index, target,
        columns, tree, bias.data_ptr(), size * bias.stride(0), size * bias.stride(2), out.data_ptr(), place.data_ptr(),
    )  # fmt: skip
    return out


_function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@cache
def _parallel() -> Callable[..., None]:
    """libgomp's, which torch brings and uses: its threads are the only ones."""
    found: Callable[..., None] = ctypes.CDLL(None).GOMP_parallel
    return found


@cache
def _entry(kernel: Callable[[Any], None], dtype: torch.dtype) -> tuple[ctypes.c_void_p, Callable[[Any], None]]:
    """A kernel as libgomp takes it and as it is called here."""
    _parallel()
    address = kernels.compiled(kernel, dtype)
    return ctypes.c_void_p(address), _function(address)


def _call(kernel: Callable[[Any], None], dtype: torch.dtype, work: int, *words: int) -> None:
    """Run a kernel with all of torch's threads, where its work is worth it."""
    block = (ctypes.c_int64 * len(words))(*words)
    shared, alone = _entry(kernel, dtype)
    threads = torch.get_num_threads()
    if threads > 1 and work >= WORTH:
        _parallel()(shared, block, threads, 0)
    else:
        alone(block)
