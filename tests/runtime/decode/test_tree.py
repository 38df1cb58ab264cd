"""Tree operations on tensors against plain Python."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.decode.tree import Candidates, ancestors, best, select

pytestmark = pytest.mark.usefixtures("one_core")


@st.composite
def parent_lists(draw: st.DrawFn) -> list[int]:
    """Draw the parents of a tree in an order with parents first; the root is its own parent."""
    count = draw(st.integers(1, 40))
    return [0] + [draw(st.integers(0, node - 1)) for node in range(1, count)]


def climb(parents: list[int], node: int) -> list[int]:
    """Return the path from a node up to the root."""
    path = [node]
    while path[-1]:
        path.append(parents[path[-1]])
    return path


@given(parent_lists())
def test_mask_is_the_ancestors_and_the_node_itself(parents: list[int]) -> None:
    levels = max(len(climb(parents, node)) for node in range(len(parents))) - 1
    chain = [max(0, node - 1) for node in range(len(parents))]
    for tree, mask in zip((parents, chain), ancestors(torch.tensor([parents, chain]), len(parents)), strict=True):
        for node, row in enumerate(mask.tolist()):
            assert {other for other, seen in enumerate(row) if seen} == set(climb(tree, node))
    assert torch.equal(ancestors(torch.tensor([parents]), levels), ancestors(torch.tensor([parents]), len(parents)))


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.data())
def test_best_prefers_the_first_of_equals(scores: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(scores)))
    expected = sorted(range(len(scores)), key=lambda number: (-scores[number], number))[:count]
    assert best(torch.tensor([scores, scores], dtype=torch.float32), count).tolist() == [expected, expected]


def grown(top_k: int, depth: int, scores: st.DataObject) -> tuple[Candidates, list[tuple[int, ...]]]:
    """Return a candidate pool as drafting fills it, and the path of each candidate; scores often tie or are 0."""
    token = itertools.count(100)
    logs = st.sampled_from([0.0, -0.5, -0.5, -1.0, -2.0])
    beam: list[tuple[int, float, tuple[int, ...]]] = [(-1, 0.0, ())]
    pool: list[tuple[int, float, int]] = []
    paths: list[tuple[int, ...]] = []
    for _ in range(depth + 1):
        rows = [
            (next(token), score + scores.draw(logs), parent, path) for parent, score, path in beam for _ in range(top_k)
        ]
        start = len(paths)
        pool += [row[:3] for row in rows]
        paths += [(*path, number) for number, _, _, path in rows]
        (chosen,) = best(torch.tensor([[row[1] for row in rows]]), top_k).tolist()
        beam = [(start + i, rows[i][1], paths[start + i]) for i in chosen]
    tokens, sums, parents = (torch.tensor([column]) for column in zip(*pool, strict=True))
    return Candidates(tokens=tokens, scores=sums, parents=parents), paths


@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_select_takes_the_best_and_never_a_child_without_its_parent(
    top_k: int, depth: int, data: st.DataObject
) -> None:
    pool, paths = grown(top_k, depth, data)
    nodes = data.draw(st.integers(2, len(paths) + 1))
    (tokens,), (parents,) = select(pool, torch.tensor([7]), nodes)
    order = sorted(range(len(paths)), key=lambda number: (-pool.scores[0, number].item(), number))[: nodes - 1]
    assert tokens.tolist() == [7] + [paths[number][-1] for number in sorted(order)]
    assert parents[0] == 0
    for node in range(1, nodes):
        assert parents[node] < node
        path = [tokens[above].item() for above in climb(parents.tolist(), node)][-2::-1]
        assert tuple(path) in paths, "parents must lead along the path on which the node was drafted"
