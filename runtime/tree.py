"""Draft trees as tensors: no loop over nodes, no shape that depends on data.

A tree of N nodes is its tokens [N] and parents [N]; node 0 is the root and its own parent, and every other parent has
a smaller number than its child.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def ancestors(parents: Tensor, levels: int) -> Tensor:
    """[N, N] bool: entry (i, j) says that j is i or above it, for trees of at most ``levels`` levels below the root.

    Parent links as a matrix, squared until they span the deepest path: parents ** 2 ** ceil(log2 levels).
    """
    nodes = parents.shape[0]
    reach = torch.eye(nodes, dtype=torch.float32, device=parents.device)
    reach.scatter_(1, parents.unsqueeze(1), 1.0)
    span = 1
    while span < levels:
        reach = torch.mm(reach, reach).clamp_(max=1.0)
        span *= 2
    return reach > 0


def depths(mask: Tensor) -> Tensor:
    """[N] int64: how far each node is below the root."""
    return mask.sum(1) - 1


def best(scores: Tensor, count: int) -> Tensor:
    """[count] indices of the highest scores, best first; of equal ones the first."""
    return torch.sort(scores, descending=True, stable=True).indices[:count]


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """Drafted nodes in the order in which they were found, parents before children: a pool, or a level of it."""

    tokens: Tensor
    """[P] int64, ids of the base model."""
    scores: Tensor
    """[P] float32: log-probability of the path from the root; never above the parent's."""
    parents: Tensor
    """[P] int64: index of the parent in the pool, -1 for the root."""


def join(levels: list[Candidates]) -> Candidates:
    """The pool of all levels."""
    return Candidates(
        tokens=torch.cat([level.tokens for level in levels]),
        scores=torch.cat([level.scores for level in levels]),
        parents=torch.cat([level.parents for level in levels]),
    )


def select(pool: Candidates, root: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Tokens and parents [nodes] of the tree: ``root`` [1] and the best of the pool, in the pool's order.

    The pool is ordered by depth, and a child never scores above its parent, so with ties going to the first no child
    comes without its parent.
    """
    chosen = torch.sort(best(pool.scores, nodes - 1)).values
    parents = torch.searchsorted(chosen, pool.parents[chosen], right=True)
    return torch.cat([root, pool.tokens[chosen]]), torch.cat([torch.zeros_like(root), parents])
