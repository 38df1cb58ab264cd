"""Bounds of equal pieces: the closed form against sampled divisions, whole quanta against every division."""

import random
from itertools import product

import numpy as np
import pytest

from planner.solver.bounds.pieces import least_cost, least_cost_parts, least_quanta, rates_ns


def cost(parts: np.ndarray, rates: np.ndarray, prices: np.ndarray) -> float:
    """Return the time of the slowest member plus the price of all pieces."""
    return float((rates * parts).max() + prices @ parts)


@pytest.mark.parametrize("seed", range(20))
def test_no_division_is_below_the_closed_form_and_its_own_division_attains_it(seed: int) -> None:
    rng = random.Random(seed)
    members = rng.randint(1, 4)
    rates = rates_ns([rng.randint(1, 9) * 1000 for _ in range(members)])
    prices = np.array([rng.choice((0.0, rng.uniform(0, 5))) for _ in range(members)])
    least = least_cost(rates, prices)
    assert cost(least_cost_parts(rates, prices), rates, prices) == pytest.approx(least)
    for weights in product(range(5), repeat=members):
        if any(weights):
            assert cost(np.array(weights) / sum(weights), rates, prices) >= least * (1 - 1e-12)


def test_members_that_take_no_time_get_all_pieces_if_memory_is_free() -> None:
    rates = rates_ns([0, 1000])
    assert least_cost(rates, np.zeros(2)) == pytest.approx(0, abs=1e-11)
    assert least_cost_parts(rates, np.zeros(2)) == pytest.approx([1, 0], abs=1e-11)


@pytest.mark.parametrize("seed", range(20))
def test_whole_pieces_in_whole_quanta_are_exact(seed: int) -> None:
    rng = random.Random(seed)
    piece_ps = tuple(sorted(rng.randint(100, 5000) for _ in range(rng.randint(1, 3))))
    quantum_ns = rng.choice((1, 4))
    counts = tuple(range(1, 9))
    for count, quanta in zip(counts, least_quanta(counts, piece_ps, quantum_ns), strict=True):
        slowest = min(
            max(pieces * ps for pieces, ps in zip(division, piece_ps, strict=True))
            for division in product(range(count + 1), repeat=len(piece_ps))
            if sum(division) == count
        )
        assert quanta == -(-slowest // (1000 * quantum_ns))


def test_pieces_that_take_no_time_need_no_quantum() -> None:
    assert least_quanta((1, 100), (0, 500), 1) == (0, 0)
