"""State of one search: the answers that are left to it, and what it has settled and excluded so far."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from planner.errors import NotProvenError
from planner.solver import limits
from planner.solver.bounds.few_devices import FewDevices, few_devices_bounds
from planner.solver.bounds.step import Bounds
from planner.solver.minimise import (
    FIND,
    FIND_SAME,
    PROVE,
    Infeasible,
    Mode,
    Optimum,
    Settings,
    Spent,
    minimise,
    model_work,
)
from planner.solver.model import Model
from planner.solver.past_limit import LONGER, past_limit
from planner.solver.problem import Problem, granule_bytes
from planner.solver.restriction import Restriction, everything
from planner.solver.symmetry import Pair, equal_hosts, order_equal_hosts
from planner.solver.variables import Linear


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """Values of the objectives before the step time; None: not part of the goal, or not settled yet."""

    layers: tuple[int, ...] | None = None
    """``fill``: layers of each group."""
    spare: int | None = None
    """``balance``: granules that lie on the spare device, at most."""
    balance: int | None = None
    """``balance``: granules that are free on every other device, at least."""

    def add_to(self, model: Model) -> None:
        """Leave only solutions that are as good."""
        if self.layers is not None:
            for group, size in zip(model.restriction.groups, model.stages.size, strict=True):
                model.model.add(size == self.layers[group])
        if self.spare is not None:
            model.model.add(model.memory.spare <= self.spare)
        if self.balance is not None:
            model.model.add(model.memory.balance >= self.balance)

    def for_time(self, problem: Problem) -> Problem:
        """Return the problem that is left to be as fast as can be: a balance takes its free memory away."""
        if problem.goal == "fill":
            return problem
        granule = granule_bytes(problem)
        capacity = [nbytes - granule * (self.balance or 0) for nbytes in problem.capacity_bytes]
        alike = list(problem.alike)
        if problem.spare is not None:
            capacity[problem.spare] = problem.capacity_bytes[problem.spare]
            if self.spare is not None:
                capacity[problem.spare] = min(capacity[problem.spare], granule * self.spare)
            alike[problem.spare] = max(alike) + 1
        return replace(problem, goal="time", spare=None, capacity_bytes=tuple(capacity), alike=tuple(alike))


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """The answers that are as good as the goal demands, with bounds of their step times."""

    problem: Problem
    goal: Goal
    bounds: Bounds | FewDevices | None
    """None: there are none for such problems."""
    least: float
    """No answer takes less, in ns; infinite where the bounds show that there is none."""
    pairs: tuple[Pair, ...]
    """Equal hosts."""

    @property
    def is_priced(self) -> bool:
        """Memory has its price in the bounds, or there are none."""
        return self.bounds is None or self.bounds.is_priced

    def priced(self) -> "Space":
        """Return the same answers under bounds in which memory has its price."""
        if self.bounds is None or self.bounds.is_priced:
            return self
        bounds = self.bounds.tightened()
        return replace(self, bounds=bounds, least=bounds.least)

    def within(self, limit: float) -> Restriction:
        """Return all groups and choices that may be in an answer of at most ``limit`` ns."""
        if self.bounds is None:
            return everything(self.problem)
        return self.bounds.within(limit)

    def limits_ns(self, factors: Sequence[float]) -> Iterator[float]:
        """Yield the least step time by each factor, and then no limit; nothing where there is no answer."""
        if math.isinf(self.least):
            return
        if self.bounds is not None:
            yield from (self.least * factor for factor in factors)
        yield math.inf

    def model(self, restriction: Restriction, most_ns: int | None = None) -> Model:
        """Return the model of what is left of a restriction; ``most_ns``: and takes no longer."""
        model = self.placed_model(restriction, placed=False)
        order_equal_hosts(model, self.pairs)
        if most_ns is not None:
            model.model.add(model.step_ns <= most_ns)
        return model

    def placed_model(self, restriction: Restriction, *, placed: bool = True) -> Model:
        """Return such a model that can be compared with an earlier answer: hosts have their names."""
        model = Model(self.problem, restriction, placed=placed)
        self.goal.add_to(model)
        if self.bounds is not None and math.isfinite(self.least):
            model.model.add(model.step_ns >= math.ceil(self.least - limits.MARGIN_NS))
        return model


def space_of(problem: Problem, goal: Goal) -> Space:
    """Return the answers that a goal leaves, with their bounds."""
    bounds = few_devices_bounds(goal.for_time(problem))
    least = bounds.least if bounds else 0.0
    return Space(problem=problem, goal=goal, bounds=bounds, least=least, pairs=equal_hosts(problem))


@dataclass(kw_only=True, slots=True)
class Progress:
    """Objectives that a search has settled, and step times that it has excluded."""

    settings: Settings
    optima: list[Optimum]
    """Objectives in the order in which they were settled."""
    excluded_ns: int = 0
    """No answer takes less, as the bounds or what was searched show."""
    spent: Spent = field(default_factory=Spent)
    """Work of all searches so far; the settings limit it."""
    until: float = math.inf
    """Deterministic time of all settled objectives at which this part of the search gives up."""

    def minimise(
        self, model: Model, objective: Linear, *, what: str, mode: Mode = PROVE, settings: Settings | None = None
    ) -> Optimum:
        """Settle one objective more; ``settings``: instead of those of the request."""
        if settings is None:
            left = min(self.settings.limit - self.spent.work, self.until - sum(o.work for o in self.optima))
            left -= model_work(model)
            if left <= 0 and math.isinf(mode.budget):
                raise NotProvenError(f"{what}: not proven within the deterministic limit of {self.settings.limit:g}")
            settings = replace(self.settings, limit=left)
        optimum = minimise(model, objective, settings, what=what, mode=mode, spent=self.spent)
        self.optima.append(optimum)
        return optimum

    def settle_step(self, value: int, bound: int) -> Optimum:
        """Note a step time that is settled by several searches together."""
        step = Optimum(what="step time", value=value, bound=bound, seconds=0.0, work=0.0)
        self.optima.append(step)
        return step

    def exclude(self, limit_ns: float) -> None:
        """Note that all that may take less than ``limit_ns`` was searched, and nothing was found."""
        self.excluded_ns = max(self.excluded_ns, math.floor(min(limit_ns, limits.MOST_NS)))

    def has_answer(self, model: Model, what: str, *, fixed: bool = False, known_ns: int | None = None) -> bool:
        """Search any solution, and keep it in the model; False: proven that there is none.

        The step time is the objective, as it guides the proof that there is none: a tenth of the work without.
        ``known_ns``: step time of another answer, for the refusal past the limit.
        """
        try:
            self.minimise(model, model.step_ns, what=what, mode=FIND_SAME if fixed else FIND)
        except Infeasible:
            return False
        except NotProvenError as error:
            if known_ns is None:
                raise
            raise self.unproven(known_ns) from error
        return True

    def unproven(self, step_ns: int | None) -> NotProvenError:
        """Return the refusal past the limit: the best step time found, and what is known of every answer."""
        bound, limit = self.excluded_ns, f"within the deterministic limit of {self.settings.limit:g}"
        if step_ns is None:
            return NotProvenError(
                f"step time: no placement found, and none excluded, {limit}: {LONGER}", bound_ns=bound
            )
        gap = (step_ns - bound) / max(1, step_ns)
        return NotProvenError(
            f"step time: not proven optimal {limit}: found {step_ns} ns, bound {bound} ns, gap {gap:.2%}; "
            + past_limit(gap, self.settings.gap_ppm),
            objective_ns=step_ns,
            bound_ns=bound,
        )
