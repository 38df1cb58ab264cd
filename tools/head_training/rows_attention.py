"""Attention of one query per row of a cache, compiled by Numba.

Torch starts a product of few rows per row and KV head, which takes longer than reading its keys. Here a key is read
once for all query heads of its KV head, and the columns that all rows share stay in the processor's cache.
"""

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor


@functools.cache
def _kernels(bfloat16: bool, group: int, dim: int) -> tuple[Callable[..., None], Callable[..., None]]:
    """Return ``score`` and ``add`` for G = ``group`` and D = ``dim``, in bfloat16, read as uint16, or in float32."""

    @numba.njit(fastmath=True, nogil=True)  # type: ignore[untyped-decorator]
    def score(query: Any, shared: Any, keys: Any, first: Any, columns: Any, scores: Any) -> None:
        """Set scores [B, K, G, S + columns] of query [B, K, G, D], shared [K, S, D] and keys [B, K, C, D]."""
        rows, kv_heads = query.shape[:2]
        before = shared.shape[1]
        bits = np.empty(dim, np.uint32)
        key = bits.view(np.float32)
        for b in range(rows):
            for k in range(kv_heads):
                for c in range(before + columns):
                    if before <= c < before + first[b]:
                        scores[b, k, :, c] = -np.inf
                        continue
                    source = shared[k, c] if c < before else keys[b, k, c - before]
                    for d in range(dim):
                        if bfloat16:  # the upper half of a float32
                            bits[d] = np.uint32(source[d]) << np.uint32(16)
                        else:
                            key[d] = source[d]
                    for g in range(group):
                        total = np.float32(0)
                        for d in range(dim):
                            total += query[b, k, g, d] * key[d]
                        scores[b, k, g, c] = total

    @numba.njit(fastmath=True, nogil=True)  # type: ignore[untyped-decorator]
    def add(weights: Any, shared: Any, values: Any, first: Any, columns: Any, out: Any) -> None:
        """Add to out [B, K, G, D] the values by weights [B, K, G, S + columns]."""
        rows, kv_heads = out.shape[:2]
        before = shared.shape[1]
        bits = np.empty(dim, np.uint32)
        value = bits.view(np.float32)
        for b in range(rows):
            for k in range(kv_heads):
                for c in range(before + columns):
                    if before <= c < before + first[b]:
                        continue
                    source = shared[k, c] if c < before else values[b, k, c - before]
                    for d in range(dim):
                        if bfloat16:
                            bits[d] = np.uint32(source[d]) << np.uint32(16)
                        else:
                            value[d] = source[d]
                    for g in range(group):
                        weight = weights[b, k, g, c]
                        for d in range(dim):
                            out[b, k, g, d] += weight * value[d]

    return score, add


def attend_rows(
    query: Tensor, keys: tuple[Tensor, Tensor], values: tuple[Tensor, Tensor], first: Tensor, columns: int, scale: float
) -> Tensor:
    """Return [B, K, G, D] for a query per row and head, [B, K, G, D], over the columns from ``first`` [B] to ``columns``.

    ``keys``, ``values``: those that all rows share [K, S, D], all visible, and the rows' own [B, K, C, D].
    """
    half = query.dtype == torch.bfloat16
    score, add = _kernels(half, *query.shape[2:])
    k_shared, k_own, v_shared, v_own = (
        tensor.view(torch.uint16).numpy() if half else tensor.numpy() for tensor in (*keys, *values)
    )
    scores = torch.empty(*query.shape[:3], k_shared.shape[1] + columns)
    score((query.float() * scale).numpy(), k_shared, k_own, first.numpy(), columns, scores.numpy())
    out = torch.zeros(query.shape)
    add(scores.softmax(-1).numpy(), v_shared, v_own, first.numpy(), columns, out.numpy())
    return out.to(query.dtype)
