"""Finds the one optimal answer of a problem and proves it: what the rest of the planner calls.

Objectives in lexicographic order, each proven optimal and then fixed:

1. the goal of the problem                                         :mod:`planner.solver.goal`
2. the step time                                                   :mod:`planner.solver.exact_step`, or within a gap
                                                                   :mod:`planner.solver.near_step`
   with an earlier plan: within a margin the fewest moved bytes    :mod:`planner.solver.moved_bytes`
3. where the problem says so, of all answers nearly as fast: the  :mod:`planner.solver.simplest`
   devices in use; then, without an earlier plan, runs of layers;
   then the step time
4. of answers that are equally fast: the number of stages; the     :mod:`planner.solver.ties`
   least free memory of a device in use, maximised; the step time;
   an order over groups and choices, stages, and quantities

So there is one answer, and it depends on the problem alone, never on luck or on the settings.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from planner.errors import NotProvenError
from planner.integers import PS_PER_NS
from planner.solver import limits
from planner.solver.earlier import Earlier
from planner.solver.exact_step import exact_step
from planner.solver.feasible.roomy import roomy
from planner.solver.goal import settle_goal
from planner.solver.minimise import Infeasible, Optimum, Settings, Spent
from planner.solver.model import Model
from planner.solver.moved_bytes import moved_bytes
from planner.solver.near_step import near_step
from planner.solver.past_limit import next_gap_ppm
from planner.solver.problem import Answer, Problem
from planner.solver.problem_bounds import least_bytes, most_ps, room_bytes, timeless
from planner.solver.search import Goal, Progress, Space, space_of
from planner.solver.simplest import fewest_devices, fewest_runs
from planner.solver.solution import chosen
from planner.solver.ties import Near, longer_by, settle_ties


@dataclass(frozen=True, kw_only=True, slots=True)
class Simplicity:
    """Bounds of what makes an answer simple; those of the answer itself where the search ended with its proof."""

    devices: int
    """No answer that is fast enough has fewer devices in use."""
    runs: int | None
    """None of those with as few devices has fewer runs of layers; None: an earlier answer is kept instead."""
    step_ns: int
    """None of those with as few devices and runs takes less."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeastStep:
    """The step time of the fastest answer, and the search up to there: ``settle`` goes on with it."""

    least_ns: int
    bound_ns: int
    """Proven of every answer: ``least_ns``, or less where a gap was accepted."""
    gap_ppm: int
    """The gap that was accepted."""
    space: Space
    progress: Progress
    model: Model
    """With a solution that takes so long."""
    solve_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Solved:
    """An answer and its proof."""

    answer: Answer
    objective_ns: int
    """Step time of the answer, exactly so unless a gap was accepted; then at most."""
    least_ns: int
    """Step time of the fastest answer that was found; the answer takes longer where that makes it simpler."""
    bound_ns: int
    """Proven of every answer: ``least_ns``, or less where a gap was accepted."""
    simplicity: Simplicity | None
    """Proven of the simplest answers; None where none was asked for, or a gap was accepted."""
    optima: tuple[Optimum, ...]
    """All objectives, in the order in which they were settled."""
    solve_s: float
    gap_ppm: int = 0
    """The gap that was accepted."""

    @property
    def is_simplest(self) -> bool:
        """Tell whether the search was for the fewest devices in use, before all else, of what is fast enough."""
        return self.simplicity is not None and self.simplicity.runs is not None


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
    return _found(problem, settings, lambda space, progress: _solve(space, progress, keep))


def solve_nearly(problem: Problem, settings: Settings) -> Solved | None:
    """Return what ``solve`` does; past the limit, the answer for the least of GAPS_PPM that is likely to be proven."""
    return _found(problem, settings, _nearly)


def least_step(problem: Problem, settings: Settings) -> LeastStep | None:
    """Return the step time of what ``solve`` does, in about half its time; None and NotProvenError as there."""
    return _found(problem, settings, _step)


def settle(step: LeastStep) -> Solved:
    """Return what ``solve`` does, given its step time; once for each. Raise NotProvenError past the limit."""
    start = time.perf_counter()
    return replace(_rest(step, None), solve_s=step.solve_s + time.perf_counter() - start)


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


def takes_longer(problem: Problem, step_ns: int, settings: Settings) -> bool:
    """Tell whether no answer takes at most ``step_ns``; raise NotProvenError past the limit.

    That is often proven where the least step is not: what is searched for the least has all slower answers too.
    """
    assert problem.goal == "time"
    free = space_of(problem, Goal())
    if free.least > step_ns or not free.within(step_ns).possible:
        return True
    space = free.priced()
    restriction = space.within(step_ns)
    if space.least > step_ns or not restriction.possible:
        return True
    return not Progress(settings=settings, optima=[]).has_answer(space.model(restriction, step_ns), "step time")


def fits_counted(problem: Problem) -> bool | None:
    """Tell the same as far as counting equal devices and one greedy packing do; None where they do not."""
    if least_bytes(problem) > room_bytes(problem):
        return False
    try:
        return True if roomy(problem) else None
    except Infeasible:
        return False


def _may_be_slow(problem: Problem) -> bool:
    """Tell whether there may be answers that take longer than any step time in the model."""
    return most_ps(problem) > PS_PER_NS * limits.MOST_NS


_Found = TypeVar("_Found", Solved, LeastStep)


def _found(problem: Problem, settings: Settings, search: Callable[[Space, Progress], _Found]) -> _Found | None:
    """Settle the goal, and return what ``search`` finds then; None where nothing fits."""
    if least_bytes(problem) > room_bytes(problem):
        return None
    start = time.perf_counter()
    try:
        progress = Progress(settings=settings, optima=[])
        found = search(space_of(problem, settle_goal(progress, problem)), progress)
    except Infeasible:
        _refuse_slow(problem, settings)
        return None
    return replace(found, solve_s=time.perf_counter() - start)


def _nearly(space: Space, progress: Progress) -> Solved:
    """Solve, and past the limit solve again with the least gap of the ladder that exceeds the one reached enough."""
    settings, goal_optima = progress.settings, list(progress.optima)
    try:
        return _solve(space, progress, None)
    except NotProvenError as error:
        gap_ppm = next_gap_ppm(1.0 if error.gap is None else error.gap, settings.gap_ppm)
        if gap_ppm is None:
            raise
        return _solve(space, Progress(settings=replace(settings, gap_ppm=gap_ppm), optima=goal_optima), None)


def _solve(space: Space, progress: Progress, keep: Keep | None) -> Solved:
    return _rest(_step(space, progress), keep)


def _step(space: Space, progress: Progress) -> LeastStep:
    """Settle the step time."""
    progress.exclude(space.least)
    if progress.settings.gap_ppm:
        space = space.priced()  # the answer within a gap depends on the bounds
        progress.exclude(space.least)
        model, step = near_step(space, progress)
    else:
        model, step = exact_step(space, progress)
    return LeastStep(
        least_ns=step.value,
        bound_ns=step.bound,
        gap_ppm=progress.settings.gap_ppm,
        space=space,
        progress=progress,
        model=model,
    )


def _rest(step: LeastStep, keep: Keep | None) -> Solved:
    """Settle all that the step time leaves open."""
    progress = step.progress
    progress.spent = Spent()
    try:
        near, fastest_ns = _near(step, keep)
        answer, step_ns = settle_ties(progress, near.equally_fast(fastest_ns))
    except NotProvenError as error:
        raise NotProvenError(str(error), objective_ns=step.least_ns, bound_ns=step.bound_ns) from error
    return Solved(
        answer=answer,
        objective_ns=step_ns,
        least_ns=step.least_ns,
        bound_ns=step.bound_ns,
        simplicity=_simplicity(near, keep) if step.space.problem.simplify_ppm and not step.gap_ppm else None,
        optima=tuple(progress.optima),
        solve_s=0.0,
        gap_ppm=step.gap_ppm,
    )


def _simplicity(near: Near, keep: Keep | None) -> Simplicity:
    runs = near.runs_bound if keep is None else None
    return Simplicity(devices=near.devices_bound, runs=runs, step_ns=near.least_ns)


def _near(step: LeastStep, keep: Keep | None) -> tuple[Near, int]:
    """Return the answers from which ties are left to be broken, and the least step time among them.

    Searches that may end before their proof are on what depends on the problem alone: whether memory was priced for the
    step time does not.
    """
    space, progress, model, problem = step.space, step.progress, step.model, step.space.problem
    if problem.simplify_ppm and keep is None and not progress.settings.gap_ppm:
        model = _same_fastest(space, progress, model)
    if len(problem.groups) <= limits.MOST_PRICED:
        space = space.priced()
    ppm = max(problem.simplify_ppm, keep.within_ppm if keep else 0)
    most_ns = longer_by(step.least_ns, max(ppm, problem.tie_ppm))
    # Within a gap little is proven: groups and choices stay as they were found.
    restriction = chosen(model) if progress.settings.gap_ppm else space.within(most_ns)
    near = Near(
        space=space,
        restriction=restriction,
        conditions=(),
        least_ns=step.bound_ns,
        most_ns=most_ns,
        placed=keep is not None,
    )
    if keep is not None:
        near = _kept(progress, near, keep)
    if problem.simplify_ppm:
        in_use = sum(map(model.value, model.use.used)) if keep is None else None
        near, fewest = fewest_devices(progress, near, in_use)
        if keep is None:
            is_proven = step.bound_ns == step.least_ns == model.value(model.step_ns)
            return fewest_runs(progress, near, model if is_proven and in_use == fewest else None)
    if not ppm and keep is None:
        return replace(near, known=lambda: chosen(_same_fastest(step.space, progress, step.model))), step.least_ns
    fastest = near.model()
    fastest_ns = progress.minimise(fastest, fastest.step_ns, what="step time").value
    return replace(near, least_ns=fastest_ns), fastest_ns


def _same_fastest(space: Space, progress: Progress, model: Model) -> Model:
    """Return a model with the fastest answer that a search with one worker and seed 0 finds, whatever the settings.

    What is simpler than it may be sought within a budget only, so that the plan may depend on which one it is.
    ``model``: with the one that the search for the step time found, with the settings of ``progress``.
    """
    settings = replace(progress.settings, workers=1, seed=0)
    if settings == progress.settings:
        return model
    again = Progress(settings=settings, optima=[])
    again.exclude(space.least)
    return exact_step(space, again)[0]


def _kept(progress: Progress, near: Near, keep: Keep) -> Near:
    """Return the answers that move the fewest bytes."""
    model = near.model()
    moved = moved_bytes(model, keep.earlier)
    least = progress.minimise(model, moved, what="moved bytes").value
    return near.where(lambda other: other.model.add(moved_bytes(other, keep.earlier) <= least))


def _refuse_slow(problem: Problem, settings: Settings) -> None:
    """Raise NotProvenError where something fits, but takes longer than any step time in the model."""
    if _may_be_slow(problem) and fits(problem, settings):
        raise NotProvenError(
            f"step time: found none of at most {limits.MOST_NS / 1e9:.0f} s, the longest that is counted: give faster "
            "devices, or a smaller --batch or --context",
            bound_ns=limits.MOST_NS,
        ) from None
