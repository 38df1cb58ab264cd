"""The transport problem against enumeration of all solutions."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from planner.solver.transport import transport


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[int], list[int], list[list[int]]]:
    """Draw supplies and demands of equal sums, at most 5 items, and costs as large as those of bytes."""
    sent = draw(st.lists(st.lists(st.integers(0, 1), min_size=2, max_size=2), min_size=1, max_size=3))
    supplies, demands = [sum(row) for row in sent], [sum(column) for column in zip(*sent, strict=True)]
    costs = st.lists(st.lists(st.integers(0, 1 << 40), min_size=2, max_size=2), min_size=len(sent), max_size=len(sent))
    return supplies, demands, draw(costs)


def total(sent: list[list[int]], costs: list[list[int]]) -> int:
    """Return the cost of a solution."""
    return sum(n * cost for row, prices in zip(sent, costs, strict=True) for n, cost in zip(row, prices, strict=True))


@given(problems())
def test_no_solution_costs_less(problem: tuple[list[int], list[int], list[list[int]]]) -> None:
    supplies, demands, costs = problem
    sent = transport(supplies, demands, costs)
    assert [sum(row) for row in sent] == supplies
    assert [sum(column) for column in zip(*sent, strict=True)] == demands
    every = (
        [[first, supply - first] for first, supply in zip(firsts, supplies, strict=True)]
        for firsts in product(*(range(supply + 1) for supply in supplies))
        if sum(firsts) == demands[0]
    )
    assert total(sent, costs) == min(total(solution, costs) for solution in every)
