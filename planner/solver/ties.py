"""Breaks ties: settles variables one after another, so that of equally good answers always the same one is left."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress

from planner.errors import NotProvenError
from planner.solver import limits
from planner.solver.minimise import FIND_SAME, SAME, best_within
from planner.solver.model import Model
from planner.solver.problem import Answer
from planner.solver.search import Progress
from planner.solver.solution import Ranged, answer, order_variables, quantities


def settle_rest(progress: Progress, model: Model) -> Answer:
    """Settle all that a structure leaves open: order of stages, free memory, quantities; return the answer.

    The budget of the quantities is limits.SETTLE_LIMIT: where memory is nearly full, proving their lexicographic
    maximum is a hard number partitioning problem, and it does not change the step time. The search is always the same.
    """
    progress.minimise(model, model.step_ns, what="any answer", mode=FIND_SAME)  # a hint for all that follows
    maximise_in_order(progress, model, order_variables(model))
    free = progress.minimise(model, -model.memory.free, what="free memory", mode=SAME)
    model.model.add(model.memory.free >= -free.value)
    maximise_in_order(progress, model, quantities(model), limits.SETTLE_LIMIT)
    return answer(model)


def maximise_in_order(progress: Progress, model: Model, variables: Iterable[Ranged], budget: float = math.inf) -> None:
    """Maximise variables lexicographically, and fix each; past the budget the rest stays as the search has left it."""
    for pack in _packs(variables):
        width = [most.bit_length() for _, most in pack]
        objective = sum((1 << sum(width[number + 1 :])) * item for number, (item, _) in enumerate(pack))
        with suppress(NotProvenError) if math.isfinite(budget) else nullcontext():
            budget -= progress.minimise(model, -objective, what="order", mode=best_within(budget)).work
        for item, _ in pack:
            model.model.add(item == model.value(item))
        if budget <= 0:
            return


def _packs(variables: Iterable[Ranged]) -> Iterator[Sequence[Ranged]]:
    """Yield consecutive variables, as many together as are digits of one number of limits.PACK_BITS bits."""
    pack: list[Ranged] = []
    for variable, most in variables:
        if pack and sum(other.bit_length() for _, other in pack) + most.bit_length() > limits.PACK_BITS:
            yield pack
            pack = []
        pack.append((variable, most))
    if pack:
        yield pack
