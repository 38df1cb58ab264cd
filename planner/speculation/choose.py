"""The search for the draft tree: the one with the most expected tokens per second, of the grid and of no draft at all.

Let E be the expected tokens of a step of tree t and S(t) the step of the best placement for it, so that E / S is to be
maximised; without a draft E is 1. The most promising tree is solved first. Another one, t, is excluded without solving
it where E(t) / L(t) is no more than the best known for a lower bound L(t) <= S(t), which is the largest of

1. S(s) of a solved tree s that is no larger than t: nodes, levels and width only add work and bytes to any placement;
2. V(n) + D(t): V(n), the least time of the base's part alone with n <= total_token(t) rows, and D(t), that of the
   drafter's passes. V(1) is plain decoding, which is solved anyway; other V are first those of
   :mod:`planner.speculation.step_bound`, and where that is not enough bounds of :mod:`planner.solver.bounds.in_use`,
   without memory and over all hosts, for which the groups of the machine are priced. D(t) is first that of
   :mod:`planner.speculation.draft_bound`, or the D(s) of a tree s whose drafter has no more to do: no more levels, no
   more width, no more nodes that are kept. Of trees that are solved, and of others where this is not enough, D is the
   bound of ``in_use``, too, with the drafter formulated;
3. (1 - q) V(1) + q S(s), of a solved tree s with more levels, no more nodes and no more width: q = depth(t) / depth(s)
   of its passes are left, and none is shorter than q of what it was.

Where that is not enough either, the solver is asked for a placement that brings t within CLOSE of the best known, which
is often excluded sooner than the best placement is found.

So the answer is the one that solving every tree would give. It is unique: of equal values no draft comes first, then
fewer nodes, fewer levels, fewer children. The runner-up is the best of the others that were solved for this proof: the
second best where it is within CLOSE of the best.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, cached_property

from planner.costs.acceptance import expected_ppm
from planner.costs.rounding import LOWERED
from planner.costs.shares import DraftShares
from planner.enough_hosts import on_hosts
from planner.errors import NotProvenError
from planner.problem.formulate import Formulation
from planner.problem.machine import canonical_machine
from planner.solver.blocks import TAIL
from planner.solver.solve import LeastStep
from planner.speculation.draft_bound import least_draft_ns
from planner.speculation.grid import contains, drafted, no_less, size, undominated
from planner.speculation.step_bound import Region, StepBound, regions_of
from plans.acceptance import PPM, Profile
from plans.schema import Tree
from plans.step import tree_rows, written_rows

CLOSE = 1.01
"""A tree is solved where it may be slower than the best known by no more than this factor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """The step of the best placement for a tree, or without a draft."""

    tree: Tree | None
    acceptance_ppm: int
    """Expected tokens of a step."""
    least_ns: int
    """Step of the fastest placement."""
    formulation: Formulation
    """On as many hosts as were searched."""
    step: LeastStep

    @property
    def order(self) -> tuple[int, ...]:
        """Place among equal values."""
        return (0,) if self.tree is None else (1, *size(self.tree))

    def beats(self, other: "Found") -> bool:
        """Tell whether this has more expected tokens per second, or as many and comes first."""
        own, theirs = self.acceptance_ppm * other.least_ns, other.acceptance_ppm * self.least_ns
        return own > theirs or (own == theirs and self.order < other.order)


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The best tree or none, with what it was compared with."""

    best: Found
    runner_up: Found | None
    """The best of the others that were solved; None where nothing else fits."""
    plain: Found
    """The best placement without a draft."""
    trees: int
    """Trees of the grid that were considered."""
    solved: int
    """Trees that were solved; the others are excluded by bounds."""


Solve = Callable[[Formulation], tuple[Formulation, LeastStep | None]]
"""Finds the least step of a formulation, on as many hosts as are enough; None where nothing fits."""

TakesLonger = Callable[[Formulation, int], bool]
"""Tells whether no placement takes at most so many ns."""


def choose(
    formulation_of: Callable[[Tree | None], Formulation],
    trees: Iterable[Tree],
    profile: Profile,
    solve: Solve,
    takes_longer: TakesLonger,
    *,
    drafts: bool = False,
) -> Choice | None:
    """Return the best choice with its proof; None where not even plain decoding fits.

    Raise NotProvenError at the first search that is past the solver's limit.

    ``formulation_of``: the formulation of the request with a tree, or without its draft. ``trees``: those considered.
    ``drafts``: the best of the trees is the answer, where one fits, although plain decoding may be better.
    """
    kept = undominated(list(trees), lambda tree: expected_ppm(profile, tree))
    search = _Search(
        formulation_of=cache(formulation_of),  # what one question formulates of a tree, the next one does not
        profile=profile,
        solve=solve,
        takes_longer=takes_longer,
        trees=kept,
        drafts=drafts,
    )
    search.settle_plain()
    plain = search.plain
    if plain is None:
        return None
    while (tree := search.next()) is not None:
        search.settle(tree)
    best, *others = search.ranked()
    runner_up = others[0] if others else None
    return Choice(
        best=best,
        runner_up=runner_up,
        plain=plain,
        trees=len(search.trees),
        solved=len(search.found) - 1,
    )


@dataclass(kw_only=True)
class _Search:
    """Bounds and placements of all trees, as far as they are known."""

    formulation_of: Callable[[Tree | None], Formulation]
    profile: Profile
    solve: Solve
    takes_longer: TakesLonger
    trees: list[Tree]
    """Trees that may be the best."""
    drafts: bool
    """Plain decoding is not an answer beside a tree."""
    found: list[Found] = field(default_factory=list)
    infeasible: list[Tree] = field(default_factory=list)
    rows_ns: dict[tuple[int, int], float] = field(default_factory=dict)
    """V(n) by n, and by the rows that a cache has at least, which a window of few positions and a short chunk move."""
    drafters_ns: dict[Tree, float] = field(default_factory=dict)
    """D of the trees whose drafter was formulated."""
    longer_ns: dict[Tree, int] = field(default_factory=dict)
    """Steps that no placement is as fast as, as the solver proved."""
    asked: set[Tree] = field(default_factory=set)
    """Trees of which the solver was asked whether they are close to the best."""

    @property
    def plain(self) -> Found | None:
        """The best placement without a draft."""
        return next((found for found in self.found if found.tree is None), None)

    def settle_plain(self) -> None:
        """Solve plain decoding."""
        found = self._solved(None)
        if found is not None:
            self.found.append(found)
            self.rows_ns[self._rows(None)] = found.least_ns * LOWERED

    @cached_property
    def expected(self) -> Callable[[Tree], int]:
        """Return E in parts per million."""
        return cache(lambda tree: expected_ppm(self.profile, tree))

    def ranked(self) -> list[Found]:
        """Return what was solved, the best first."""
        ranked: list[Found] = []
        for found in self.found:
            place = next((n for n, other in enumerate(ranked) if found.beats(other)), len(ranked))
            ranked.insert(place, found)
        return sorted(ranked, key=lambda found: found.tree is None) if self.drafts else ranked

    def next(self) -> Tree | None:
        """Return the tree to learn more of; None where no other can be the best."""
        settled = {found.tree for found in self.found}
        best = self.ranked()[0]
        settles = not self.drafts or best.tree is not None
        steps = {
            tree: self._least_ns(tree) for tree in self.trees if tree not in settled and not self._is_infeasible(tree)
        }
        left = [tree for tree, ns in steps.items() if not (settles and self._excluded(self.expected(tree), ns, best))]
        if len(self.found) > 1:
            # a bound for few nodes holds for more nodes, too, so that it comes before theirs
            unknown = [tree for tree in left if self._rows(tree) not in self.rows_ns]
            left = [min(unknown, key=size)] if unknown else left
        # the most E / S; of equal ones the smaller tree comes first
        order = {tree: (self.expected(tree) / steps[tree], tuple(-number for number in size(tree))) for tree in left}
        return max(left, key=order.__getitem__, default=None)

    def settle(self, tree: Tree) -> None:
        """Learn more of a tree: V of its nodes, D of its drafter, whether it is close to the best, or its step."""
        rows = self._rows(tree)
        if rows not in self.rows_ns:
            self.rows_ns[rows] = on_hosts(self.formulation_of(tree), 1).base_in_use.least_ns(1) * LOWERED
            return
        if len(self.found) > 1 and tree not in self.drafters_ns:
            self._bound_drafter(tree)
            return
        if len(self.found) > 1 and tree not in self.asked:
            self.asked.add(tree)
            best = self.ranked()[0]
            close_ns = int(CLOSE * self.expected(tree) * best.least_ns / best.acceptance_ppm) + 1
            with suppress(NotProvenError):  # its step may be proven nevertheless
                if self.takes_longer(self.formulation_of(tree), close_ns):
                    self.longer_ns[tree] = close_ns
            return
        found = self._solved(tree)
        if found is not None:
            self.found.append(found)
            self._bound_drafter(tree)
        else:
            self.infeasible.append(tree)

    def _bound_drafter(self, tree: Tree) -> None:
        """Learn D of a tree's drafter on the device sets that may run it."""
        bound = on_hosts(self.formulation_of(tree), 1).in_use
        self.drafters_ns[tree] = bound.block_ns(TAIL) * LOWERED

    def _solved(self, tree: Tree | None) -> Found | None:
        """Return the least step, None where nothing fits; raise NotProvenError past the solver's limit."""
        formulation, step = self.solve(self.formulation_of(tree))
        if step is None:
            return None
        expected = PPM if tree is None else self.expected(tree)
        return Found(tree=tree, acceptance_ppm=expected, least_ns=step.least_ns, formulation=formulation, step=step)

    def _is_infeasible(self, tree: Tree) -> bool:
        """Tell whether a tree needs at least the memory of one that does not fit."""
        return any(contains(tree, smaller) for smaller in self.infeasible)

    def _excluded(self, acceptance_ppm: int, least_ns: float, found: Found) -> bool:
        """Tell whether a step of at least so long has no more expected tokens per second than what was found."""
        return acceptance_ppm * found.least_ns <= found.acceptance_ppm * least_ns

    def _least_ns(self, tree: Tree) -> float:
        """Return L of a tree."""
        known = (ns for fewer, ns in self.rows_ns.items() if no_less(self._rows(tree), fewer))
        rows = max(self._any_rows_ns(tree), *known)
        return max(rows + self._draft_ns(tree), self.longer_ns.get(tree, 0), *self._from_solved(tree))

    @cached_property
    def _any_rows_ns(self) -> Callable[[Tree], float]:
        """Return V of a tree without pricing any group."""
        known: dict[tuple[int, int], float] = {}

        def least_ns(tree: Tree) -> float:
            rows = self._rows(tree)
            if rows not in known:
                formulation = self.formulation_of(tree)
                draft, options = formulation.draft, formulation.options
                bound = StepBound(model=formulation.model, draft=draft, options=options)
                known[rows] = bound.base_ns(formulation.usable, self._regions)
            return known[rows]

        return least_ns

    @cached_property
    def _regions(self) -> tuple[Region, ...]:
        return regions_of(canonical_machine(self.formulation_of(None).usable))

    @cached_property
    def _rows(self) -> Callable[[Tree | None], tuple[int, int]]:
        """Return the numbers on which the time of the base's part depends: none of them makes it shorter."""

        def rows(tree: Tree | None) -> tuple[int, int]:
            options = self.formulation_of(tree).options
            return tree_rows(options), written_rows(options)

        return cache(rows)

    def _from_solved(self, tree: Tree) -> Iterator[float]:
        plain_ns = self.rows_ns[self._rows(None)]
        yield plain_ns
        for found in self.found:
            solved = found.tree
            if solved is None:
                continue
            left = min(1.0, tree.depth / solved.depth) if solved.depth else 1.0
            if contains(replace(tree, depth=solved.depth), solved):
                yield (1 - left) * plain_ns + left * found.least_ns * LOWERED

    def _draft_ns(self, tree: Tree) -> float:
        """Return D of a tree."""
        smaller = (ns for other, ns in self.drafters_ns.items() if no_less(drafted(tree), drafted(other)))
        return max((self._any_draft_ns(tree), *smaller))

    @cached_property
    def _any_draft_ns(self) -> Callable[[Tree], int]:
        """Return D of a tree over all sets of devices."""

        def least_ns(tree: Tree) -> int:
            formulation = self.formulation_of(tree)
            assert formulation.draft is not None
            shares = DraftShares(
                model=formulation.model, draft=formulation.draft, options=formulation.options,
                kernels=formulation.kernels,
            )  # fmt: skip
            return least_draft_ns(shares, formulation.usable)

        return cache(least_ns)
