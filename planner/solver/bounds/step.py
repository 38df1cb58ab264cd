"""Lower bounds of the step time of any answer that uses a given group or choice: the search may leave out the rest.

This module chooses among four bounds, and intersects what they leave. Each relaxes something else:

1. *Parts without memory* (:mod:`planner.solver.bounds.hosts`, :mod:`planner.solver.bounds.block_choices`): stages by a
   dynamic programme over disjoint groups, plus the cheapest choices. Memory binds within a stage; blocks take none.
2. *Parts with prices of memory* (:mod:`planner.solver.bounds.memory_prices`): the same at λ ns per byte, less
   λ·capacity.
3. *The chain* (:mod:`planner.solver.bounds.chain`): either of them with all that the parts receive from one another.
4. *Whole layers* (:mod:`planner.solver.bounds.whole_layers`): where nothing is divided, placement by placement of the
   blocks, instead of 2.

The second costs several times what the first does and helps only where memory is short: it is computed on demand, by
:meth:`Bounds.tightened`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from planner.solver import limits
from planner.solver.bounds.block_choices import choices_ns
from planner.solver.bounds.chain import PartBounds, Receivers, chained, first_stage_ns
from planner.solver.bounds.combine import ByLayers, ByPrice
from planner.solver.bounds.excess import Excess, no_answer
from planner.solver.bounds.hosts import GroupBounds, most_states
from planner.solver.bounds.memory_prices import memory_prices
from planner.solver.bounds.pieces import Floats
from planner.solver.bounds.stage_cache import StageCache
from planner.solver.bounds.whole_layers import whole_layer_bounds
from planner.solver.problem import Problem
from planner.solver.restriction import Restriction


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """All bounds of a problem that are known so far; each of them is valid by itself."""

    receivers: Receivers
    parts: tuple[PartBounds, ...]
    """Without prices of memory, then with them; empty where no answer fits."""
    whole_layers: Excess | None = None
    is_priced: bool = True
    """False: :meth:`tightened` may add the bounds with prices of memory."""

    @cached_property
    def _chained(self) -> tuple[Excess, ...]:
        bounds = tuple(chained(self.receivers, parts) for parts in self.parts)
        return bounds if self.whole_layers is None else (*bounds, self.whole_layers)

    @property
    def least(self) -> float:
        """ns that every answer takes at least; infinite where none fits."""
        return max((excess.bound for excess in self._chained), default=math.inf)

    def tightened(self) -> "Bounds":
        """Return these bounds with those added in which memory has its price; ``self`` where that has been done."""
        if self.is_priced:
            return self
        (free,) = self.parts
        prices = memory_prices(self.receivers.problem, free.excess)
        if prices is None or not prices.any():
            return replace(self, is_priced=True)
        priced = _part_bounds(self.receivers, prices).kept_by(free.excess)
        return replace(self, is_priced=True, parts=(free, priced))

    def within(self, limit: float) -> Restriction:
        """Return the groups, choices and splits that may be in an answer of at most ``limit`` ns.

        Each bound drops some; the paths of the chain are then shortest among what the others leave.
        """
        if not self.parts:
            return no_answer(self.receivers.problem).restriction()
        kept, *others = self._chained
        kept = kept.within(limit)
        for excess in others:
            kept = excess.kept_by(kept).within(limit)
        for parts in self.parts:
            kept = chained(self.receivers, parts.kept_by(kept)).within(limit)
        pairs = zip(self.parts, self._chained, strict=False)
        left_out = {split for parts, bounds in pairs for split in parts.left_out(bounds.kept_by(kept), limit)}
        return replace(kept.restriction(), left_out=frozenset(left_out))


def lower_bounds(problem: Problem) -> Bounds | None:
    """Return bounds that ignore memory beyond a single stage; None for problems that the relaxation does not cover.

    It covers the goal ``time``, and hosts of up to ``limits.MOST_STATES`` states.
    """
    if problem.goal != "time" or problem.counts is not None:
        return None
    if most_states(problem) > limits.MOST_STATES:
        return None
    no_prices = np.zeros(len(problem.devices))
    receivers = Receivers(problem=problem)
    free = _part_bounds(receivers, no_prices)
    if not free.excess.groups:
        return Bounds(receivers=receivers, parts=())

    def bound_placed(placed: Problem) -> Excess:
        placed_receivers = Receivers(problem=placed)
        return chained(placed_receivers, _part_bounds(placed_receivers, no_prices))

    whole = whole_layer_bounds(problem, bound_placed)
    if whole is not None:
        return Bounds(receivers=receivers, parts=(free,) if whole.groups else (), whole_layers=whole)
    return Bounds(receivers=receivers, parts=(free,), is_priced=False)


def _part_bounds(receivers: Receivers, prices: Floats) -> PartBounds:
    """Return the Lagrangian bounds of the parts at ``prices`` in ns per byte on each device.

    min over stages and choices of cost + prices·(load - capacity), whose least is taken apart by group and choice.
    """
    problem = receivers.problem
    costs = [choices_ns(block, prices) for block in problem.blocks]
    cheapest = [min(known.values()) for known in costs]
    choices = tuple({key: ns - low for key, ns in known.items()} for known, low in zip(costs, cheapest, strict=True))
    first_ns = first_stage_ns(receivers, choices[0])
    stages = StageCache(problem, prices)
    stages_ns, floor = _stages_ns(stages, first_ns)
    capacity = np.array(problem.capacity_bytes, dtype=np.float64)
    least = min(stages_ns)
    excess = Excess(
        least=least + sum(cheapest) - float(prices @ capacity) * (1 + limits.MARGIN),
        groups={g: bound - least for g, bound in enumerate(stages_ns) if math.isfinite(bound)},
        choices=choices,
    )
    beyond_ns = tuple(stages.bound(group).beyond_ns for group in problem.groups)
    return PartBounds(excess=excess, first_ns=first_ns, beyond_ns=beyond_ns, reach=floor - least)


def _stages_ns(stages: StageCache, first_ns: Sequence[float]) -> tuple[list[float], float]:
    """Return the bound of all stages for each group, in ns, exactly for those near the least, and where that ends.

    The latter: ns that answers take at least with groups of which less is known.

    Without prices, groups are screened by the price of a layer: those within ``limits.CLOSE`` of the least are bounded
    again by layers, among themselves; an answer with any other group takes at least the least that the screen says of
    those. If that undercuts the exact bounds, more groups are taken. With prices, groups differ too little for it.
    """
    problem = stages.problem
    by_layers = ByLayers(problem.layers)
    slopes = [stage.line.mean for stage in map(stages.bound, problem.groups) if stage.most_layers]
    if stages.prices.any() or not 0 < min(slopes, default=math.inf) < math.inf:
        exact = GroupBounds(stages, first_ns, by_layers)
        return exact.bounds, exact.floor
    by_price = GroupBounds(stages, first_ns, ByPrice(problem.layers, min(slopes)))
    screened = by_price.bounds
    reach = limits.CLOSE * min(screened)
    while True:
        kept = {g for g, bound in enumerate(screened) if bound <= reach}
        floor = min((bound for bound in screened if bound > reach), default=math.inf)
        exact = GroupBounds(stages, first_ns, by_layers, kept)
        least = min(exact.bounds)
        if floor >= limits.CLOSE * least or math.isinf(floor):
            near = {g: min(exact.bounds[g], floor) for g in kept}
            bounds = [max(bound, near.get(g, bound)) for g, bound in enumerate(screened)]
            return bounds, min(floor, exact.floor, by_price.floor)
        reach = limits.CLOSE * (least if math.isfinite(least) else floor)
