"""Expected tokens that one step commits, from an acceptance profile: exact under the model below, in integers.

**Model.** A text is made of passages, each in one of the profile's contexts c; w_c is the part of its tokens that is in
c. In a context the base's choice after a node of level d that it accepted is the child of rank r with probability
p_c[d][r], whatever else is known. A node is then accepted with the product of p_c along its path, and a step commits

    E_c = 1 + sum over the tree's nodes of the product of p_c along the path

tokens, the base's own choice being the one. The tokens of a context take w_c / E_c steps, so a step of the text commits

    E = 1 / sum over contexts of w_c / E_c

*Static trees and chains* have the same nodes in every context. *Dynamic trees* take the nodes that the drafter is most
confident of. Its confidence is modelled as exact: in each context it knows p, so that the tree has the nodes that the
runtime would select (``runtime.decode.tree_growth``) if the drafter's probabilities were p: of each level's candidates
the top_k most probable paths are fed, and of all candidates the total_token - 1 most probable are the tree. A real
drafter is less certain than that within a context, and more than that between places of one context.

Nothing is expected of levels and ranks beyond those of the profile.
"""

from collections.abc import Sequence
from functools import lru_cache

from plans.acceptance import PPM, Context, Profile
from plans.schema import Tree

UNIT = 10**12
"""Probabilities are integers in units of 1 / UNIT, rounded down, so that every machine has the same."""


def expected_ppm(profile: Profile, tree: Tree | None) -> int:
    """Return the expected tokens that a step of a tree commits, the root's included, in parts per million.

    Without a tree it is one token.
    """
    if tree is None:
        return PPM
    tokens = sum(context.tokens for context in profile.contexts)
    steps = sum(context.tokens * UNIT**2 // _committed(context, tree) for context in profile.contexts)
    return PPM * tokens * UNIT // steps


def _committed(context: Context, tree: Tree) -> int:
    """Return E_c in 1 / UNIT."""
    return UNIT + sum(node_probabilities(context, tree))


def node_probabilities(context: Context, tree: Tree) -> tuple[int, ...]:
    """Return the probability of each drafted node of a tree to be accepted in a context, in 1 / UNIT."""
    rates = _rates(context)
    if tree.paths is not None:
        return tuple(_path(rates, path) for path in tree.paths)
    return _pool(rates, tree.depth, tree.top_k)[: tree.total_token - 1]


@lru_cache(maxsize=256)
def _rates(context: Context) -> tuple[tuple[int, ...], ...]:
    """Return p[d][r] in 1 / UNIT."""
    return tuple(tuple(count * UNIT // level.nodes for count in level.chosen) for level in context.levels)


def _path(rates: Sequence[Sequence[int]], path: Sequence[int]) -> int:
    """Return the product of p along a path of ranks."""
    value = UNIT
    for depth, rank in enumerate(path):
        known = depth < len(rates) and rank < len(rates[depth])
        value = value * rates[depth][rank] // UNIT if known else 0
    return value


@lru_cache(maxsize=1024)
def _pool(rates: tuple[tuple[int, ...], ...], depth: int, top_k: int) -> tuple[int, ...]:
    """Return the path probabilities of all candidates of a dynamic tree, the most probable first.

    Ties do not matter: nodes of equal probability of one level have equal children.
    """
    beam, pool = [UNIT], list[int]()
    for level in range(depth + 1):
        own = [*rates[level][:top_k], *[0] * top_k][:top_k] if level < len(rates) else [0] * top_k
        candidates = sorted((above * rate // UNIT for above in beam for rate in own), reverse=True)
        pool += candidates
        beam = candidates[:top_k]
    return tuple(sorted(pool, reverse=True))
