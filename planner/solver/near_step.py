"""Finds a step time within the gap that a request accepts."""

import math

from planner.solver.exact_step import first_step, packed_step
from planner.solver.minimise import Infeasible, Optimum
from planner.solver.model import Model
from planner.solver.restriction import Restriction
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
    """Return a solution within the gap: of what was searched already, or else of all that is as fast as needed.

    Each search either finds an answer in the faster half of what is between the bound and the best one, or excludes
    that half; so the number of searches is logarithmic, however small the gap.
    """
    searched = model.restriction
    while not _is_near(progress, model.value(model.step_ns)):
        value_ns = model.value(model.step_ns)
        limit_ns = max(_near_ns(progress), (progress.excluded_ns + value_ns) // 2)
        faster = _faster(space, progress, searched, limit_ns, value_ns)
        if faster is None:
            progress.exclude(limit_ns + 1)
        else:
            model = faster
    return model


def _near_ns(progress: Progress) -> int:
    """Return the most that an answer may take to be within the gap of what is excluded."""
    return progress.excluded_ns * 10**6 // (10**6 - progress.settings.gap_ppm)


def _faster(space: Space, progress: Progress, searched: Restriction, limit_ns: int, known_ns: int) -> Model | None:
    """Return a solution of at most ``limit_ns``, sought first in what was searched; None: proven that there is none."""
    for restriction in (searched, space.within(limit_ns)):
        if restriction.possible:
            model = space.model(restriction)
            model.model.add(model.step_ns <= limit_ns)
            if progress.has_answer(model, "an answer within the gap", fixed=True, known_ns=known_ns):
                return model
    return None
