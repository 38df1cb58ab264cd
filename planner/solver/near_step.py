"""Finds a step time within the gap that a request accepts."""

import math

from planner.solver.exact_step import first_step, packed_step
from planner.solver.minimise import Infeasible, Optimum
from planner.solver.model import Model
from planner.solver.search import Progress, Space


def near_step(space: Space, progress: Progress) -> tuple[Model, Optimum]:
    """Return a model whose solution is within the gap, and its step time with the bound that is proven."""
    if math.isinf(space.least):
        raise Infeasible
    model = packed_step(space, progress)
    if model is None or not _is_near(progress, model.value(model.step_ns)):
        model = _improved(space, progress, first_step(space, progress)[0])
    value = model.value(model.step_ns)
    return model, progress.settle_step(value, min(value, progress.excluded_ns))


def _is_near(progress: Progress, value_ns: int) -> bool:
    """Tell whether a step time is within the gap of what is excluded."""
    return value_ns - value_ns * progress.settings.gap_ppm // 10**6 <= progress.excluded_ns


def _improved(space: Space, progress: Progress, model: Model) -> Model:
    """Return a solution within the gap: of what was searched already, or else of all that is as fast as needed."""
    value, gap_ppm = model.value(model.step_ns), progress.settings.gap_ppm
    searched = model.restriction
    while not _is_near(progress, value):
        target_ns = progress.excluded_ns * 10**6 // (10**6 - gap_ppm)
        for restriction in (searched, space.within(target_ns)):
            if restriction.possible:
                near = space.model(restriction)
                near.model.add(near.step_ns <= target_ns)
                if progress.has_answer(near, "an answer within the gap", fixed=True, known_ns=value):
                    return near
        progress.exclude(target_ns + 1)
    return model
