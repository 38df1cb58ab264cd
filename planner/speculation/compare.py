"""Choices and comparisons as a plan records them, and the formulations of a request with one tree or another."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from planner.enough_hosts import solve_on_enough, takes_longer_on_all
from planner.errors import NotProvenError
from planner.families import BaseInput, DraftInput
from planner.formulations import Formulations
from planner.problem.formulate import Formulation
from planner.solver.minimise import Settings
from planner.solver.solve import LeastStep, least_step
from planner.speculation.choose import Choice, choose
from planner.speculation.grid import trees_of
from planner.speculation.placed import on_same_placement
from plans.acceptance import Profile, profile_digest
from plans.schema import Inventory, Options, Plan, RunnerUp, Speculation, Tree


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A request whose draft tree is to be chosen."""

    base: BaseInput
    draft: DraftInput
    options: Options
    """Options with any tree."""
    inventory: Inventory
    profile: Profile
    schedule: bool
    """Trees for fewer sequences are chosen too."""
    keep_draft: bool
    """With a schedule: a tree is chosen where none is better."""

    def formulations(self, known: Formulations) -> Callable[[Tree | None], Formulation]:
        """Return the formulation with a tree, or without the draft."""

        def of(tree: Tree | None) -> Formulation:
            options = dataclasses.replace(self.options, tree=tree)
            return known.of(self.base, self.draft if tree else None, self.inventory, options)

        return of


def chosen(question: Question, settings: Settings, known: Formulations) -> Choice | None:
    """Return the choice of the tree, None where nothing fits; raise InputError or NotProvenError."""
    trees = trees_of(question.draft.draft, question.options.batch)
    return choose(
        question.formulations(known),
        trees,
        question.profile,
        least_step_of(settings),
        lambda formulation, step_ns: takes_longer_on_all(formulation, step_ns, settings),
        drafts=question.keep_draft,
    )


def least_step_of(settings: Settings) -> Callable[[Formulation], tuple[Formulation, LeastStep | None]]:
    """Return what finds the least step of a formulation, on as many hosts as are enough."""

    def least_on(part: Formulation, known_ns: int | None) -> LeastStep | None:
        return least_step(part.problem, dataclasses.replace(settings, known_ns=known_ns))

    return lambda formulation: solve_on_enough(formulation, least_on)


def recorded(choice: Choice, profile: Profile) -> Speculation:
    """Return a choice as its plan records it."""
    other = choice.runner_up
    return Speculation(
        profile_sha256=profile_digest(profile),
        profile_source=profile.source,
        acceptance_ppm=choice.best.acceptance_ppm,
        plain_ns=choice.plain.least_ns,
        trees=choice.trees,
        runner_up=None
        if other is None
        else RunnerUp(tree=other.tree, acceptance_ppm=other.acceptance_ppm, least_ns=other.least_ns),
    )


def compared(plan: Plan, profile: Profile, settings: Settings) -> Speculation | None:
    """Return a plan whose tree was asked for, compared with plain decoding; None where it has no draft.

    Where plain decoding is not solved within the limit, it is the best placement that was found.
    """
    beside = on_same_placement(plan, profile)
    if beside is None:
        return None
    options = dataclasses.replace(plan.options, tree=None, within_ppm=None)
    plain = Formulation(model=plan.model, draft=None, options=options, inventory=plan.inventory)
    try:
        _, step = least_step_of(settings)(plain)
    except NotProvenError as error:
        found_ns = error.objective_ns
    else:
        found_ns = step.least_ns if step else None
    return dataclasses.replace(beside, plain_ns=min(beside.plain_ns, found_ns or beside.plain_ns))
