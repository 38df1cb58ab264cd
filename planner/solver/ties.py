"""Breaks ties: settles objectives one after another, so that of equally good answers always the same one is left.

Two answers are equally fast as long as the rounding of their times could have made the difference. Of these the one
with the fewest stages is taken, then the one with the most free memory on the fullest device in use, then the faster
one; then comes a total order over groups, choices, stages and quantities.

A search that may end before its proof is always the same, on a model that depends on the problem alone.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ortools.sat.python import cp_model

from planner.errors import NotProvenError
from planner.solver import limits
from planner.solver.minimise import FIND_SAME, PROVE, best_within, first_in_order
from planner.solver.model import Model
from planner.solver.problem import Answer
from planner.solver.restriction import Restriction
from planner.solver.search import Progress, Space
from planner.solver.solution import Ranged, answer, chosen, order_variables, quantities, structure

Condition = Callable[[Model], object]
"""Adds to a model what its solutions must satisfy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Near:
    """The answers that are as good as all objectives demand which are settled so far."""

    space: Space
    restriction: Restriction
    """Groups and choices that they may use."""
    conditions: tuple[Condition, ...]
    least_ns: int
    """None takes less."""
    most_ns: int
    """None takes longer."""
    tie_limit: float = limits.TIE_LIMIT
    """Budget for breaking ties by free memory, and then again by quantities, which have limits.SETTLE_LIMIT at most."""
    placed: bool = False
    """They are compared with an earlier answer, in which hosts have their names."""
    devices_bound: int = 1
    """None has fewer devices in use."""
    runs_bound: int = 1
    """None has fewer runs of layers."""
    known: Callable[[], Restriction] | None = None
    """Returns groups and choices of a fastest answer that is known, for where a search within its budget finds none."""

    def model(self, restriction: Restriction | None = None) -> Model:
        """Return the model of these answers; ``restriction``: of those that use only its groups and choices."""
        build = self.space.placed_model if self.placed else self.space.model
        model = build(restriction or self.restriction)
        model.model.add_linear_constraint(model.step_ns, self.least_ns, self.most_ns)
        for condition in self.conditions:
            condition(model)
        return model

    def where(self, condition: Condition) -> "Near":
        """Return those that satisfy one condition more."""
        return replace(self, conditions=(*self.conditions, condition))

    def equally_fast(self, step_ns: int) -> "Near":
        """Return those that take ``step_ns`` but for the rounding of their times."""
        near = self.where(lambda model: model.model.add(model.step_ns - model.rounding_ns <= step_ns))
        most_ns = min(self.most_ns, longer_by(step_ns, self.space.problem.tie_ppm))
        restriction = self.restriction.kept_by(self.space.within(most_ns))
        return replace(near, restriction=restriction, most_ns=most_ns)


def longer_by(step_ns: int, ppm: int) -> int:
    """Return a step time that is longer by so much, in parts per million."""
    return step_ns + step_ns * ppm // 10**6


def settle_ties(progress: Progress, near: Near) -> tuple[Answer, int]:
    """Settle what is left open among answers that are equally fast; return the answer and its step time.

    Where memory is nearly full, proving an order of free memory and quantities is a hard number partitioning problem,
    and it does not change the step time: both have a budget.
    """
    model = near.model()
    free = model.memory.free
    ranged = [
        Ranged(sum(model.stages.runs), 0, len(model.problem.devices)),
        Ranged(-free, -max(free.proto.domain), 0),
        Ranged(model.step_ns, near.least_ns, near.most_ns),
    ]
    try:
        _, least_free, step_ns = minimise_in_order(progress, model, ranged, what="tie", budget=near.tie_limit)
    except NotProvenError:  # nothing was found: any answer is as fast
        if near.known is not None:
            return settle_ties(progress, replace(near, restriction=near.known(), known=None))
        least_free, step_ns = 0, progress.minimise(model, model.step_ns, what="any answer", mode=FIND_SAME).value
    minimise_in_order(progress, model, structure(model), what="order", budget=limits.TIE_LIMIT)
    small = near.model(chosen(model))
    small.model.add(small.step_ns <= step_ns)
    small.model.add(small.memory.free >= -least_free)
    small.model.add_bool_and(small.stages.runs)
    budget = min(near.tie_limit, limits.SETTLE_LIMIT)
    largest_first(progress, small, [*order_variables(small), *quantities(small)], budget)
    return answer(small), step_ns


def largest_first(progress: Progress, model: Model, variables: Sequence[cp_model.IntVar], budget: float) -> None:
    """Find the solution in which the variables, in order, are largest; past the budget always the same one.

    Variables are tried in order, the largest value first, so the first solution is the lexicographic maximum.
    """
    model.model.add_decision_strategy(variables, cp_model.CHOOSE_FIRST, cp_model.SELECT_MAX_VALUE)
    try:
        progress.minimise(model, 0, what="order", mode=first_in_order(budget))
    except NotProvenError:
        progress.minimise(model, model.step_ns, what="any answer", mode=FIND_SAME)


def minimise_in_order(
    progress: Progress, model: Model, ranged: Iterable[Ranged], *, what: str, budget: float = math.inf
) -> list[int]:
    """Minimise expressions lexicographically, fix each and return their values.

    Past the budget the rest stays as the search has left it.
    """
    values: list[int] = []
    for pack in _packs(ranged):
        shifts = [sum(map(_bits, pack[number + 1 :])) for number in range(len(pack))]
        digits = sum((item.expression - item.least) * (1 << n) for n, item in zip(shifts, pack, strict=True))
        mode = best_within(budget) if math.isfinite(budget) else PROVE
        try:
            optimum = progress.minimise(model, digits, what=what, mode=mode)
        except NotProvenError:
            if math.isinf(budget) or not model.values:
                raise
            break
        for shift, item in zip(shifts, pack, strict=True):
            values.append(item.least + (optimum.value >> shift) % (1 << _bits(item)))
            model.model.add(item.expression == values[-1])
        budget -= optimum.work
        if budget <= 0:
            break
    return values


def _bits(ranged: Ranged) -> int:
    return (ranged.most - ranged.least).bit_length()


def _packs(ranged: Iterable[Ranged]) -> Iterator[Sequence[Ranged]]:
    """Yield consecutive expressions, as many together as are digits of one number of limits.PACK_BITS bits."""
    pack: list[Ranged] = []
    for item in ranged:
        if pack and sum(map(_bits, pack)) + _bits(item) > limits.PACK_BITS:
            yield pack
            pack = []
        pack.append(item)
    if pack:
        yield pack
