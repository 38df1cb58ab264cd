"""Draft trees as tensors, whose shapes do not depend on data; on a GPU no loop over nodes.

A tree of N nodes is its tokens [N] and parents [N]; node 0 is the root and its own parent, and every other parent has
a smaller number than its child. A batch of B trees is [B, N].
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from runtime.model import ops


def ancestors(parents: Tensor, levels: int) -> Tensor:
    """Return [B, N, N] bool, of ``parents`` [B, N]: entry (i, j) is True where j is i or an ancestor of i.

    Trees have at most ``levels`` levels below the root. On a GPU each row follows its parents. On a CPU the host sets
    the bits of each node, which are its parent's and its own: integers take a fraction of the time of small operations.
    """
    if not ops.is_cpu(parents):
        visible: Tensor = ops.on_gpu("trees").ancestors(parents, levels)
        return visible
    batch, nodes = parents.shape
    if nodes == 1:
        return parents.new_ones(batch, 1, 1, dtype=torch.bool)
    row_bytes, rows = -(-nodes // 8), bytearray()
    for tree in parents.tolist():
        seen = [1]
        for node in range(1, nodes):
            seen.append(seen[tree[node]] | 1 << node)
        for bits in seen:
            rows += bits.to_bytes(row_bytes, "little")
    packed = np.frombuffer(rows, np.uint8).reshape(batch, nodes, row_bytes)
    return torch.from_numpy(np.unpackbits(packed, axis=2, count=nodes, bitorder="little").view(np.bool_))


def best(scores: Tensor, count: int) -> Tensor:
    """Return [B, count]: indices of the highest ``scores`` [B, P], best first, of equal ones the first."""
    return torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :count]


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """The pool: candidates of a tree level by level, P of them."""

    tokens: Tensor
    """[B, P] int64, ids of the base model."""
    scores: Tensor
    """[B, P] float32: log-probability of the path from the root; never above the parent's."""
    parents: Tensor
    """[B, P] int64: index of the parent in the pool, -1 for the root."""


def select(pool: Candidates, roots: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Return tokens and parents [B, nodes] of the trees: ``roots`` [B] and the best of the pool, in the pool's order.

    The pool is ordered by depth, and a child never scores above its parent, so with ties going to the first no child
    is chosen without its parent.
    """
    if ops.is_cpu(roots):
        return _select_on_host(pool, roots, nodes)
    # bounded, like the pool, by `draft.scratch.pool` in plans/buffers.py
    chosen = torch.sort(best(pool.scores, nodes - 1), dim=1).values
    parents = torch.searchsorted(chosen, pool.parents.gather(1, chosen), right=True)
    roots = roots.unsqueeze(1)
    return torch.cat([roots, pool.tokens.gather(1, chosen)], 1), torch.cat([torch.zeros_like(roots), parents], 1)


def _select_on_host(pool: Candidates, roots: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Return what ``select`` does, by NumPy: for so few numbers its operations take half of the time of torch's."""
    drafted, scores, above = pool.tokens.numpy(), pool.scores.numpy(), pool.parents.numpy()
    tokens, parents = np.empty((2, len(roots), nodes), dtype=np.int64)
    tokens[:, 0], parents[:, 0] = roots.numpy(), 0
    for number, chosen in enumerate((-scores).argsort(axis=1, kind="stable")[:, : nodes - 1]):
        chosen.sort()
        tokens[number, 1:] = drafted[number, chosen]
        parents[number, 1:] = chosen.searchsorted(above[number, chosen], side="right")
    return torch.from_numpy(tokens), torch.from_numpy(parents)
