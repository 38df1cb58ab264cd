"""Finds the least step time, and proves that nothing takes less.

What :class:`planner.solver.search.Space` shows to be in no answer as good as a known one is left out of the search.
What is nearest to the bounds is searched first: it usually has the optimum already. Then one proof is left: that with
other groups or choices nothing is faster.
"""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from planner.errors import NotProvenError
from planner.solver import limits
from planner.solver.feasible.roomy import roomy
from planner.solver.minimise import FROM_BELOW, Infeasible, Optimum, best_within, within_gap
from planner.solver.model import Model
from planner.solver.search import Progress, Space


def exact_step(space: Space, progress: Progress) -> tuple[Model, Optimum]:
    """Return a model with a solution that takes least, and that step time; or raise Infeasible.

    At first under bounds that ignore memory, within a budget of the order of what it costs to price it; where that does
    not end with a proof, once more under bounds in which memory has its price.
    """
    if not space.is_priced:
        progress.until = limits.UNPRICED_LIMIT * len(space.problem.groups)
        with suppress(NotProvenError, Infeasible):
            return _proven_step(space, progress)
        progress.until = math.inf
        space = space.priced()
        progress.exclude(space.least)
    return _proven_step(space, progress)


def _proven_step(space: Space, progress: Progress) -> tuple[Model, Optimum]:
    model, best = first_step(space, progress)
    while progress.excluded_ns < best.value:
        try:
            faster = space.model(space.within(best.value - 1), best.value - 1)
            model, best = faster, least_step(progress, faster, searched_ns=best.value, known_ns=best.value)
        except Infeasible:
            progress.exclude(best.value)
    progress.until = math.inf
    return model, progress.settle_step(best.value, best.value)


def first_step(space: Space, progress: Progress) -> tuple[Model, Optimum]:
    """Return the best of what is nearest to the bounds: usually the answer, and found quickly as it is little."""
    packing: Model | None = None
    known_ns = progress.settings.known_ns
    for limit_ns in _limits_ns(space, known_ns):
        if math.isinf(limit_ns) and space.bounds is not None and space.is_priced:
            packing = packed_step(space, progress)
            limit_ns = math.inf if packing is None else packing.value(packing.step_ns) + 1
        restriction = space.within(limit_ns)
        if restriction.possible:
            model = space.model(restriction, known_ns)
            try:
                return model, least_step(progress, model, searched_ns=limit_ns, known_ns=known_ns)
            except Infeasible:
                if not space.is_priced and known_ns is None:
                    raise  # nothing so near the bounds: they are too low
            except NotProvenError as error:
                if not space.is_priced:
                    raise
                packing = packing or packed_step(space, progress)
                if error.objective_ns is not None or packing is None:
                    raise
                # A gap that is asked for is measured against the bounds alone: it is, before anything is searched.
                progress.excluded_ns = int(space.least)
                raise progress.unproven(packing.value(packing.step_ns)) from error
        progress.exclude(limit_ns)
    assert known_ns is None or not space.is_priced, "an answer that takes no longer exists"
    raise Infeasible


def _limits_ns(space: Space, known_ns: int | None) -> Iterator[float]:
    """Yield the step times up to which groups and choices are searched in turn; ``known_ns`` is the last."""
    for limit_ns in space.limits_ns(limits.FIRST_LOOK):
        if known_ns is not None and limit_ns > known_ns:
            yield known_ns
            return
        yield limit_ns


def packed_step(space: Space, progress: Progress) -> Model | None:
    """Return the best that is soon found on the groups of a greedy packing; None where nothing is."""
    structure = roomy(space.problem)
    if structure is None:
        return None
    model = space.model(structure)
    try:
        mode = best_within(limits.PACKED_LIMIT)
        progress.minimise(model, model.step_ns, what="packed step time", mode=mode)
    except (Infeasible, NotProvenError):
        return None
    return model


def least_step(progress: Progress, model: Model, *, searched_ns: float, known_ns: int | None = None) -> Optimum:
    """Return the least step of a model that has all answers of less than ``searched_ns``; note what that excludes.

    ``known_ns``: step time of another answer, for the refusal past the limit.
    """
    try:
        optimum = _least_step(progress, model)
    except NotProvenError as error:
        progress.exclude(min(searched_ns, error.bound_ns or 0))
        raise progress.unproven(error.objective_ns or known_ns) from error
    progress.exclude(min(searched_ns, optimum.bound))
    return optimum


def _least_step(progress: Progress, model: Model) -> Optimum:
    """Minimise the step time: shortly from below, then by a search that also finds what is far from the bounds."""
    settings, what = progress.settings, "step time"
    if not settings.gap_ppm and len(model.model.proto.variables) <= limits.QUICK_VARIABLES:
        quick = replace(settings, limit=min(limits.QUICK_LIMIT, settings.limit), workers=1)
        with suppress(NotProvenError):
            return progress.minimise(model, model.step_ns, what=what, mode=FROM_BELOW, settings=quick)
    return progress.minimise(model, model.step_ns, what=what, mode=within_gap(settings.gap_ppm))
