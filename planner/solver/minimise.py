"""One objective of a model, minimised and proven: the only place where CP-SAT is run."""

import math
import time
from concurrent.futures import Future, wait
from dataclasses import dataclass
from threading import Thread
from typing import Protocol

from ortools.sat.python import cp_model

from planner.errors import NotProvenError
from planner.solver import limits
from planner.solver.past_limit import LONGER


class Infeasible(Exception):
    """The solver has proven that there is no solution."""


class Searched(Protocol):
    """A CP-SAT model, and the solution that was found last."""

    @property
    def model(self) -> cp_model.CpModel:
        """Variables and constraints."""

    values: list[int]
    """Value of every variable, by its index in the model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Settings of a request's search; none of them decides which optimum is found."""

    workers: int = 1
    """Threads of CP-SAT."""
    seed: int = 0
    gap_ppm: int = 0
    """Relative gap between the step time and its proven bound that is accepted."""
    limit: float = limits.DETERMINISTIC_LIMIT
    """Budget of all objectives of an answer together, in deterministic time; past it there is no answer."""
    known_ns: int | None = None
    """Step time of an answer that is known to exist: no slower one is looked for."""


@dataclass(kw_only=True, slots=True)
class Spent:
    """Work of all searches for one answer, those that found nothing included."""

    searches: float = 0.0
    """Deterministic time of the searches."""
    models: float = 0.0
    """Deterministic time that building and presolving the models is taken to be: ``limits.VARIABLE_WORK`` each."""

    @property
    def work(self) -> float:
        """Both together."""
        return self.searches + self.models


@dataclass(frozen=True, kw_only=True, slots=True)
class Mode:
    """When a search ends, and whether it may depend on the settings.

    What a search finds that ends before its proof depends on how it searches. Wherever that decides the answer, it is
    ``fixed``: one worker and seed 0 whatever the settings, so that the answer depends on the problem alone.
    """

    fixed: bool = False
    cuts: bool = True
    """Look for cutting planes. Models with few solutions are searched faster without."""
    any_solution: bool = False
    """End with the first solution. The objective only guides the proof that there is none."""
    from_below: bool = False
    """Raise the bound first: for objectives of which a solution is easy to find and the bound is hard to prove."""
    in_order: bool = False
    """Branch by the decision strategies of the model alone."""
    gap_ppm: int = 0
    """Relative gap that is accepted."""
    budget: float = math.inf
    """Deterministic time after which the best solution so far is taken, proven or not."""


PROVE = Mode()
"""End with the proven optimum, or raise NotProvenError past the limit of the settings."""

FROM_BELOW = Mode(from_below=True)
"""The proven optimum: quickly where the bounds of the problem are exact, and else hardly ever."""

SAME = Mode(fixed=True, cuts=False)
"""The proven optimum, and always the same one of several."""

SAME_OF_MANY = Mode(fixed=True)
"""The same, of a model with many solutions that are nearly as good."""

FIND = Mode(any_solution=True)
"""Any solution."""

FIND_SAME = Mode(any_solution=True, fixed=True, cuts=False)
"""Any solution, always the same."""


def first_in_order(budget: float) -> Mode:
    """Return the mode that finds the first solution in the order of the decision strategies of the model."""
    return Mode(any_solution=True, fixed=True, cuts=False, in_order=True, budget=budget)


def within_gap(gap_ppm: int) -> Mode:
    """Return the mode that accepts a gap; without one it is ``PROVE``."""
    return Mode(gap_ppm=gap_ppm, fixed=bool(gap_ppm), cuts=not gap_ppm)


def best_within(budget: float, *, from_below: bool = False) -> Mode:
    """Return the mode that takes the best solution found within a budget; ``PROVE`` is too much to ask there."""
    return Mode(budget=budget, from_below=from_below, fixed=True, cuts=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimum:
    """One objective, minimised: its value and the proven bound, which are equal unless the mode accepts less."""

    what: str
    """The objective in words."""
    value: int
    bound: int
    seconds: float
    work: float
    """Deterministic time of the search."""


def model_work(model: Searched) -> float:
    """Return the deterministic time that building and presolving a model is taken to be."""
    return limits.VARIABLE_WORK * len(model.model.proto.variables)


def minimise(
    model: Searched,
    objective: cp_model.LinearExpr | int,
    settings: Settings,
    *,
    what: str,
    mode: Mode = PROVE,
    spent: Spent | None = None,
) -> Optimum:
    """Minimise an objective; keep the solution in the model, as its values and as the hint of the next search.

    Raise Infeasible where there is no solution, and NotProvenError past the limit of the settings. The work, also of
    these, is added to ``spent``.
    """
    solver = _solver(settings, mode)
    model.model.minimize(objective)
    status = _solve(solver, model.model)
    if spent is not None:
        spent.searches += solver.response_proto.deterministic_time
        spent.models += model_work(model)
    if status == cp_model.INFEASIBLE:
        raise Infeasible
    assert status != cp_model.MODEL_INVALID, model.model.validate()
    if status == cp_model.UNKNOWN:
        raise NotProvenError(f"{what}: no placement found, and none excluded, within the limit: {LONGER}")
    value = solver.value(objective)
    bound = value if status == cp_model.OPTIMAL and not mode.gap_ppm else round(solver.best_objective_bound)
    if status != cp_model.OPTIMAL and not mode.any_solution and math.isinf(mode.budget):
        raise NotProvenError(
            f"{what}: not proven optimal within the limit: {LONGER}", objective_ns=value, bound_ns=bound
        )
    model.values = list(solver.response_proto.solution)
    model.model.clear_hints()  # type: ignore[no-untyped-call]
    for index, hint in enumerate(model.values):
        model.model.add_hint(model.model.get_int_var_from_proto_index(index), hint)
    work = solver.response_proto.deterministic_time
    return Optimum(what=what, value=value, bound=min(value, bound), seconds=solver.wall_time, work=work)


def _solver(settings: Settings, mode: Mode) -> cp_model.CpSolver:
    solver = cp_model.CpSolver()
    parameters = solver.parameters
    parameters.num_workers = 1 if mode.fixed else settings.workers
    parameters.random_seed = 0 if mode.fixed else settings.seed
    parameters.auto_detect_greater_than_at_least_one_of = False  # wrong for sums of bytes beyond 32 bits
    parameters.presolve_inclusion_work_limit = 0  # counts in 32 bits: google/or-tools#5293
    parameters.cp_model_probing_level = 0  # costs more than it saves here, measured
    parameters.linearization_level = 2  # a third of the work of level 1, measured
    if not mode.cuts:
        parameters.cut_level = 0  # ties took twice as long with cuts, measured
    parameters.optimize_with_lb_tree_search = mode.from_below
    parameters.max_deterministic_time = settings.limit if math.isinf(mode.budget) else mode.budget
    parameters.relative_gap_limit = mode.gap_ppm / 1e6
    parameters.absolute_gap_limit = 0.0  # doubles do not tell large values apart
    parameters.stop_after_first_solution = mode.any_solution
    if mode.in_order:
        parameters.search_branching = cp_model.FIXED_SEARCH
        parameters.keep_all_feasible_solutions_in_presolve = True
    parameters.catch_sigint_signal = False  # it would take Ctrl-C for the end of the search, and go on with the rest
    return solver


def _solve(solver: cp_model.CpSolver, model: cp_model.CpModel) -> cp_model.CpSolverStatus:
    """Search in a thread of its own, and stop that search when the caller is interrupted.

    Python runs signal handlers in the main thread, and there only between two of its own instructions: never during
    a search there. So the caller waits in steps that end by themselves, whichever thread the signal is delivered to.
    """
    outcome: Future[cp_model.CpSolverStatus] = Future()

    def search() -> None:
        try:
            outcome.set_result(solver.solve(model))
        except BaseException as error:
            outcome.set_exception(error)

    Thread(target=search, name="cp-sat").start()
    try:
        while not wait((outcome,), limits.SIGNAL_S).done:
            pass
    except BaseException:
        _stop(solver, outcome)
        raise
    return outcome.result()


def _stop(solver: cp_model.CpSolver, outcome: Future[cp_model.CpSolverStatus]) -> None:
    """Stop a search, and wait a little for its end; asked again and again, as it may only be about to begin.

    Not by joining the thread: CPython 3.11 takes a thread for ended whose join was interrupted.
    """
    end = time.monotonic() + limits.STOP_S
    while not outcome.done() and time.monotonic() < end:
        solver.stop_search()
        wait((outcome,), limits.SIGNAL_S)
