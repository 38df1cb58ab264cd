"""``build``: from options to a plan, its directory and its images."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from planner import plan_directory
from planner.api import planning
from planner.api.fleets import Asked
from planner.api.options import BuildOptions
from planner.commands import build_fleet
from planner.commands.compile import compile_images, images_data
from planner.commands.console import put, say
from planner.commands.objectives import objective_lines
from planner.commands.output import Output
from planner.commands.progress import trying
from planner.commands.tables import tables
from planner.demo_model import BASE
from planner.errors import InfeasibleError, InputError
from planner.families import DraftInput
from planner.problem.usable import refuse_unusable
from planner.remedies.explain import explain
from planner.report import render
from planner.report.details import device_details, inventory_lines
from planner.report.models import aux_line
from planner.report.proof import given_up, is_least, simpler, simplest
from planner.report.speculation import speculation_lines
from planner.request import (
    DEFAULT_SIMPLIFY_PPM,
    Objective,
    Request,
    default_tree,
    resolve_dtype,
    resolve_request,
    tree_text,
)
from planner.solver.minimise import Settings
from planner.speculation.compare import compared
from plans import diff as plan_diff
from plans import terminal
from plans.acceptance import PPM
from plans.artifact import compile_command
from plans.format import format_ns
from plans.schema import Plan, Speculation, Strategy
from plans.usable import by_reason


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """What the command line has beside :class:`BuildOptions`, or in another form."""

    no_draft: bool
    strategy: tuple[Strategy | None, Path | None]
    """Name, and the device map of ``custom:FILE``."""
    device_map: Path | None
    map_file: Path | None
    simplify: float | None
    objective: Objective | Literal["throughput"] | None
    replicas: int | Literal["auto"] | None
    clients: int | None
    min_tokens_per_s: float | None
    plan_only: bool
    out: Path | None
    workers: int
    solver_seed: int
    solver_limit: float
    as_json: bool
    verbose: int


def run(**values: Any) -> None:
    """Solve for a placement, write the plan, and compile its images unless there are no tensors or ``plan_only``.

    ``values``: those of ``declarations.BUILD``, by name.
    """
    arguments = Arguments(**{field.name: values.pop(field.name) for field in fields(Arguments)})
    out = arguments.out or Path("plans") / name_of(values["model"])
    options = build_options(arguments, values)
    if arguments.replicas is None:
        plan_directory.refuse_foreign(out)
    request = planning.request_of(options)
    warn_of_unusable(request)
    settings = Settings(
        workers=arguments.workers,
        seed=arguments.solver_seed,
        limit=arguments.solver_limit,
        gap_ppm=request.wanted.gap_ppm,
    )
    output = Output(directory=out, plan_only=arguments.plan_only, as_json=arguments.as_json, verbose=arguments.verbose)
    if arguments.replicas is None:
        build_plan(options, request, settings, output)
        return
    asked = Asked(
        replicas=None if arguments.replicas == "auto" else arguments.replicas,
        clients=arguments.clients,
        min_tokens_per_s=arguments.min_tokens_per_s or 0.0,
        batch=options.batch,
    )
    build_fleet.run(options, request, asked, settings, output)


def build_options(arguments: Arguments, values: Mapping[str, Any]) -> BuildOptions:
    """Return the options of a command line, ``values`` as they are; raise InputError for what contradicts itself."""
    objective = objective_of(arguments)
    if arguments.no_draft:
        refuse_draft_options(objective, values["profile"])
        values = {**values, "model": values["model"] or BASE, "draft": None, "tree": None, "aux_layers": None}
    simplify = arguments.simplify
    if simplify is None:  # the devices of a replica do nothing else
        simplify = DEFAULT_SIMPLIFY_PPM / PPM if arguments.replicas is None else 0.0
    strategy, file = arguments.strategy
    device_map = only_map(file, arguments.device_map, arguments.map_file)
    return BuildOptions(**values, strategy=strategy, device_map=device_map, objective=objective, simplify=simplify)


def build_plan(options: BuildOptions, request: Request, settings: Settings, output: Output) -> None:
    """Solve for one placement on all devices, write the plan, and compile its images where there are tensors."""
    out = output.directory
    result = solve(request, settings, output.verbose)
    result.write(out)
    speculation = result.plan.speculation
    if speculation is None and request.profile is not None:
        speculation = compared(result.plan, request.profile, settings)
    report(out, result, request, options.previous, output.verbose)
    report_draft(out, result, request, speculation)
    images: dict[str, Any] = {}
    if not report_missing_tensors(out, result, output.plan_only) and not output.plan_only:
        head = options.head if result.draft is not None else None
        images["images"] = images_data(compile_images(out, options.base, head, None, verbose=output.verbose))
    if output.as_json:
        summary = render.summary(result.plan, speculation)
        put({"plan": str(out), **summary, "solve_s": round(result.solved.solve_s, 4), **images})
    else:
        terminal.out(str(out))


def objective_of(arguments: Arguments) -> Objective | None:
    """Return the objective of a single plan that was asked for; raise InputError for options of fleets without one."""
    objective = arguments.objective
    if arguments.replicas is None:
        fleets = {"--clients": arguments.clients, "--min-tokens-per-s": arguments.min_tokens_per_s}
        given = [option for option, value in fleets.items() if value is not None]
        if objective == "throughput":
            given.append("--objective throughput")
        if given:
            raise InputError(f"{given[0]}: is about replicas: give --replicas auto, or a number of them")
    elif objective not in (None, "throughput"):
        raise InputError(f"--objective {objective}: found with --replicas, which are for throughput: leave it out")
    return None if objective == "throughput" else objective


def refuse_draft_options(objective: Objective | None, profile: Path | None) -> None:
    """Raise InputError for options beside --no-draft that only a draft gives a meaning."""
    if objective == "tokens":
        raise InputError(
            "--objective tokens: chooses a draft tree, and --no-draft asks for none: leave one of them out"
        )
    if profile is not None:
        raise InputError(f"--profile {profile}: is of a draft, and --no-draft asks for none: leave one of them out")


def report_draft(out: Path, result: planning.PlanResult, request: Request, speculation: Speculation | None) -> None:
    """Say what drafting is expected to gain, and how to keep a draft that the plan does without."""
    for line in speculation_lines(result.plan, speculation):
        say(f"{out}: {line}")
    if request.draft is not None and result.draft is None:
        kept = tree_text(default_tree(request.draft))
        few = " --schedule keep to draft for fewer sequences," if result.plan.options.batch > 1 else ""
        say(f"{out}: planned without the EAGLE head; to keep it, give{few} --tree {kept}, or --objective step")


def report_missing_tensors(out: Path, result: planning.PlanResult, plan_only: bool) -> bool:
    """Say which configs had no tensors; return whether there are any."""
    bare = result.configs_without_tensors
    named = " and ".join(map(str, bare))
    if bare and not plan_only:
        command = compile_command(out, result.draft is not None)
        say(f"{out}: no images: there are no tensors beside {named}; where they are: {command}")
    elif bare:
        say(f"{out}: no weights were seen: planned from {named} alone")
    return bool(bare)


def solve(request: Request, settings: Settings, verbose: int) -> planning.PlanResult:
    """Solve a request; where nothing fits, raise InfeasibleError with the changes that would make it fit."""
    try:
        return planning.solved(request, settings)
    except InfeasibleError as error:
        if verbose:  # there is no plan to report
            dtype = resolve_dtype(request.wanted, request.base, request.inventory)
            say("\n".join(inventory_lines(request.inventory.at(dtype))))
        with trying(Console(stderr=True), say) as say_tried:
            explained = explain(request, error, settings, say_tried)
        raise explained from error


def warn_of_unusable(request: Request) -> None:
    """Write to stderr which devices cannot run the model, and so get no part of it, and why.

    Raise InputError where no other device is left, or a device map names one.
    """
    options, inventory = resolve_request(request)
    for line in by_reason(refuse_unusable(inventory, options)):
        say(f"warning: nothing is placed on {line}")


def only_map(*files: Path | None) -> Path | None:
    """Return the device map, which three options can give; raise InputError where more than one does."""
    maps = [file for file in files if file is not None]
    if len(maps) > 1:
        raise InputError(f"--device-map: found {' and '.join(map(str, maps))}, expected one device map")
    return maps[0] if maps else None


def name_of(model: Path | None) -> str:
    """Return the default name of a plan: that of its model's directory."""
    if model is None:
        return "demo"
    resolved = model.resolve()
    return (resolved.parent if resolved.suffix == ".json" else resolved).name


def report(out: Path, result: planning.PlanResult, request: Request, previous: str | Path | None, verbose: int) -> None:
    """Write what was planned to stderr, with the details that ``verbose`` asks for."""
    plan, drafter = result.plan, result.draft
    say(f"{out}: {summary_line(plan)}, solved in {result.solved.solve_s:.2f} s")
    for note in result.base.notes:
        say(f"{out}: {note}")
    for note in drafter.notes if drafter is not None else ():
        say(f"{out}: EAGLE head: {note}")
    if request.wanted.context == "max":
        limit = "the model's limit" if plan.options.context == request.base.max_positions else "the most that fits"
        say(f"{out}: --context max is {plan.options.context}, {limit}")
    if request.previous is not None:
        say(f"{out}: {plan_diff.moved(request.previous, plan)}, compared with {previous}")
    if drafter is not None and plan.options.context > drafter.max_positions:
        say(f"{out}: the EAGLE head was trained for {drafter.max_positions} positions: beyond them it may draft worse")
    if drafter is not None and drafter.draft.kind == "eagle3":
        say(f"{out}: {head_line(drafter, plan.model.num_layers)}")
    if verbose:
        say("\n".join(inventory_lines(plan.inventory)))
        terminal.err(tables(plan, sys.stderr), styled=True)
    if verbose > 1:
        say("\n".join([*device_details(plan), *objective_lines(result.solved)]))


def head_line(head: DraftInput, num_layers: int) -> str:
    """Return the layers of the model that an EAGLE-3 head reads, in words, and what is not certain about them."""
    draft = head.draft
    guessed = bool(draft.aux_layers) and draft.aux_layers_from is None and head.checkpoint.tensors is None
    doubt = "; a bare config does not tell who trained the head: make sure of them" if guessed else ""
    return f"the EAGLE head reads {aux_line(draft, num_layers)}{doubt}"


def summary_line(plan: Plan) -> str:
    """Return the plan in one line: stages, devices, predicted step time, proof."""
    used, simplicity = len(plan.memory), simplest(plan)
    stages = f"{len(plan.stages)} stage{'s' if len(plan.stages) > 1 else ''}"
    proof = plan.proof
    least = "" if is_least(plan) else f"{given_up(plan):+.2%} {simpler(plan)}, "
    return (
        f"{stages} on {used} device{'s' if used > 1 else ''}, {format_ns(proof.objective_ns)} per step "
        f"({proof.status}, {least}bound {format_ns(proof.bound_ns)}{f', {simplicity}' if simplicity else ''})"
    )
