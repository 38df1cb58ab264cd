"""Acceptance of draft trees: the base's choice after each node -> the accepted path. Pure.

Greedy: the choice after a node is the argmax. Sampling: it is drawn from p, the processed distribution there. In both,
walk from the root to the child that was chosen, as far as there is one; the choice at the tip is the bonus token.

This is EAGLE's rule for deterministic candidates (q = 1): try the children in order, accept child i with its
probability after the rejected ones were removed and p renormalised, p[i] / (1 - p[1] - … - p[i-1]); if none is accepted
draw from the rest. The probability to accept child i is the product of that and of the rejections before it,

    p[i] / (1 - p[1] - … - p[i-1]) * product over j < i of (1 - p[j] / (1 - p[1] - … - p[j-1])) = p[i]

as each factor's numerator is the next one's denominator; likewise token x, no child, is drawn with p[x]. So one draw of
x from p decides both: a child that is x is accepted, else x is the bonus token. The output has the distribution of
plain sampling, token by token; with random numbers that are a function of the position it is even the same text.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.model import ops


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The decision on each tree of a verify."""

    accepted: Tensor
    """[B] int64: accepted nodes behind the root."""
    path: Tensor
    """[B, A] int64: nodes from the root to the tip, the tip repeated behind it."""
    tokens: Tensor
    """[B, A] int64: the token that follows each node of the path; behind the tip the bonus token, repeated."""


def walk(tokens: Tensor, parents: Tensor, chosen: Tensor, kept: int) -> Verdict:
    """Walk from the root to the child equal to the base's choice, as far as it goes; the choice there is the bonus.

    ``tokens``, ``parents`` [B, N] of the nodes, ``chosen`` [B, N] the base's choice after each node, ``kept`` = A the
    most nodes of a path. On a CPU the host walks: its lists take a fraction of the time of as many small operations.
    """
    if not ops.is_cpu(tokens):
        accepted, path, following = ops.on_gpu("trees").walk(tokens, parents, chosen, kept)
        return Verdict(accepted=accepted, path=path, tokens=following)
    batch, nodes = tokens.shape
    if nodes == 1:  # plain decoding: the root is the tip
        root = tokens.new_zeros(batch, kept)
        return Verdict(accepted=root[:, 0], path=root, tokens=chosen.expand(-1, kept))
    paths = [_path(*tree) for tree in zip(tokens.tolist(), parents.tolist(), chosen.tolist(), strict=True)]
    nodes_of_paths = torch.tensor([path + path[-1:] * (kept - len(path)) for path in paths])
    return Verdict(
        accepted=torch.tensor([len(path) - 1 for path in paths]),
        path=nodes_of_paths,
        tokens=chosen.gather(1, nodes_of_paths),
    )


def _path(tokens: list[int], parents: list[int], chosen: list[int]) -> list[int]:
    """Return the nodes of one tree from the root to the tip; a child comes behind its parent.

    Of siblings with one token, which a ``d2t`` that maps two drafted tokens to one makes, the first is followed: what
    the drafter put behind another is not accepted, and the text is the same.
    """
    path = [0]
    for node in range(1, len(tokens)):
        if parents[node] == path[-1] and tokens[node] == chosen[path[-1]]:
            path.append(node)
    return path


def forced(tokens: Tensor, chosen: Tensor, kept: int, accepted: int) -> Verdict:
    """Accept nodes 1 … ``accepted`` whatever they are, for timing models with random weights, which agree on nothing.

    ``tokens``, ``chosen`` and ``kept`` as in ``walk``.
    """
    batch, nodes = tokens.shape
    path = torch.arange(kept, device=tokens.device).clamp_(max=accepted).expand(batch, -1)
    following = tokens.gather(1, (path + 1).clamp_(max=nodes - 1))
    return Verdict(
        accepted=path[:, -1], path=path, tokens=torch.where(path < accepted, following, chosen.gather(1, path))
    )
