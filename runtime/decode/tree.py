"""Draft trees as tensors: no loop over nodes, no shape that depends on data.

A tree of N nodes is its tokens [N] and parents [N]; node 0 is the root and its own parent, and every other parent has
a smaller number than its child. A batch of B trees is [B, N].
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.model import ops


def ancestors(parents: Tensor, levels: int) -> Tensor:
    """Return [B, N, N] bool, of ``parents`` [B, N]: entry (i, j) is True where j is i or an ancestor of i.

    Trees have at most ``levels`` levels below the root. On a GPU each row follows its parents. On a CPU the matrix of
    parent links, with ones on its diagonal, is squared until it spans the deepest path: ceil(log2(levels)) times.
    """
    if not ops.is_cpu(parents):
        visible: Tensor = ops.on_gpu("trees").ancestors(parents, levels)
        return visible
    batch, nodes = parents.shape
    if nodes == 1:
        return parents.new_ones(batch, 1, 1, dtype=torch.bool)
    reach = torch.eye(nodes, dtype=torch.float32, device=parents.device).expand(batch, -1, -1).contiguous()
    reach.scatter_(2, parents.unsqueeze(2), 1.0)
    span = 1
    while span < levels:
        reach = torch.bmm(reach, reach).clamp_(max=1.0)
        span *= 2
    return reach > 0


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
    # bounded, like the pool, by `draft.scratch.pool` in plans/buffers.py
    chosen = torch.sort(best(pool.scores, nodes - 1), dim=1).values
    parents = torch.searchsorted(chosen, pool.parents.gather(1, chosen), right=True)
    roots = roots.unsqueeze(1)
    return torch.cat([roots, pool.tokens.gather(1, chosen)], 1), torch.cat([torch.zeros_like(roots), parents], 1)
