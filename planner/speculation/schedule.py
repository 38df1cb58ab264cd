"""The schedule of a plan: draft trees by number of running sequences, on the placement as it is.

Placement, weights and the tree of a full batch are those of the plan, with their proof. For each number n of running
sequences below the batch the schedule has the tree of the grid, or plain decoding, with the most n * E / step tokens
per second, of all whose buffers fit: every one is priced on the placement by the functions that price candidates
(``planner.problem.placed``), for the places that the runtime computes then (``plans.places``).

**Memory.** The buffers of a plan are as large as the largest of its steps. Numbers of sequences are settled from the
batch down; a tree is left out where with the trees that are settled it needs more than a device has. The proof of the
placement needs no change: it is the best for the tree of a full batch, and still fits.

**Plain steps** keep up the drafter's caches: it extends by the features of each token, without an lm_head, so that it
drafts as well as before once there are fewer sequences again.

With ``options.keep_draft`` a full batch decodes plainly where that is faster than the tree.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache

from planner.costs.acceptance import expected_ppm
from planner.costs.memory import device_memory
from planner.errors import InputError
from planner.problem.placed import step_ns
from planner.speculation.grid import size, trees_of, undominated
from plans.acceptance import PPM, Profile
from plans.places import is_movable, places
from plans.schema import Plan, ScheduledStep, ScheduledTree, Tree
from plans.step import step_options


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A step with a tree, or a plain one, for one number of running sequences."""

    tree: Tree | None
    acceptance_ppm: int
    ns: int

    def beats(self, other: "Step") -> bool:
        """Tell whether this gives more tokens per second for as many sequences, or as many and comes first."""
        own, theirs = self.acceptance_ppm * other.ns, other.acceptance_ppm * self.ns
        return own > theirs or (own == theirs and self.order < other.order)

    @property
    def order(self) -> tuple[int, ...]:
        """Place among equal ones: no draft, then the smallest tree."""
        return (0,) if self.tree is None else (1, *size(self.tree))


def with_schedule(plan: Plan, profile: Profile, *, keep_draft: bool) -> Plan:
    """Return a plan whose tree was chosen with its schedule; unchanged where there is nothing to schedule.

    That is without a draft, for one sequence, and where a KV cache is divided by batch: there no place is left out.
    ``keep_draft``: as the options have it. Raise InputError where the draft is not kept without a schedule.
    """
    if plan.draft is None or plan.options.tree is None or plan.options.batch == 1:
        return plan
    if not is_movable(plan):
        if keep_draft:
            raise InputError("--schedule keep: a KV cache is divided by batch, so no step has fewer places: give --kv")
        return plan
    plan = replace(plan, options=replace(plan.options, keep_draft=keep_draft or None))
    step_of = cache(lambda count, tree: _priced(plan, profile, count, tree))
    settled: dict[int, Step] = {}
    for sequences in range(plan.options.batch, 0, -1):
        ranked = _ranked(steps_for(plan, profile, sequences, step_of))
        settled[sequences] = next(
            step for step in ranked if sequences == plan.options.batch or _fits(plan, {**settled, sequences: step})
        )
    steps = tuple(
        ScheduledStep(acceptance_ppm=settled[entry.sequences].acceptance_ppm, predicted_ns=settled[entry.sequences].ns)
        for entry in _ranges(settled)
    )
    assert plan.speculation is not None, "a tree that was chosen has its record"
    return _recounted(_scheduled(replace(plan, speculation=replace(plan.speculation, schedule=steps)), settled))


def steps_for(
    plan: Plan, profile: Profile, sequences: int, step_of: Callable[[int, Tree | None], Step]
) -> Iterator[Step]:
    """Yield the steps that are compared for a number of running sequences; ``step_of`` prices them for places."""
    draft, tree, count = plan.draft, plan.options.tree, places(plan, sequences)
    assert draft is not None
    assert tree is not None
    full = sequences == plan.options.batch
    trees = [] if full else undominated(list(trees_of(draft, count)), lambda tree: expected_ppm(profile, tree))
    for other in dict.fromkeys((tree, *trees)):
        yield step_of(count, other)
    if not full or plan.options.keep_draft:
        yield step_of(count, None)


def _priced(plan: Plan, profile: Profile, count: int, tree: Tree | None) -> Step:
    acceptance = PPM if tree is None else expected_ppm(profile, tree)
    return Step(tree=tree, acceptance_ppm=acceptance, ns=step_ns(plan, step_options(plan.options, count, tree)))


def _ranked(steps: Iterator[Step]) -> list[Step]:
    """Return steps, the best first."""
    ranked: list[Step] = []
    for step in steps:
        place = next((n for n, other in enumerate(ranked) if step.beats(other)), len(ranked))
        ranked.insert(place, step)
    return ranked


def _ranges(settled: dict[int, Step]) -> tuple[ScheduledTree, ...]:
    """Return the ranges of equal trees; those below the least number that is settled have its tree."""
    ranges: list[ScheduledTree] = []
    for sequences in sorted(settled):
        tree = settled[sequences].tree
        if not ranges or ranges[-1].tree != tree:
            ranges.append(ScheduledTree(sequences=sequences, tree=tree))
    return (replace(ranges[0], sequences=1), *ranges[1:])


def _scheduled(plan: Plan, settled: dict[int, Step]) -> Plan:
    return replace(plan, options=replace(plan.options, schedule=_ranges(settled)))


def _recounted(plan: Plan) -> Plan:
    """Return a plan with the memory lines that its options come to."""
    lines = tuple(
        device_memory(plan, line.device, line.weights_bytes, line.draft_weights_bytes) for line in plan.memory
    )
    free = min(plan.device(line.device).capacity_bytes - line.planned_bytes for line in lines)
    return replace(plan, memory=lines, proof=replace(plan.proof, min_free_bytes=free))


def _fits(plan: Plan, settled: dict[int, Step]) -> bool:
    return _recounted(_scheduled(plan, settled)).proof.min_free_bytes >= 0
