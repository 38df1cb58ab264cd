"""The base's choices on a tree -> the accepted path. Pure; fixed shapes; no transfer to the host."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What one verify decided of a tree, or with B before every shape of several."""

    accepted: Tensor
    """[1], or [B], int64: accepted drafted nodes."""
    path: Tensor
    """[A] int64: nodes from the root to the tip, the tip repeated behind it."""
    tokens: Tensor
    """[A] int64: the token that follows each node of the path; behind the tip the bonus token, repeated."""


def greedy(tokens: Tensor, parents: Tensor, mask: Tensor, best: Tensor, kept: int) -> Verdict:
    """Walk from the root to the child equal to the base's choice, as far as it goes; the choice there is the bonus.

    ``tokens``, ``parents`` [N] of the nodes, ``mask`` [N, N] their ancestors and themselves, ``best`` [N] the base's
    argmax after each node, ``kept`` = A the most nodes of a path. A node is accepted when it and all above it are what
    the base chose; siblings differ, so the accepted nodes are one path, and the deepest of them is its tip.
    """
    nodes = tokens.shape[0]
    wrong = tokens != best[parents]
    wrong[0] = False
    accepted = (mask & wrong).any(1).logical_not_()
    length, tip = torch.where(accepted, mask.sum(1) - 1, -1).max(0, keepdim=True)
    # the ancestors of the tip in ascending order are the path, since parents come first; all others sort behind them
    on_path = mask.index_select(0, tip).squeeze(0)
    path = torch.where(on_path, torch.arange(nodes, device=tokens.device), nodes).sort().values[:kept]
    path = torch.where(path < nodes, path, tip)
    return Verdict(accepted=length, path=path, tokens=best[path])
