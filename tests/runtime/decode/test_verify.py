"""Acceptance on tensors against a walk in plain Python."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.decode.verify import forced
from runtime.decode.verify import walk as walked


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    """Draw tokens, parents and choices of the base; siblings have distinct tokens out of five, so that many match."""
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


@settings(max_examples=50)
@given(st.lists(trees(), min_size=1, max_size=3))
def test_it_walks_to_the_child_that_the_base_chose(drawn: list[tuple[list[int], list[int], list[int]]]) -> None:
    most = max(len(tokens) for tokens, _, _ in drawn)
    padded = [
        # pad trees to one length with nodes whose token the base never chooses
        (
            tokens + [9] * (most - len(tokens)),
            parents + [0] * (most - len(tokens)),
            choices + [0] * (most - len(tokens)),
        )
        for tokens, parents, choices in drawn
    ]
    tokens, parents, choices = (torch.tensor(column) for column in zip(*padded, strict=True))
    verdict = walked(tokens, parents, choices, most)
    for number, tree in enumerate(drawn):
        path = walk(*tree)
        assert verdict.accepted[number] == len(path) - 1
        assert verdict.path[number].tolist() == path + path[-1:] * (most - len(path))
        assert verdict.tokens[number].tolist()[: len(path)] == [tree[2][node] for node in path]


def test_a_forced_length_is_accepted_whatever_the_base_chose() -> None:
    tokens, chosen = torch.tensor([[5, 6, 7, 8], [9, 8, 7, 6]]), torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]])
    verdict = forced(tokens, chosen, 3, 2)
    assert (verdict.accepted.tolist(), verdict.path.tolist()) == ([2, 2], [[0, 1, 2]] * 2)
    assert verdict.tokens.tolist() == [[6, 7, 3], [8, 7, 2]], "the bonus token is the choice of the base"
    assert forced(tokens, chosen, 3, 0).tokens.tolist() == [[1, 1, 1], [4, 4, 4]]
