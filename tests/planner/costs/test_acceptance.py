"""Expected tokens of a step: by hand, by simulation, against the runtime's own tree growth, and by properties."""

import random
from bisect import bisect_right
from dataclasses import replace
from itertools import accumulate, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.costs.acceptance import expected_ppm
from planner.request import STATIC_PATHS
from plans.acceptance import Context, Level, Profile
from plans.check_inputs import static_tree
from plans.schema import Tree
from plans.step import fed_rows
from runtime.decode.tree_growth import growth_of

NODES = 1000


def profile_of(*contexts: tuple[int, tuple[tuple[int, ...], ...]]) -> Profile:
    """Return a profile of contexts: tokens, and for each level the thousandths of each rank."""
    return Profile(
        profile="1.0",
        drafter="eagle3",
        origin="published",
        source="made up",
        contexts=tuple(
            Context(steps=1, tokens=tokens, levels=tuple(Level(nodes=NODES, chosen=chosen) for chosen in levels))
            for tokens, levels in contexts
        ),
    )


def dynamic(total_token: int, depth: int, top_k: int) -> Tree:
    return Tree(kind="dynamic", total_token=total_token, depth=depth, top_k=top_k, paths=None)


EASY = ((900, 50), (800, 100), (700, 100))
HARD = ((400, 200), (300, 200), (200, 100))


def test_a_step_without_a_tree_commits_one_token() -> None:
    assert expected_ppm(profile_of((1, EASY)), None) == 10**6


def test_a_chain_by_hand() -> None:
    """1 + 0.9 + 0.9 * 0.8 + 0.9 * 0.8 * 0.7 = 3.124."""
    assert expected_ppm(profile_of((1, EASY)), dynamic(4, 2, 1)) == 3_124_000


def test_levels_and_ranks_that_were_not_counted_add_nothing() -> None:
    profile = profile_of((1, EASY))
    assert expected_ppm(profile, dynamic(10, 8, 1)) == expected_ppm(profile, dynamic(4, 2, 1))
    assert expected_ppm(profile, dynamic(8, 0, 7)) == 1_950_000


def test_a_static_tree_by_hand() -> None:
    """Nodes 0, 1 and 0.1: 1 + 0.4 + 0.2 + 0.4 * 0.2 = 1.68."""
    assert expected_ppm(profile_of((1, HARD)), static_tree(((0,), (1,), (0, 1)))) == 1_680_000


def test_a_dynamic_tree_is_another_one_in_each_context() -> None:
    """Two nodes: in the easy context 0 and 0.0, 1 + 0.9 + 0.72; in the hard one 0 and 1, 1 + 0.4 + 0.2."""
    assert expected_ppm(profile_of((1, EASY)), dynamic(3, 1, 2)) == 2_620_000
    assert expected_ppm(profile_of((1, HARD)), dynamic(3, 1, 2)) == 1_600_000
    both = profile_of((3, EASY), (1, HARD))
    assert expected_ppm(both, dynamic(3, 1, 2)) == int(4e6 / (3 / 2.62 + 1 / 1.6))


@pytest.mark.parametrize("tree", [dynamic(9, 2, 2), dynamic(4, 2, 1), dynamic(5, 1, 2), static_tree(STATIC_PATHS)])
def test_agrees_with_simulation(tree: Tree) -> None:
    """Steps of the runtime's growth, whose drafter gives the model's probabilities, and a base that draws from them."""
    contexts = ((30_000, EASY), (20_000, HARD))
    random_ = random.Random(7)
    steps = 0
    for tokens, levels in contexts:
        paths, committed = _grown(levels, tree), 0
        while committed < tokens:
            committed += 1 + _accepted(levels, paths, random_)
            steps += 1
    assert 50_000 / steps == pytest.approx(expected_ppm(profile_of(*contexts), tree) / 1e6, rel=0.02)


def _accepted(levels: tuple[tuple[int, ...], ...], paths: set[tuple[int, ...]], random_: random.Random) -> int:
    path: tuple[int, ...] = ()
    while len(path) < len(levels):
        draw, ends = random_.randrange(NODES), list(accumulate(levels[len(path)]))
        rank = bisect_right(ends, draw)
        if rank == len(ends) or (*path, rank) not in paths:
            break
        path = (*path, rank)
    return len(path)


def _grown(levels: tuple[tuple[int, ...], ...], tree: Tree) -> set[tuple[int, ...]]:
    """Return the paths of a tree as the runtime grows it; a token is the path to it, in base 10 with a leading 1."""
    growth, k = growth_of(tree, 1, torch.float32, torch.device("cpu"), max(1, sum(fed_rows(tree)))), tree.top_k
    ranks = torch.arange(k).unsqueeze(0)

    def candidates(tokens: torch.Tensor, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
        own = [*(levels[depth] if depth < len(levels) else ()), *[0] * k][:k]
        scores = (torch.tensor([own], dtype=torch.float32) / NODES).clamp(min=1e-9).log()
        return tokens.reshape(-1, 1) * 10 + ranks, scores.expand(tokens.numel(), -1)

    level = growth.start(torch.tensor([1]), *candidates(torch.tensor([1]), 0))
    while level is not None:
        level = growth.grow(level, *candidates(level.tokens, level.depth + 1))
    tokens, _ = growth.finish()
    return {tuple(int(digit) for digit in str(token)[1:]) for token in tokens[0].tolist()}


def test_agrees_with_the_sum_over_all_outcomes() -> None:
    """E of a static tree as a sum over every sequence of ranks that the base may choose."""
    levels, tree = HARD, static_tree(((0,), (1,), (0, 0), (1, 1), (0, 0, 1)))
    expected = 0.0
    for outcome in product(range(3), repeat=3):  # rank 2: none of the children
        probability = 1.0
        for depth, rank in enumerate(outcome):
            rates = levels[depth]
            probability *= (rates[rank] if rank < 2 else NODES - sum(rates)) / NODES
        accepted = next((n for n in range(3) if outcome[: n + 1] not in tree.paths), 3)  # type: ignore[operator]
        expected += probability * (1 + accepted)
    assert expected_ppm(profile_of((1, levels)), tree) == pytest.approx(expected * 1e6, abs=2)


rates = st.lists(st.integers(0, 300), min_size=1, max_size=3).map(lambda r: tuple(sorted(r, reverse=True)))
tables = st.lists(rates, min_size=1, max_size=4).map(tuple)


@settings(deadline=None)
@given(tables, st.integers(2, 40), st.integers(0, 5), st.integers(1, 4))
def test_grows_with_every_number_of_the_tree(
    levels: tuple[tuple[int, ...], ...], total_token: int, depth: int, top_k: int
) -> None:
    profile, tree = profile_of((1, levels)), dynamic(total_token, depth, top_k)
    least = expected_ppm(profile, tree)
    assert least >= 10**6
    for larger in (replace(tree, total_token=total_token + 1), replace(tree, depth=depth + 1)):
        assert expected_ppm(profile, larger) >= least
    assert expected_ppm(profile, replace(tree, top_k=top_k + 1)) >= least


@settings(deadline=None)
@given(tables, st.data())
def test_grows_with_every_probability(levels: tuple[tuple[int, ...], ...], data: st.DataObject) -> None:
    depth = data.draw(st.integers(0, len(levels) - 1))
    rank = data.draw(st.integers(0, len(levels[depth]) - 1))
    raised = [list(level) for level in levels]
    raised[depth][rank] += 50
    tree = data.draw(st.sampled_from([dynamic(7, 2, 2), dynamic(4, 2, 1), static_tree(STATIC_PATHS)]))
    better = profile_of((1, tuple(map(tuple, raised))))
    assert expected_ppm(better, tree) >= expected_ppm(profile_of((1, levels)), tree)
