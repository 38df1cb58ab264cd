"""The trees that are considered: all chains, and dynamic trees of a few sizes, depths and widths.

    chains           total_token = depth + 2, top_k 1       depth 0, 1, …, 9
    dynamic trees    total_token 4, 8, 16, 32, 60           depth 1, 2, 3, 5, 7       top_k 2, 6
    EAGLE's own      total_token 60                         depth 7                   top_k 10

A tree is left out where another one has no more nodes, levels or children and as many expected tokens: the other's
step is no longer. A drafter that drafts all levels in one pass (P-EAGLE) has chains alone.
"""

from collections.abc import Callable, Iterator
from itertools import product

from plans.check_inputs import MOST_MASK_VALUES, mask_values
from plans.schema import Draft, Tree
from plans.step import kept_nodes, tree_pool

CHAIN_DEPTHS = tuple(range(10))
EAGLE = (60, 7, 10)
NODES, DEPTHS, WIDTHS = (4, 8, 16, 32, 60), (1, 2, 3, 5, 7), (2, 6)


def trees_of(draft: Draft, batch: int) -> Iterator[Tree]:
    """Yield the trees of the grid that a drafter can grow for so many sequences."""
    yield from (tree for tree in _grown(draft) if mask_values(tree, batch) <= MOST_MASK_VALUES)


def _grown(draft: Draft) -> Iterator[Tree]:
    for depth in CHAIN_DEPTHS:
        yield Tree(kind="dynamic", total_token=depth + 2, depth=depth, top_k=1, paths=None)
    if draft.mask_token_id is not None:
        return
    for nodes, depth, top_k in (*product(NODES, DEPTHS, WIDTHS), EAGLE):
        tree = Tree(kind="dynamic", total_token=nodes, depth=depth, top_k=top_k, paths=None)
        if top_k <= draft.draft_vocab_size and depth + 2 <= nodes <= 1 + tree_pool(tree):
            yield tree


def size(tree: Tree) -> tuple[int, int, int]:
    """Return the numbers of a tree: none of them makes a step shorter as it grows."""
    return tree.total_token, tree.depth, tree.top_k


def drafted(tree: Tree) -> tuple[int, int, int]:
    """Return the numbers on which a drafter's time depends, likewise: nodes that are kept at most, levels, width."""
    return kept_nodes(tree), tree.depth, tree.top_k


def contains(larger: Tree, smaller: Tree) -> bool:
    """Tell whether no number of a tree is smaller than that of the other."""
    return no_less(size(larger), size(smaller))


def no_less(numbers: tuple[int, ...], others: tuple[int, ...]) -> bool:
    """Tell whether no number is smaller than the other in its place."""
    return all(a >= b for a, b in zip(numbers, others, strict=True))


def undominated(trees: list[Tree], expected: Callable[[Tree], int]) -> list[Tree]:
    """Return the trees of which no other one is as small and expects as many tokens; of equal ones the first."""
    kept: list[Tree] = []
    for tree in sorted(trees, key=lambda tree: (-expected(tree), size(tree))):
        if not any(contains(tree, other) for other in kept):
            kept.append(tree)
    return kept
