"""Finds the one optimal answer of a problem and proves it.

Objectives in lexicographic order, each proven optimal and then fixed: the goal of the problem; the time of a step; the
number of stages; an order over groups and options. Then, with only these left: an order over stages and over the
division of blocks; the least free memory of a device in use, in granules, maximised; a total order over quantities. So
there is one answer. The quantities are settled by a search that is always the same, as far as SETTLE_LIMIT: where
memory is full to the last bytes, the proof that no quantity can be larger is a puzzle with no end and of no use.

What :mod:`planner.solver.bounds.step` shows to be in no answer as good as one that is known is left out of the search,
so what is
searched depends on the problem alone, and never on luck.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property

from ortools.sat.python import cp_model

from planner.errors import NotProvenError
from planner.integers import PS_PER_NS
from planner.solver import limits
from planner.solver.bounds.step import Bounds, lower_bounds
from planner.solver.feasible.class_model import roomiest
from planner.solver.feasible.greedy import packed
from planner.solver.minimise import (
    FIND,
    FIND_SAME,
    FROM_BELOW,
    PROVE,
    SAME,
    Infeasible,
    Mode,
    Optimum,
    Settings,
    best_within,
    minimise,
    within_gap,
)
from planner.solver.model import Model, most_step_ns
from planner.solver.moved_bytes import moved_bytes
from planner.solver.problem import Answer, Earlier, Problem, granule_bytes
from planner.solver.problem_bounds import least_bytes, most_ps, timeless
from planner.solver.restriction import Restriction, everything
from planner.solver.symmetry import twins
from planner.solver.variables import Linear


@dataclass(frozen=True, kw_only=True, slots=True)
class Solved:
    """The answer and its proof: it takes ``objective_ns`` at most, exactly so unless a gap was accepted.

    ``bound_ns`` is then ``objective_ns``, or what was proven of every answer.
    """

    answer: Answer
    objective_ns: int
    bound_ns: int
    optima: tuple[Optimum, ...]
    """Of all objectives, in the order in which they were settled."""
    solve_s: float
    gap_ppm: int = 0
    """What was accepted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Keep:
    """Of answers that take at most so much longer than the least, the one that moves the fewest bytes is wanted."""

    earlier: Earlier
    within_ppm: int


def solve(problem: Problem, settings: Settings, keep: Keep | None = None) -> Solved | None:
    """The one optimal answer, or None where the solver proves that nothing fits.

    Raise NotProvenError with the gap, or where what fits takes longer than any step that is told from others.
    """
    if least_bytes(problem) > sum(problem.capacity_bytes):
        return None
    return _Search(problem, settings).solved(keep)


def solve_nearly(problem: Problem, settings: Settings) -> Solved | None:
    """As ``solve``; where that is not proven within the limit, as with the least of GAPS_PPM that seems to be."""
    if least_bytes(problem) > sum(problem.capacity_bytes):
        return None
    search = _Search(problem, settings)
    try:
        return search.solved(None)
    except NotProvenError as error:
        reached = 1.0 if error.gap is None else error.gap
        wanted = max(settings.gap_ppm, round(limits.GAP_FACTOR * reached * 10**6))
        gap_ppm = min((each for each in limits.GAPS_PPM if each > wanted), default=None)
        if gap_ppm is None:
            raise
        return search.again(gap_ppm).solved(None)


def fits(problem: Problem, settings: Settings) -> bool:
    """Whether any placement exists: found, or proven that there is none."""
    known = fits_counted(problem)
    if known is not None:
        return known
    return _Search(timeless(problem) if _may_be_slow(problem) else problem, settings).any_answer()


def fits_counted(problem: Problem) -> bool | None:
    """The same as far as equal devices that are counted, and one packing of them, tell."""
    if least_bytes(problem) > sum(problem.capacity_bytes):
        return False
    try:
        return True if _roomy(problem) else None
    except Infeasible:
        return False


def _roomy(problem: Problem) -> Restriction | None:
    """Groups and choices that a packing has room on, if counting finds them; raise Infeasible where there are none."""
    structure = roomiest(problem)
    missing = packed(problem, structure) if structure else None
    return None if missing is None or any(missing) else structure


def _may_be_slow(problem: Problem) -> bool:
    """Whether there may be answers that take longer than any step that is told from others."""
    return most_ps(problem) > PS_PER_NS * most_step_ns(problem)


class _Search:
    """One search, and the optima that it has settled."""

    def __init__(self, problem: Problem, settings: Settings) -> None:
        self.problem = problem
        self.settings = settings
        self.optima: list[Optimum] = []
        self.goal: dict[str, list[int]] = {}
        self.settled = problem.goal == "time"
        self.excluded = 0
        """No answer takes less, as what was searched so far shows."""

    @cached_property
    def bounds(self) -> Bounds | None:
        """Of the answers that the goal leaves, once it is settled."""
        return lower_bounds(self._for_time())

    @property
    def least(self) -> float:
        return self.bounds.least if self.bounds else 0.0

    def _tighten(self) -> bool:
        """Price memory in the bounds; return False where that has been done already."""
        before = self.bounds
        self.bounds = before and before.tightened()
        return self.bounds is not before

    def _until_tighter(self) -> Settings:
        """Return the settings of a search that ends early where it may be quicker to tighten the bounds first."""
        if self.bounds is None or self.bounds.is_priced:
            return self.settings
        left = limits.UNPRICED_LIMIT * len(self.problem.groups) - sum(optimum.work for optimum in self.optima)
        return replace(self.settings, limit=max(0.0, min(left, self.settings.limit)))

    def _for_time(self) -> Problem:
        """What is left to be as fast as can be: with a balance, in the memory that may then be taken."""
        problem, granule = self.problem, granule_bytes(self.problem)
        if problem.goal == "fill":
            return problem
        free = sum(self.goal.get("balance", ()))
        capacity, alike = [each - granule * free for each in problem.capacity_bytes], list(problem.alike)
        if problem.spare is not None:
            most = problem.capacity_bytes[problem.spare]
            capacity[problem.spare] = min([most, *(granule * value for value in self.goal.get("spare", ()))])
            alike[problem.spare] = max(alike) + 1
        return replace(problem, goal="time", spare=None, capacity_bytes=tuple(capacity), alike=tuple(alike))

    @cached_property
    def twins(self) -> tuple[tuple[int, int], ...]:
        return twins(self.problem)

    def again(self, gap_ppm: int) -> "_Search":
        """The same with another gap, as if it were the first."""
        self.settings, self.optima, self.excluded = replace(self.settings, gap_ppm=gap_ppm), [], 0
        return self

    def solved(self, keep: Keep | None) -> Solved | None:
        """The answer, if there is one."""
        start = time.perf_counter()
        try:
            return replace(self._run(keep), solve_s=time.perf_counter() - start)
        except Infeasible:
            if _may_be_slow(self.problem) and fits(self.problem, self.settings):
                most = most_step_ns(self.problem)
                raise NotProvenError(
                    f"step time: found none of at most {most / 1e9:.0f} s, and no longer step is told from others "
                    f"among {len(self.problem.groups)} groups of devices: give faster devices, or a smaller --batch or "
                    "--context",
                    bound_ns=most,
                ) from None
            return None

    def _run(self, keep: Keep | None) -> Solved:
        if not self.settled:
            self._settle_goal()
        model, step = self._step()
        if keep is None:
            small = self._model(model.chosen())
        else:
            small, step = self._keep(keep, step)
        small.model.add(small.step_ns <= step.value)
        small.model.add_bool_and(small.runs)
        try:
            self._settle(small)
        except NotProvenError as error:
            raise NotProvenError(str(error), objective_ns=step.value, bound_ns=step.bound) from error
        return Solved(
            answer=small.answer(),
            objective_ns=step.value,
            bound_ns=step.bound,
            optima=tuple(self.optima),
            solve_s=0.0,
            gap_ppm=self.settings.gap_ppm,
        )

    def _keep(self, keep: Keep, step: Optimum) -> tuple[Model, Optimum]:
        """A model of the answers with the groups of the one that moves least, and how long they take."""
        self._tighten()
        limit = step.value + step.value * keep.within_ppm // 10**6
        model = self._model(self._within(limit), keep=True)
        model.model.add(model.step_ns <= limit)
        moved = moved_bytes(model, keep.earlier)
        least = self.minimise(model, moved, what="moved bytes").value
        model.model.add(moved <= least)
        self._least_step(model)
        small = self._model(model.chosen(), keep=True)
        small.model.add(moved_bytes(small, keep.earlier) <= least)
        return small, replace(step, value=model.value(model.step_ns))

    def _settle(self, small: Model) -> None:
        """All that the groups and choices leave open."""
        self.minimise(small, small.step_ns, what="any answer", mode=FIND_SAME)  # to begin with
        self.order(small, small.ends())
        free = self.minimise(small, -small.free, what="free memory", mode=SAME)
        small.model.add(small.free >= -free.value)
        self.order(small, small.quantities(), limits.SETTLE_LIMIT)

    def any_answer(self) -> bool:
        """Whether there is one, first among those that would be good, which are few."""
        self._tighten()
        factors = limits.FIRST_LOOK[-1:]
        return any(self._has_answer(self._model(self._within(limit)), "feasibility") for limit in self._limits(factors))

    # ---- what is searched ----

    def _within(self, limit: float) -> Restriction:
        """All that may be in an answer that takes no longer."""
        if self.bounds is None:
            return everything(self.problem)
        return self.bounds.within(limit)

    def _limits(self, factors: Sequence[float]) -> Iterator[float]:
        """Times to look within, until no answer is left out."""
        if math.isinf(self.least):
            return
        if self.bounds is not None:
            yield from (self.least * factor for factor in factors)
        yield math.inf

    def _model(
        self,
        restriction: Restriction,
        ranked: int | None = None,
        *,
        keep: bool = False,
    ) -> Model:
        """A model of what is as good as is known by now; of hosts or devices alike the first have the most layers.

        ``keep``: such that it can be compared with an earlier answer.
        """
        model = Model(self.problem, restriction, placed=keep)
        filled = self.goal.get("fill")
        if filled is not None:
            for group, size in zip(restriction.groups, model.size, strict=True):
                model.model.add(size == filled[group])
        for value in self.goal.get("spare", ()):
            model.model.add(model.spare <= value)
        for value in self.goal.get("balance", ()):
            model.model.add(model.balance >= value)
        if not keep:
            model.leading(self.twins)
        if self.settled and self.bounds is not None and math.isfinite(self.least):
            model.model.add(model.step_ns >= math.ceil(self.least))
        if ranked is not None:
            model.model.add(model.ranked_step <= ranked)
        return model

    # ---- objectives ----

    def _step(self) -> tuple[Model, Optimum]:
        """The least step, and a model whose solution has the groups and choices of the answer.

        What a near look finds is usually the answer already. Then one proof is left: that with other groups or choices
        nothing is as good, or where a gap is accepted nothing is better by more than that.
        """
        if self.settings.gap_ppm:
            return self._near_step()
        model, best = self._first_step()
        while found := self._rival(model, best.value):
            known = best.value
            model, best = self._best_within(found // model.ties, found)
            if best.value == known:  # the rival was as good, and none is better
                model = self._first_in_order(model, known)
                break
        return model, self._settled_step(model.value(model.step_ns), model.value(model.step_ns))

    def _best_within(self, limit: int, ranked: int) -> tuple[Model, Optimum]:
        """Return the best of all that takes at most ``limit`` ns and ranks no higher than ``ranked``."""
        model = self._model(self._within(limit), ranked)
        try:
            return model, self._least_step(model)
        except NotProvenError:
            if not self._tighten():
                raise
            return self._best_within(limit, ranked)

    def _settled_step(self, value: int, bound: int) -> Optimum:
        step = Optimum(what="step time", value=value, bound=bound, seconds=0.0, work=0.0)
        self.optima.append(step)
        return step

    def _near_step(self) -> tuple[Model, Optimum]:
        """A step within the gap that is accepted, and its model: what there is room for may be that already."""
        self._tighten()  # what a search with a gap finds depends on the bounds
        self._exclude(0)
        model = self._packing()
        if model is None or not self._is_near(model.value(model.step_ns)):
            model = self._near(self._first_step()[0])
        value = model.value(model.step_ns)
        return model, self._settled_step(value, min(value, self.excluded))

    def _is_near(self, value: int) -> bool:
        """Whether what takes so long is within the gap that is accepted."""
        return value - value * self.settings.gap_ppm // 10**6 <= self.excluded

    def _packing(self) -> Model | None:
        """The best that is soon found on groups that have room by count: always the same search."""
        structure = _roomy(self.problem)
        if structure is None:
            return None
        model = self._model(structure)
        try:
            self.minimise(model, model.ranked_step, what="packed step time", mode=best_within(limits.PACKED_LIMIT))
        except (Infeasible, NotProvenError):
            return None
        return model

    def _first_step(self) -> tuple[Model, Optimum]:
        """The best of what is nearest to the bounds: usually the answer, and found quickly as it is little."""
        for limit in self._limits(limits.FIRST_LOOK):
            near = self._within(limit)
            if near.groups and all(near.choices):
                model = self._model(near)
                try:
                    return model, self._least_step(model, limit)
                except Infeasible:
                    if self._tighten():
                        self._exclude(limit)
                        return self._first_step()
                except NotProvenError as error:
                    if self._tighten():
                        return self._first_step()
                    if error.objective_ns is not None or (packing := self._packing()) is None:
                        raise
                    self.excluded = 0  # a gap that is asked for is measured before anything is searched
                    raise self._unproven(packing.value(packing.step_ns)) from error
            self._exclude(limit)
        raise Infeasible

    def _near(self, model: Model) -> Model:
        """A solution within the gap that is accepted: of what was looked at, or else of all that takes no longer."""
        value, gap_ppm = model.value(model.step_ns), self.settings.gap_ppm
        looked = model.restriction
        while not self._is_near(value):
            target = self.excluded * 10**6 // (10**6 - gap_ppm)
            for restriction in (looked, self._within(target)):
                if restriction.groups and all(restriction.choices):
                    near = self._model(restriction)
                    near.model.add(near.step_ns <= target)
                    if self._has_answer(near, "an answer within the gap", always_same=True, known=value):
                        return near
            self._exclude(target + 1)
        return model

    def _exclude(self, limit: float) -> None:
        """No answer takes less than the bounds say, nor than what was searched without finding any."""
        self.excluded = max(self.excluded, math.floor(self.least), math.floor(min(limit, most_step_ns(self.problem))))

    def _least_step(self, model: Model, looked: float = 0) -> Optimum:
        """The best of a model in which is all that takes no longer than ``looked``."""
        try:
            found = self._ranked(model)
        except NotProvenError as error:
            self._exclude(min(looked, (error.bound_ns or 0) // model.ties))
            raise self._unproven(error.objective_ns and error.objective_ns // model.ties) from error
        self._exclude(min(looked, found.bound // model.ties))
        return found

    def _ranked(self, model: Model) -> Optimum:
        """The least step: first from below, then by a search that also finds what is far from the bounds."""
        gap_ppm = self.settings.gap_ppm
        if not gap_ppm:
            quick = replace(self.settings, limit=min(limits.QUICK_LIMIT, self.settings.limit), workers=1)
            with suppress(NotProvenError):
                return self.minimise(model, model.ranked_step, what="ranked step time", mode=FROM_BELOW, settings=quick)
        mode, settings = within_gap(gap_ppm), self._until_tighter()
        return self.minimise(model, model.ranked_step, what="ranked step time", mode=mode, settings=settings)

    def _unproven(self, step_ns: int | None) -> NotProvenError:
        """The refusal past the limit: the best step found, and what is known of every answer."""
        bound = max(self.excluded, math.floor(self.least))
        limit = f"within the deterministic limit of {self.settings.limit:g}"
        if step_ns is None:
            return NotProvenError(f"step time: no placement found, and none excluded, {limit}", bound_ns=bound)
        gap = (step_ns - bound) / max(1, step_ns)
        return NotProvenError(
            f"step time: not proven optimal {limit}: found {step_ns} ns, bound {bound} ns, gap {gap:.2%}; accept one "
            "with --gap",
            objective_ns=step_ns,
            bound_ns=bound,
        )

    def _rival(self, model: Model, ranked: int) -> int | None:
        """What an answer with another structure takes that is as good as the best of ``model``, if there is one."""
        rival = self._model(self._within(ranked // model.ties), ranked)
        rival.forbid(model.chosen())
        try:
            found = self._has_answer(rival, "another answer", known=ranked // model.ties)
        except NotProvenError:
            if self._tighten():
                return self._rival(model, ranked)
            raise
        return self.optima[-1].value if found else None

    def _has_answer(self, model: Model, what: str, *, always_same: bool = False, known: int | None = None) -> bool:
        """Whether there is any answer; the objective guides a proof that there is none, a tenth of the work without.

        ``known``: what another takes.
        """
        try:
            mode = FIND_SAME if always_same else FIND
            self.minimise(model, model.ranked_step, what=what, mode=mode, settings=self._until_tighter())
        except Infeasible:
            return False
        except NotProvenError as error:
            if known is None:
                raise
            raise self._unproven(known) from error
        return True

    def _first_in_order(self, like: Model, ranked: int) -> Model:
        """Of structures of equal rank the first in order."""
        self._tighten()
        model = self._model(self._within(ranked // like.ties), ranked)
        self.order(model, [(variable, 1) for variable in model.structure()])
        return model

    def _settle_goal(self) -> None:
        problem = self.problem
        if problem.goal == "balance":
            if problem.spare is not None:
                model = self._model(everything(problem))
                self.goal["spare"] = [self.minimise(model, model.spare, what="spared device").value]
            model = self._model(everything(problem))
            self.goal["balance"] = [-self.minimise(model, -model.balance, what="balance").value]
        if problem.goal == "fill":
            model = self._model(everything(problem))
            filled = [model.model.new_int_var(0, problem.layers, f"filled{g}") for g in range(len(problem.groups))]
            for layers, size in zip(filled, model.size, strict=True):
                model.model.add(layers == size)
            self.order(model, [(layers, problem.layers) for layers in filled])
            self.goal["fill"] = [model.value(layers) for layers in filled]
        self.settled = True

    def minimise(
        self,
        model: Model,
        objective: Linear,
        *,
        what: str,
        mode: Mode = PROVE,
        settings: Settings | None = None,
    ) -> Optimum:
        """One objective more."""
        found = minimise(model, objective, settings or self.settings, what=what, mode=mode)
        self.optima.append(found)
        return found

    def order(self, model: Model, variables: Sequence[tuple[cp_model.IntVar, int]], enough: float = math.inf) -> None:
        """Settle ``variables`` one after the other, each as large as those before allow: a total order.

        ``enough``: after so much work the rest remain as the search has left them.
        """
        for pack in _packs(variables):
            width = [most.bit_length() for _, most in pack]
            objective = sum((1 << sum(width[number + 1 :])) * item for number, (item, _) in enumerate(pack))
            with suppress(NotProvenError) if math.isfinite(enough) else nullcontext():
                enough -= self.minimise(model, -objective, what="order", mode=best_within(enough)).work
            for item, _ in pack:
                model.model.add(item == model.value(item))
            if enough <= 0:
                return


def _packs(variables: Sequence[tuple[cp_model.IntVar, int]]) -> Iterator[list[tuple[cp_model.IntVar, int]]]:
    """In order, as many together as are digits of one number."""
    pack: list[tuple[cp_model.IntVar, int]] = []
    for variable, most in variables:
        if pack and sum(other.bit_length() for _, other in pack) + most.bit_length() > limits.PACK_BITS:
            yield pack
            pack = []
        pack.append((variable, most))
    if pack:
        yield pack
