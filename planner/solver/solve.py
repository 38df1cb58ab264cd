"""Finds the one optimal answer of a problem and proves it: what the rest of the planner calls.

Objectives in lexicographic order, each proven optimal and then fixed:

1. the goal of the problem                                         :mod:`planner.solver.goal`
2. the step time; then the number of stages; then an order over    :mod:`planner.solver.exact_step`, or within a gap
   groups and choices                                              :mod:`planner.solver.near_step`
   with an earlier plan: within a margin the fewest moved bytes    :mod:`planner.solver.moved_bytes`
3. an order over stages; the least free memory of a device in use, :mod:`planner.solver.ties`
   maximised; a total order over quantities

So there is one answer, and it depends on the problem alone, never on luck or on the settings.
"""

import time
from dataclasses import dataclass, replace

from planner.errors import NotProvenError
from planner.integers import PS_PER_NS
from planner.solver import limits
from planner.solver.earlier import Earlier
from planner.solver.exact_step import exact_step, least_step
from planner.solver.feasible.roomy import roomy
from planner.solver.goal import settle_goal
from planner.solver.minimise import Infeasible, Optimum, Settings
from planner.solver.model import Model, most_step_ns
from planner.solver.moved_bytes import moved_bytes
from planner.solver.near_step import near_step
from planner.solver.problem import Answer, Problem
from planner.solver.problem_bounds import least_bytes, most_ps, timeless
from planner.solver.search import Goal, Progress, Space, space_of
from planner.solver.solution import chosen
from planner.solver.ties import settle_rest


@dataclass(frozen=True, kw_only=True, slots=True)
class Solved:
    """An answer and its proof."""

    answer: Answer
    objective_ns: int
    """Step time of the answer, exactly so unless a gap was accepted; then at most."""
    bound_ns: int
    """Proven of every answer: ``objective_ns``, or less where a gap was accepted."""
    optima: tuple[Optimum, ...]
    """All objectives, in the order in which they were settled."""
    solve_s: float
    gap_ppm: int = 0
    """The gap that was accepted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Keep:
    """A wish to keep an earlier answer: of those near the least step time the one that moves the fewest bytes."""

    earlier: Earlier
    within_ppm: int
    """Most by which the step time may exceed the least."""


def solve(problem: Problem, settings: Settings, keep: Keep | None = None) -> Solved | None:
    """Return the one optimal answer, or None where the solver proves that nothing fits.

    Raise NotProvenError past the limit of the settings, with the gap, and where all that fits takes longer than
    any step time in the model.
    """
    return _solved(problem, settings, keep, nearly=False)


def solve_nearly(problem: Problem, settings: Settings) -> Solved | None:
    """Return what ``solve`` does; past the limit, the answer for the least of GAPS_PPM that is likely to be proven."""
    return _solved(problem, settings, None, nearly=True)


def fits(problem: Problem, settings: Settings) -> bool:
    """Tell whether any placement exists: found, or proven that there is none; raise NotProvenError past the limit."""
    known = fits_counted(problem)
    if known is not None:
        return known
    space = space_of(timeless(problem) if _may_be_slow(problem) else problem, Goal()).priced()
    progress = Progress(settings=settings, optima=[])
    # What is near the bounds is looked at first: it is little, and usually has a placement.
    steps_ns = space.limits_ns(limits.FIRST_LOOK[-1:])
    return any(progress.has_answer(space.model(space.within(step_ns)), "feasibility") for step_ns in steps_ns)


def fits_counted(problem: Problem) -> bool | None:
    """Tell the same as far as counting equal devices and one greedy packing do; None where they do not."""
    if least_bytes(problem) > sum(problem.capacity_bytes):
        return False
    try:
        return True if roomy(problem) else None
    except Infeasible:
        return False


def _may_be_slow(problem: Problem) -> bool:
    """Tell whether there may be answers that take longer than any step time in the model."""
    return most_ps(problem) > PS_PER_NS * most_step_ns(problem)


def _solved(problem: Problem, settings: Settings, keep: Keep | None, *, nearly: bool) -> Solved | None:
    if least_bytes(problem) > sum(problem.capacity_bytes):
        return None
    start = time.perf_counter()
    try:
        progress = Progress(settings=settings, optima=[])
        space = space_of(problem, settle_goal(progress, problem))
        solved = _nearly(space, progress) if nearly else _solve(space, progress, keep)
    except Infeasible:
        _refuse_slow(problem, settings)
        return None
    return replace(solved, solve_s=time.perf_counter() - start)


def _nearly(space: Space, progress: Progress) -> Solved:
    """Solve, and past the limit solve again with the least gap of the ladder that exceeds the one reached enough."""
    settings, goal_optima = progress.settings, list(progress.optima)
    try:
        return _solve(space, progress, None)
    except NotProvenError as error:
        reached = 1.0 if error.gap is None else error.gap
        wanted_ppm = max(settings.gap_ppm, round(limits.GAP_FACTOR * reached * 10**6))
        gap_ppm = min((ppm for ppm in limits.GAPS_PPM if ppm > wanted_ppm), default=None)
        if gap_ppm is None:
            raise
        return _solve(space, Progress(settings=replace(settings, gap_ppm=gap_ppm), optima=goal_optima), None)


def _solve(space: Space, progress: Progress, keep: Keep | None) -> Solved:
    """Settle the step time, then all that its structure leaves open."""
    progress.exclude(space.problem, space.least)
    gap_ppm = progress.settings.gap_ppm
    if gap_ppm:
        space = space.priced()  # the answer within a gap depends on the bounds
        progress.exclude(space.problem, space.least)
        model, step = near_step(space, progress)
    else:
        model, step = exact_step(space, progress)
    if keep is None:
        small = space.model(chosen(model))
    else:
        small, step = _keep(space.priced(), progress, keep, step)
    small.model.add(small.step_ns <= step.value)
    small.model.add_bool_and(small.stages.runs)
    try:
        answer = settle_rest(progress, small)
    except NotProvenError as error:
        raise NotProvenError(str(error), objective_ns=step.value, bound_ns=step.bound) from error
    return Solved(
        answer=answer,
        objective_ns=step.value,
        bound_ns=step.bound,
        optima=tuple(progress.optima),
        solve_s=0.0,
        gap_ppm=gap_ppm,
    )


def _keep(space: Space, progress: Progress, keep: Keep, step: Optimum) -> tuple[Model, Optimum]:
    """Return a model of the answers with the structure that moves the fewest bytes, and their step time."""
    limit_ns = step.value + step.value * keep.within_ppm // 10**6
    model = space.placed_model(space.within(limit_ns))
    model.model.add(model.step_ns <= limit_ns)
    moved = moved_bytes(model, keep.earlier)
    least = progress.minimise(model, moved, what="moved bytes").value
    model.model.add(moved <= least)
    least_step(space, progress, model)
    small = space.placed_model(chosen(model))
    small.model.add(moved_bytes(small, keep.earlier) <= least)
    return small, replace(step, value=model.value(model.step_ns))


def _refuse_slow(problem: Problem, settings: Settings) -> None:
    """Raise NotProvenError where something fits, but takes longer than any step time in the model."""
    if _may_be_slow(problem) and fits(problem, settings):
        most_ns = most_step_ns(problem)
        raise NotProvenError(
            f"step time: found none of at most {most_ns / 1e9:.0f} s, and no longer step is told from others "
            f"among {len(problem.groups)} groups of devices: give faster devices, or a smaller --batch or "
            "--context",
            bound_ns=most_ns,
        ) from None
