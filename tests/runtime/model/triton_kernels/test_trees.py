"""Kernels of draft trees, by Triton's interpreter, against the operations of a CPU, bit for bit."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plans.schema import Tree
from plans.step import fed_rows
from runtime.decode.tree import ancestors
from runtime.decode.tree_growth import DynamicOnGpu, growth_of
from runtime.decode.verify import walk
from runtime.model.mask import words_of
from runtime.model.triton_kernels import top, trees
from tests.runtime.model.triton_kernels.interpreted import seeded

EXAMPLES = settings(max_examples=12, deadline=None)


@st.composite
def drawn(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens and parents of trees, and the base's choices [2, N]; siblings differ, and some are chosen."""
    nodes = draw(st.sampled_from([1, 2, 9, 40]))
    parents = torch.tensor([[0, *(draw(st.integers(max(0, n - 5), n - 1)) for n in range(1, nodes))] for _ in range(2)])
    tokens = torch.arange(nodes).repeat(2, 1) + 100
    chosen = torch.tensor([[draw(st.integers(100, 100 + nodes)) for _ in range(nodes)] for _ in range(2)])
    for tree in range(2):
        for node in range(1, nodes):
            if draw(st.booleans()):
                chosen[tree, parents[tree, node]] = tokens[tree, node]
    return tokens, parents, chosen


def depth(parents: Tensor) -> int:
    return int(ancestors(parents, parents.shape[1]).sum(2).max()) - 1


@settings(max_examples=6, deadline=None)
@given(tree=drawn())
def test_ancestors_and_the_walk_along_accepted_nodes(tree: tuple[Tensor, Tensor, Tensor]) -> None:
    tokens, parents, chosen = tree
    levels = depth(parents)
    visible = ancestors(parents, levels)
    assert torch.equal(trees.ancestors(parents, levels), visible)
    kept = min(levels + 1, tokens.shape[1])
    expected = walk(tokens, parents, chosen, kept)
    message = torch.cat([tokens, parents], 1)  # rows of a message lie apart
    accepted, path, following = trees.walk(*message.chunk(2, 1), chosen, kept)
    assert torch.equal(accepted, expected.accepted)
    assert torch.equal(path, expected.path)
    assert torch.equal(following, expected.tokens)


@EXAMPLES
@given(
    shape=st.sampled_from([(6, 1, 3), (4, 0, 3), (12, 3, 4), (40, 4, 5), (2, 2, 1), (9, 2, 9)]),
    batch=st.integers(1, 3), levels=st.sampled_from([2, 1000]), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_tree_grows_as_on_a_cpu(shape: tuple[int, int, int], batch: int, levels: int, seed: int) -> None:
    """Of few ``levels`` of scores many are equal: then it is the first."""
    nodes, depth, k = shape
    tree = Tree(kind="dynamic", total_token=nodes, depth=depth, top_k=k, paths=None)
    rows = max(1, sum(fed_rows(tree)) + 3)
    generator = torch.Generator().manual_seed(seed)
    device = torch.device("cpu")
    growths = [growth_of(tree, batch, dtype, device, rows) for dtype in (torch.float32, torch.int32)]
    assert isinstance(growths[1], DynamicOnGpu)
    roots = torch.arange(batch)

    def candidates(count: int) -> tuple[Tensor, Tensor]:
        scores = -torch.randint(0, levels, (count, k), generator=generator).float() / 7
        return torch.randint(1000, (count, k), generator=generator), scores.sort(1, descending=True).values

    made = candidates(batch)
    own, level = [growth.start(roots, *made) for growth in growths]
    while level is not None:
        assert own is not None
        assert torch.equal(level.tokens, own.tokens)
        assert torch.equal(level.parents, own.parents)
        assert torch.equal(level.seen, words_of(own.seen == 0).expand_as(level.seen))
        assert (level.depth, level.cache_rows) == (own.depth, own.cache_rows)
        made = candidates(batch * k)
        own, level = growths[0].grow(own, *made), growths[1].grow(level, *made)
    for growth in growths:
        growth.recorded = True
    for expected, result in zip(*(growth.finish() for growth in growths), strict=True):
        assert torch.equal(result, expected)
    pools = [growth.pool for growth in growths]
    assert pools[0] is not None
    assert pools[1] is not None
    for name in ("tokens", "scores", "parents"):
        assert torch.equal(getattr(pools[1], name), getattr(pools[0], name))


def test_scores_that_are_no_numbers_give_nodes_of_the_tree() -> None:
    tree = Tree(kind="dynamic", total_token=6, depth=1, top_k=3, paths=None)
    growth = growth_of(tree, 1, torch.int32, torch.device("cpu"), 3)
    scores, tokens = torch.full((3, 3), float("nan")), torch.arange(9).view(3, 3)
    level = growth.start(torch.tensor([5]), tokens[:1], scores[:1])
    assert level is not None
    assert growth.grow(level, tokens, scores) is None
    tokens, parents = growth.finish()
    assert bool(((tokens >= 0) & (tokens < 9)).all())
    assert bool(((parents >= 0) & (parents < 6)).all())


@EXAMPLES
@given(
    shape=st.sampled_from([(6, 1, 3), (4, 0, 3), (12, 3, 4), (2, 2, 1)]), batch=st.integers(1, 2),
    columns=st.sampled_from([7, 300, 4096 + 5, 9000]), maps=st.booleans(), strange=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_a_tree_grows_from_blocks_of_logits_as_from_their_best(
    shape: tuple[int, int, int], batch: int, columns: int, maps: bool, strange: bool, seed: int
) -> None:
    """With a map of the drafter's tokens and without; also of logits that are no numbers, whose tokens are of the
    vocabulary.
    """
    nodes, depth, k = shape
    tree = Tree(kind="dynamic", total_token=nodes, depth=depth, top_k=k, paths=None)
    device, rows = torch.device("cpu"), max(1, sum(fed_rows(tree)) + 3)
    growths = [growth_of(tree, batch, torch.int32, device, rows) for _ in range(2)]
    targets = torch.arange(columns) * 3 + 1 if maps else None
    roots, level, other = torch.arange(batch), None, None
    for number in range(depth + 1):
        logits = seeded(batch * (k if number else 1), columns, seed=seed + number) * 4
        if strange:
            logits[-1] = float("nan")
        own, theirs = growths
        assert isinstance(own, DynamicOnGpu)
        tokens, scores = top.top(logits, k)
        tokens = tokens if targets is None else targets[tokens]
        other = theirs.start(roots, tokens, scores) if other is None else theirs.grow(other, tokens, scores)
        level = own.of_blocks(roots, level, top.of_blocks(logits, k), targets)
        assert (level is None) == (other is None) == (number == depth)
        if level is not None and other is not None and not strange:
            for name in ("tokens", "parents", "seen"):
                assert torch.equal(getattr(level, name), getattr(other, name))
    for growth in growths:
        growth.recorded = True
    (made, links), (expected, parents) = (growth.finish() for growth in growths)
    vocabulary = torch.arange(columns) if targets is None else targets
    assert bool(torch.isin(made[:, 1:], vocabulary).all())
    assert bool(((links >= 0) & (links < nodes)).all())
    if not strange:
        assert torch.equal(made, expected)
        assert torch.equal(links, parents)
        pools = [growth.pool for growth in growths]
        assert pools[0] is not None
        assert pools[1] is not None
        torch.testing.assert_close(pools[0].scores, pools[1].scores, rtol=0, atol=1e-5)
        assert torch.equal(pools[0].tokens, pools[1].tokens)


def test_many_candidates_of_wide_logits_are_taken_by_a_kernel_of_their_own() -> None:
    """What a program holds in registers is bounded: 16 rows of 512 candidates."""
    assert [trees.takes_blocks(width, k) for width, k in ((32000, 10), (128256, 10), (32000, 32), (128256, 32))] == [
        True, True, True, False,
    ]  # fmt: skip
