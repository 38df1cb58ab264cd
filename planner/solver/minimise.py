"""One objective of a model, minimised and proven: the only place where the solver is run."""

import math
from dataclasses import dataclass
from typing import Protocol

from ortools.sat.python import cp_model

from planner.errors import NotProvenError
from planner.solver import limits


class Infeasible(Exception):
    """The solver has proven that there is no solution."""


class Searched(Protocol):
    """Variables and constraints, and the solution found last."""

    @property
    def model(self) -> cp_model.CpModel:
        """Of what is searched."""

    values: list[int]
    """Of all variables, by index."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How to search; none of it decides what is found."""

    workers: int = 1
    seed: int = 0
    gap_ppm: int = 0
    limit: float = limits.DETERMINISTIC_LIMIT
    """Of one objective; past it there is no answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimum:
    """One objective, minimised: its value and the proven bound, which are equal unless a gap was accepted."""

    what: str
    value: int
    bound: int
    seconds: float
    work: float
    """What it took, in the units of the limit."""


def minimise(
    model: Searched,
    objective: cp_model.LinearExpr | int,
    settings: Settings,
    *,
    what: str,
    gap_ppm: int = 0,
    any_answer: bool = False,
    from_below: bool = False,
    always_same: bool = False,
    enough: float = math.inf,
) -> Optimum:
    """Minimise, keep the solution in the model as values and as the next hint; raise Infeasible or NotProvenError.

    What a search with a gap finds depends on how it searches: so there it is always the same search. ``from_below``
    suits an objective whose bound is what is hard. ``enough``: after so much work the best is taken as it is.
    """
    same = always_same or gap_ppm or math.isfinite(enough)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1 if same else settings.workers
    solver.parameters.random_seed = 0 if same else settings.seed
    solver.parameters.auto_detect_greater_than_at_least_one_of = False  # proves what is not so, of sums of bytes
    solver.parameters.presolve_inclusion_work_limit = 0  # counts in 32 bits: google/or-tools#5293
    solver.parameters.cp_model_probing_level = 0  # costs more than it saves here, measured
    solver.parameters.linearization_level = 2  # a third of the work of level 1, measured
    solver.parameters.optimize_with_lb_tree_search = from_below
    solver.parameters.max_deterministic_time = enough if math.isfinite(enough) else settings.limit
    solver.parameters.relative_gap_limit = gap_ppm / 1e6
    solver.parameters.absolute_gap_limit = 0.0  # doubles do not tell large values apart
    solver.parameters.stop_after_first_solution = any_answer
    model.model.minimize(objective)
    status = solver.solve(model.model)
    if status == cp_model.INFEASIBLE:
        raise Infeasible
    assert status != cp_model.MODEL_INVALID, model.model.validate()
    limit = f"within the deterministic limit of {settings.limit:g}"
    if status == cp_model.UNKNOWN:
        raise NotProvenError(f"{what}: no placement found, and none excluded, {limit}")
    value = solver.value(objective)
    bound = value if status == cp_model.OPTIMAL and not gap_ppm else round(solver.best_objective_bound)
    if status != cp_model.OPTIMAL and not any_answer and math.isinf(enough):
        raise NotProvenError(f"{what}: not proven optimal {limit}", objective_ns=value, bound_ns=bound)
    model.values = list(solver.response_proto.solution)
    model.model.clear_hints()  # type: ignore[no-untyped-call]
    for index, found in enumerate(model.values):
        model.model.add_hint(model.model.get_int_var_from_proto_index(index), found)
    work = solver.response_proto.deterministic_time
    return Optimum(what=what, value=value, bound=min(value, bound), seconds=solver.wall_time, work=work)
