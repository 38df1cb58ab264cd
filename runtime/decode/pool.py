"""Drafts compared with the text: for each, the ranks at which the base's later choices are among its candidates.

A tree shows only the candidates that became nodes. All of them, the pool, also tell which child the base would have
chosen where the tree had none, so that a profile counted from pools holds for other trees as well.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from plans.acceptance import Drafted
from runtime.decode.tree import Candidates


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """Candidates of one tree on the host; the children of a node follow one another, the most probable first."""

    tokens: list[int]
    scores: list[float]
    """Log-probability of the path from the root."""
    parents: list[int]
    """Index of the parent in the pool, -1 for the root."""
    nodes: int
    """Nodes of the tree that is made of it, the root included."""


def pools(candidates: Candidates, nodes: int) -> Iterator[Pool]:
    """Yield the candidates of each sequence on the host; on a GPU this waits for it. ``nodes`` as in ``Pool``."""
    rows = (candidates.tokens.tolist(), candidates.scores.tolist(), candidates.parents.tolist())
    for tokens, scores, parents in zip(*rows, strict=True):
        yield Pool(tokens=tokens, scores=scores, parents=parents, nodes=nodes)


def compared(pool: Pool, following: Sequence[int]) -> Drafted:
    """Compare a draft with the tokens behind its root.

    The walk ends where a node's children are not known, as it was not fed to the drafter, and where the text ends.
    """
    children: dict[int, list[int]] = {}
    for index, parent in enumerate(pool.parents):
        children.setdefault(parent, []).append(index)
    chosen = sorted(range(len(pool.scores)), key=lambda index: (-pool.scores[index], index))[: pool.nodes - 1]
    in_tree, accepted = set(chosen), 0
    ranks, node, missed = [], -1, False
    for token in following:
        if node not in children:
            break
        rank = next((rank for rank, child in enumerate(children[node]) if pool.tokens[child] == token), None)
        if rank is None:
            missed = True
            break
        ranks.append(rank)
        node = children[node][rank]
        accepted += node in in_tree
    confidence = math.fsum(math.exp(pool.scores[index]) for index in chosen)
    return Drafted(confidence=confidence, committed=accepted + 1, ranks=tuple(ranks), missed=missed)
