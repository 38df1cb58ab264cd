"""Attention of one query per row of a cache, compiled by Numba.

Torch starts a product of few rows per row and KV head, which takes longer than reading its keys. Here a key is read
once for all query heads of its KV head, and the columns that all rows share stay in the processor's cache.

B rows, K KV heads, G query heads of each, S shared columns, C columns of the cache, D head dim. Elements of the caches
are the upper bits of a float32: uint16 for bfloat16, uint32 for float32, and ``shift`` says how many bits are missing.
"""

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _load(source: Any, shift: Any, bits: Any) -> None:
    for d in range(len(bits)):
        bits[d] = np.uint32(source[d]) << shift


@numba.njit(fastmath=True, nogil=True)  # type: ignore[untyped-decorator]
def _score(query: Any, shared: Any, keys: Any, first: Any, columns: Any, shift: Any, scores: Any) -> None:
    """Set scores [B, K, G, S + columns] of query [B, K, G, D] over shared [K, S, D] and keys [B, K, C, D]."""
    rows, kv_heads, group, dim = query.shape
    before = shared.shape[1]
    bits = np.empty(dim, np.uint32)
    key = bits.view(np.float32)
    for b in range(rows):
        for k in range(kv_heads):
            for c in range(before + columns):
                if before <= c < before + first[b]:
                    scores[b, k, :, c] = -np.inf
                    continue
                _load(shared[k, c] if c < before else keys[b, k, c - before], shift, bits)
                for g in range(group):
                    total = np.float32(0)
                    for d in range(dim):
                        total += query[b, k, g, d] * key[d]
                    scores[b, k, g, c] = total


@numba.njit(fastmath=True, nogil=True)  # type: ignore[untyped-decorator]
def _add(weights: Any, shared: Any, values: Any, first: Any, columns: Any, shift: Any, out: Any) -> None:
    """Add to out [B, K, G, D] the values of the columns from first [B] on, by weights [B, K, G, S + columns]."""
    rows, kv_heads, group, dim = out.shape
    before = shared.shape[1]
    bits = np.empty(dim, np.uint32)
    value = bits.view(np.float32)
    for b in range(rows):
        for k in range(kv_heads):
            for c in range(before + columns):
                if before <= c < before + first[b]:
                    continue
                _load(shared[k, c] if c < before else values[b, k, c - before], shift, bits)
                for g in range(group):
                    weight = weights[b, k, g, c]
                    for d in range(dim):
                        out[b, k, g, d] += weight * value[d]


def attend_rows(
    query: Tensor, keys: tuple[Tensor, Tensor], values: tuple[Tensor, Tensor], first: Tensor, columns: int, scale: float
) -> Tensor:
    """Return [B, K, G, D] of a query per row and head, [B, K, G, D], over columns from ``first`` [B] to ``columns``.

    ``keys``, ``values``: those that all rows share [K, S, D], all visible, and the rows' own [B, K, C, D].
    """
    bits, shift = (torch.uint16, 16) if query.dtype == torch.bfloat16 else (torch.uint32, 0)
    k_shared, k_own, v_shared, v_own = (tensor.view(bits).numpy() for tensor in (*keys, *values))
    scores = torch.empty(*query.shape[:3], k_shared.shape[1] + columns)
    fixed = (first.numpy(), columns, np.uint32(shift))
    _score((query.float() * scale).numpy(), k_shared, k_own, *fixed, scores.numpy())
    out = torch.zeros(query.shape)
    _add(scores.softmax(-1).numpy(), v_shared, v_own, *fixed, out.numpy())
    return out.to(query.dtype)
