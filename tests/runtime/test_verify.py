"""Acceptance by tensor operations against a walk."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.tree import ancestors
from runtime.verify import forced
from runtime.verify import walk as walked


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    """Tokens, parents and the base's choices; siblings have different tokens out of few, so that many agree."""
    tokens, parents = [draw(st.integers(0, 4))], [0]
    for _ in range(draw(st.integers(0, 24))):
        parent = draw(st.integers(0, len(tokens) - 1))
        taken = {token for node, token in enumerate(tokens) if node and parents[node] == parent}
        free = [token for token in range(5) if token not in taken]
        if free:
            tokens.append(draw(st.sampled_from(free)))
            parents.append(parent)
    return tokens, parents, draw(st.lists(st.integers(0, 4), min_size=len(tokens), max_size=len(tokens)))


def walk(tokens: list[int], parents: list[int], choices: list[int]) -> list[int]:
    path = [0]
    while True:
        children = [node for node in range(1, len(tokens)) if parents[node] == path[-1]]
        agreed = [node for node in children if tokens[node] == choices[path[-1]]]
        if not agreed:
            return path
        path.append(agreed[0])


@given(trees())
def test_it_walks_to_the_child_that_the_base_chose(tree: tuple[list[int], list[int], list[int]]) -> None:
    tokens, parents, choices = tree
    path = walk(tokens, parents, choices)
    parent_tensor = torch.tensor(parents)
    verdict = walked(
        torch.tensor(tokens),
        parent_tensor,
        ancestors(parent_tensor.unsqueeze(0), len(tokens))[0],
        torch.tensor(choices),
        len(tokens),
    )
    accepted = len(path) - 1
    assert verdict.accepted.tolist() == [accepted]
    assert verdict.path.tolist()[: len(path)] == path
    assert verdict.tokens.tolist()[: len(path)] == [choices[node] for node in path]
    assert all(node == path[-1] for node in verdict.path.tolist()[len(path) :])


def test_a_forced_length_is_accepted_whatever_the_base_chose() -> None:
    verdict = forced(torch.tensor([5, 6, 7, 8]), torch.tensor([1, 2, 3, 4]), 3, 2)
    assert (verdict.accepted.tolist(), verdict.path.tolist()) == ([2], [0, 1, 2])
    assert verdict.tokens.tolist() == [6, 7, 3], "the bonus is what the base chose"
    assert forced(torch.tensor([5, 6, 7, 8]), torch.tensor([1, 2, 3, 4]), 3, 0).tokens.tolist() == [1, 1, 1]
