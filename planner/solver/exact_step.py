"""Finds the structure of the least step time, and proves that no other is as good.

What :class:`planner.solver.search.Space` shows to be in no answer as good as a known one is left out of the search.
What is nearest to the bounds is searched first: it usually has the optimum already. Then one proof is left: that with
other groups or choices nothing is as good.
"""

import math
from contextlib import suppress
from dataclasses import replace

from planner.errors import NotProvenError
from planner.solver import limits
from planner.solver.feasible.roomy import roomy
from planner.solver.minimise import FROM_BELOW, Infeasible, Optimum, best_within, within_gap
from planner.solver.model import Model
from planner.solver.search import Progress, Space
from planner.solver.solution import chosen, forbid, structure_flags
from planner.solver.ties import maximise_in_order


def exact_step(space: Space, progress: Progress) -> tuple[Model, Optimum]:
    """Return a model whose solution has the structure of the answer, and the least step time; or raise Infeasible.

    At first under bounds that ignore memory, within a budget of the order of what it costs to price it; where that does
    not end with a proof, once more under bounds in which memory has its price.
    """
    if not space.is_priced:
        progress.budget = limits.UNPRICED_LIMIT * len(space.problem.groups) - sum(o.work for o in progress.optima)
        with suppress(NotProvenError, Infeasible):
            return _proven_step(space, progress)
        progress.budget = math.inf
        space = space.priced()
        progress.exclude(space.problem, space.least)
    return _proven_step(space, progress)


def _proven_step(space: Space, progress: Progress) -> tuple[Model, Optimum]:
    model, best = first_step(space, progress)
    while (rival := _rival(space, progress, model, best.value)) is not None:
        known = best.value
        model = space.model(space.within(rival // model.ranks), rival)
        best = least_step(space, progress, model)
        if best.value == known:  # the rival was as good, and none is better
            progress.budget = math.inf
            space = space.priced()
            model = space.model(space.within(known // model.ranks), known)
            maximise_in_order(progress, model, [(flag, 1) for flag in structure_flags(model)])
            break
    progress.budget = math.inf
    step_ns = model.value(model.step_ns)
    return model, progress.settle_step(step_ns, step_ns)


def first_step(space: Space, progress: Progress) -> tuple[Model, Optimum]:
    """Return the best of what is nearest to the bounds: usually the answer, and found quickly as it is little."""
    for limit_ns in space.limits_ns(limits.FIRST_LOOK):
        restriction = space.within(limit_ns)
        if restriction.possible:
            model = space.model(restriction)
            try:
                return model, least_step(space, progress, model, limit_ns)
            except Infeasible:
                if not space.is_priced:
                    raise  # nothing so near the bounds: they are too low
            except NotProvenError as error:
                if not space.is_priced:
                    raise
                if error.objective_ns is not None or (packing := packed_step(space, progress)) is None:
                    raise
                # A gap that is asked for is measured against the bounds alone: it is, before anything is searched.
                progress.excluded_ns = int(space.least)
                raise progress.unproven(packing.value(packing.step_ns)) from error
        progress.exclude(space.problem, limit_ns)
    raise Infeasible


def packed_step(space: Space, progress: Progress) -> Model | None:
    """Return the best that is soon found on the groups of a greedy packing; None where nothing is."""
    structure = roomy(space.problem)
    if structure is None:
        return None
    model = space.model(structure)
    try:
        mode = best_within(limits.PACKED_LIMIT)
        progress.minimise(model, model.ranked_step, what="packed step time", mode=mode)
    except (Infeasible, NotProvenError):
        return None
    return model


def least_step(space: Space, progress: Progress, model: Model, searched_ns: float = 0) -> Optimum:
    """Return the best of a model that has all answers of at most ``searched_ns``; note what that excludes."""
    try:
        optimum = _ranked_step(progress, model)
    except NotProvenError as error:
        progress.exclude(space.problem, min(searched_ns, (error.bound_ns or 0) // model.ranks))
        raise progress.unproven(error.objective_ns and error.objective_ns // model.ranks) from error
    progress.exclude(space.problem, min(searched_ns, optimum.bound // model.ranks))
    return optimum


def _ranked_step(progress: Progress, model: Model) -> Optimum:
    """Minimise the ranked step: shortly from below, then by a search that also finds what is far from the bounds."""
    settings, what = progress.settings, "ranked step time"
    if not settings.gap_ppm:
        quick = replace(settings, limit=min(limits.QUICK_LIMIT, settings.limit), workers=1)
        with suppress(NotProvenError):
            return progress.minimise(model, model.ranked_step, what=what, mode=FROM_BELOW, settings=quick)
    return progress.minimise(model, model.ranked_step, what=what, mode=within_gap(settings.gap_ppm))


def _rival(space: Space, progress: Progress, model: Model, ranked: int) -> int | None:
    """Return the ranked step of an answer with another structure that is as good as the best, if there is one."""
    rival = space.model(space.within(ranked // model.ranks), ranked)
    forbid(rival, chosen(model))
    if progress.has_answer(rival, "another answer", known_ns=ranked // model.ranks):
        return progress.optima[-1].value
    return None
