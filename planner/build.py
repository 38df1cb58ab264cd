"""Builds a plan: request -> formulation -> solve -> plan. ``build`` and ``check`` share it.

:mod:`planner.request` resolves the options, :mod:`planner.problem.formulate` turns them into the solver's integers,
:mod:`planner.solver.solve` solves and proves, and :mod:`planner.emit` turns the answer into a plan. Files are written
by :mod:`planner.plan_directory`, remedies for a refusal sought by :mod:`planner.remedies`.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from planner.costs import stall
from planner.emit import emit
from planner.enough_hosts import infeasible_on_all, settle_on_enough, solve_on_enough
from planner.errors import ArtifactError, InputError, NotProvenError
from planner.families import inputs_of, load_base, load_planned_draft, within
from planner.formulations import Formulations
from planner.longest_context import longest_context
from planner.plan_directory import BASE_CONFIG, draft_config
from planner.problem.formulate import Formulation
from planner.problem.previous_plan import Previous, listed_order
from planner.request import Request, resolve_request
from planner.solver.minimise import Settings
from planner.solver.solve import Keep, Solved, solve, solve_nearly
from planner.speculation.compare import Question, chosen, recorded
from planner.speculation.profiles import profile_beside
from planner.speculation.schedule import with_schedule
from plans.acceptance import ACCEPTANCE, Profile, load_profile
from plans.check_inputs import MOST_STALL_S
from plans.format import format_s
from plans.schema import Inputs, Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """A plan with its proof."""

    plan: Plan
    solved: Solved
    longest_context: int | None = None
    """Positions that the context ``max`` came to; None where another context was asked for."""


def build(
    request: Request, settings: Settings, *, nearly: bool = False, formulations: Formulations | None = None
) -> Built:
    """Return the plan of a request; raise InputError, InfeasibleError or NotProvenError.

    ``nearly``: a plan that is not proven optimal within the solver's limit is sought with the least gap that is.
    ``formulations``: those made for other questions about the same model.
    """
    formulations = formulations or Formulations()
    longest, wanted = None, request.wanted
    if wanted.context == "max":
        longest = longest_context(request, settings, formulations)
        wanted = dataclasses.replace(wanted, context=longest)
    options, inventory = resolve_request(dataclasses.replace(request, wanted=wanted))
    previous = request.previous
    if previous is not None and previous.model != within(request.base.model, options.context):
        raise InputError("--previous: a plan of another model: give one of this model")
    if wanted.objective == "tokens" and not nearly:
        assert request.draft is not None
        assert request.profile is not None
        question = Question(
            base=request.base,
            draft=request.draft,
            options=options,
            inventory=inventory,
            profile=request.profile,
            schedule=wanted.schedule != "off",
            keep_draft=wanted.schedule == "keep",
        )
        built = plan_chosen(question, settings, formulations, previous)
    else:
        formulation = formulations.of(request.base, request.draft, inventory, options)
        built = plan(formulation, inputs_of(request.base, request.draft), settings, previous, nearly=nearly)
    with_timeout = with_stall_timeout(built.plan, wanted.stall_timeout_s)
    return Built(plan=with_timeout, solved=built.solved, longest_context=longest)


def plan_chosen(question: Question, settings: Settings, known: Formulations, previous: Plan | None) -> Built:
    """Return the plan with the tree, or without the draft, that is expected to give the most tokens per second.

    But for the record of the choice it is the plan that this tree, or no draft, has where it is asked for. Raise as
    ``build`` does.
    """
    try:
        choice = chosen(question, settings, known)
    except NotProvenError as error:
        message = f"{error}; or choose the tree yourself, with --tree or --objective step, so that one search is enough"
        raise NotProvenError(message, objective_ns=error.objective_ns, bound_ns=error.bound_ns) from error
    if choice is None:
        raise infeasible_on_all(question.formulations(known)(None), settings)
    best = choice.best
    inputs = inputs_of(question.base, question.draft if best.tree else None)
    formulation, solved = question.formulations(known)(best.tree), None
    if question.options.within_ppm is None:
        solved = settle_on_enough(formulation, best.formulation, best.step)
    if solved is None:
        built = plan(formulation, inputs, settings, previous)
    else:
        built = Built(plan=emit(best.formulation, inputs, solved), solved=solved)
    record = recorded(choice, question.profile)
    chosen_plan = dataclasses.replace(built.plan, speculation=record)
    if question.schedule:
        chosen_plan = with_schedule(chosen_plan, question.profile, keep_draft=question.keep_draft)
    return dataclasses.replace(built, plan=chosen_plan)


def replan(directory: Path, frozen: Plan, settings: Settings) -> Plan:
    """Return the plan that the inputs recorded in ``directory`` lead to; see :func:`rebuild`."""
    return rebuild(directory, frozen, settings).plan


def rebuild(directory: Path, frozen: Plan, settings: Settings) -> Built:
    """Solve the problem of the plan ``frozen`` again from the inputs recorded in ``directory``; no weights are needed.

    A plan that kept weights of an earlier one is solved with itself as the earlier one, of which all is to be kept. A
    tree that was chosen is chosen again; where no draft was, the plan has no drafter to try another one with.
    """
    base = load_base(directory / BASE_CONFIG, frozen.options.weights, frozen.model)
    draft = None
    if frozen.draft is not None:
        draft = load_planned_draft(draft_config(directory), base, frozen.draft)
    if frozen.speculation is not None and draft is not None:
        profile = recorded_profile(directory)
        question = Question(
            base=base,
            draft=draft,
            options=dataclasses.replace(frozen.options, schedule=None, keep_draft=None),
            inventory=frozen.inventory,
            profile=profile,
            schedule=frozen.options.schedule is not None,
            keep_draft=bool(frozen.options.keep_draft),
        )
        return plan_chosen(question, settings, Formulations(), frozen)
    formulation = Formulations().of(base, draft, frozen.inventory, frozen.options)
    built = plan(formulation, inputs_of(base, draft), settings, frozen)
    if frozen.speculation is None:
        return built
    plain = dataclasses.replace(frozen.speculation, plain_ns=built.plan.proof.least_ns)  # the drafts are not recorded
    return dataclasses.replace(built, plan=dataclasses.replace(built.plan, speculation=plain))


def recorded_profile(directory: Path) -> Profile:
    """Return the acceptance profile beside a plan; raise ArtifactError where there is none, PlanError for a bad one."""
    file = profile_beside(directory)
    if file is None:
        absent = directory / ACCEPTANCE
        raise ArtifactError(f"{absent}: no such file: the tree was chosen by the acceptance profile in it: build again")
    return load_profile(file, inside=True)


def plan(
    formulation: Formulation, inputs: Inputs, settings: Settings, previous: Plan | None = None, *, nearly: bool = False
) -> Built:
    """Solve a formulation and emit its plan; raise InfeasibleError or NotProvenError.

    ``previous``: an earlier plan of the same model, to keep weights of.
    """
    if formulation.options.within_ppm is not None:
        assert previous is not None, "within_ppm is relative to an earlier plan"
        assert previous.model == formulation.model, "weights of another model cannot stay"
        used = {line.device for line in previous.memory}
        named = frozenset(device.host for device in formulation.inventory.devices if device.id in used)
        formulation = dataclasses.replace(formulation, named_hosts=named, listed=listed_order(previous))

    def solve_on(part: Formulation, known_ns: int | None) -> Solved | None:
        limited = dataclasses.replace(settings, known_ns=known_ns)
        earlier = _earlier(part, inputs, previous)
        if earlier is not None and part.options.within_ppm is not None:
            return solve(part.problem, limited, Keep(earlier=earlier, within_ppm=part.options.within_ppm))
        return (solve_nearly if nearly else solve)(part.problem, limited)

    searched, solved = solve_on_enough(formulation, solve_on)
    if solved is None:
        raise infeasible_on_all(searched, settings)
    return Built(plan=emit(searched, inputs, solved, _earlier(searched, inputs, previous)), solved=solved)


def _earlier(formulation: Formulation, inputs: Inputs, previous: Plan | None) -> Previous | None:
    """Return the earlier plan in the indices of the formulation's problem, None where none of it is to be kept."""
    if previous is None or formulation.options.within_ppm is None:
        return None
    return Previous(formulation, inputs, previous)


def with_stall_timeout(plan: Plan, asked_s: int | None) -> Plan:
    """Return the plan with a stall timeout that its devices can keep; raise InputError if the one asked for is short.

    A device that computes reports no progress, so the timeout must exceed the longest predicted piece of computation.
    """
    device, silence_ns = stall.longest_silence(plan)
    if silence_ns > MOST_STALL_S * 10**9:
        raise InputError(
            f"device {device} is predicted to compute {format_s(silence_ns / 1e9)} in one piece, and a run that is "
            f"silent for {MOST_STALL_S} s is taken to hang: leave the device out, or give a smaller --prefill-chunk"
        )
    if asked_s is None:
        stall_timeout_s = min(stall.stall_timeout_s(silence_ns), MOST_STALL_S)
        return dataclasses.replace(plan, options=dataclasses.replace(plan.options, stall_timeout_s=stall_timeout_s))
    if asked_s * 10**9 < silence_ns:
        raise InputError(
            f"--stall-timeout: found {asked_s}, device {device} is predicted to compute {format_s(silence_ns / 1e9)} "
            f"in one piece: give {stall.stall_timeout_s(silence_ns)}, or a smaller --prefill-chunk"
        )
    return plan
