"""``build``: from options to a plan, its directory and its images."""

import sys
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from planner import plan_directory
from planner.api import planning
from planner.api.fleets import Asked
from planner.commands import build_fleet
from planner.commands.compile import compile_images, images_data
from planner.commands.console import put, say
from planner.commands.objectives import objective_lines
from planner.commands.progress import trying
from planner.commands.tables import tables
from planner.demo_model import BASE, DEFAULT_HEAD
from planner.errors import InfeasibleError, InputError
from planner.families import DraftInput
from planner.problem.usable import refuse_unusable
from planner.remedies.explain import explain
from planner.report import render
from planner.report.details import device_details, inventory_lines
from planner.report.models import aux_line
from planner.report.speculation import speculation_lines
from planner.report.view import given_up, is_least, simpler, simplicity_line
from planner.request import (
    DEFAULT_SIMPLIFY_PPM,
    Objective,
    Request,
    Schedule,
    Wanted,
    default_tree,
    resolve_dtype,
    resolve_request,
    tree_text,
)
from planner.solver.minimise import Settings
from planner.speculation.compare import compared
from plans import diff as plan_diff
from plans import terminal
from plans.artifact import compile_command
from plans.format import format_ns
from plans.schema import DType, KvAxis, KvDType, Plan, RoundedWeights, Speculation, Strategy, Tree
from plans.usable import by_reason


def run(
    *,
    inventory: Path,
    model: Path | None,
    draft: Path | None,
    aux_layers: tuple[int, ...] | None,
    no_draft: bool,
    context: int | Literal["max"] | None,
    batch: int | None,
    dtype: DType | None,
    weights: RoundedWeights | None,
    kv_dtype: KvDType | None,
    kv_axis: KvAxis | None,
    strategy: tuple[Strategy | None, Path | None],
    device_map: Path | None,
    map_file: Path | None,
    tree: Tree | None,
    prefill_chunk: int | None,
    stall_timeout_s: int | None,
    gap: int,
    previous: Path | None,
    within_ppm: int | None,
    simplify: int | None,
    max_devices: int | None,
    objective: Objective | Literal["throughput"] | None,
    profile: Path | None,
    schedule: Schedule,
    replicas: int | Literal["auto"] | None,
    clients: int | None,
    min_tokens_per_s: float | None,
    plan_only: bool,
    out: Path | None,
    workers: int,
    solver_seed: int,
    solver_limit: float,
    as_json: bool,
    verbose: int,
) -> None:
    """Solve for a placement, write the plan, and compile its images unless there are no tensors or ``plan_only``."""
    tree_objective = objective_of_fleet(objective, replicas, clients, min_tokens_per_s)
    if no_draft:
        refuse_draft_options(tree_objective, profile)
        draft, tree, aux_layers = None, None, None
    elif model is None and draft is None:
        draft = DEFAULT_HEAD
    out = out or Path("plans") / name_of(model)
    if replicas is None:
        plan_directory.refuse_foreign(out)
    map_path = only_map(strategy[1], device_map, map_file)
    placed_by = planning.strategy_of(strategy[0], map_path)
    wanted = Wanted(
        context=context,
        batch=batch or 1,
        dtype=dtype,
        weights=weights,
        kv_dtype=kv_dtype,
        kv_axis=kv_axis,
        strategy=placed_by,
        tree=tree,
        prefill_chunk=prefill_chunk,
        stall_timeout_s=stall_timeout_s,
        gap_ppm=gap,
        within_ppm=within_ppm,
        simplify_ppm=simplify_ppm(simplify, replicas),
        max_devices=max_devices,
        objective=planning.objective_of(tree_objective, draft, tree, placed_by),
        schedule=schedule,
    )
    request = planning.request_of(
        wanted,
        profile=profile,
        model=model,
        draft=draft,
        aux_layers=aux_layers,
        inventory=inventory,
        device_map=map_path,
        previous=previous,
    )
    warn_of_unusable(request)
    settings = Settings(workers=workers, seed=solver_seed, limit=solver_limit, gap_ppm=gap)
    if replicas is not None:
        number = None if replicas == "auto" else replicas
        asked = Asked(replicas=number, clients=clients, min_tokens_per_s=min_tokens_per_s or 0.0, batch=batch)
        build_fleet.run(
            request, asked, settings, model=model, draft=draft, out=out, plan_only=plan_only, as_json=as_json,
            verbose=verbose,
        )  # fmt: skip
        return
    build_plan(
        request, settings, model=model, draft=draft, previous=previous, out=out, plan_only=plan_only, as_json=as_json,
        verbose=verbose,
    )  # fmt: skip


def build_plan(
    request: Request,
    settings: Settings,
    *,
    model: Path | None,
    draft: Path | None,
    previous: Path | None,
    out: Path,
    plan_only: bool,
    as_json: bool,
    verbose: int,
) -> None:
    """Solve for one placement on all devices, write the plan, and compile its images where there are tensors."""
    result = solve(request, settings, verbose)
    result.write(out)
    speculation = result.plan.speculation
    if speculation is None and request.profile is not None:
        speculation = compared(result.plan, request.profile, settings)
    report(out, result, request, previous, verbose)
    report_draft(out, result, request, speculation)
    bare = report_missing_tensors(out, result, plan_only)
    head = draft if result.draft is not None else None
    compiled = None if plan_only or bare else compile_images(out, model or BASE, head, None, verbose=verbose)
    if as_json:
        images: dict[str, Any] = {"images": images_data(compiled)} if compiled else {}
        summary = render.summary(result.plan, speculation)
        put({"plan": str(out), **summary, "solve_s": round(result.solved.solve_s, 4), **images})
    else:
        terminal.out(str(out))


def objective_of_fleet(
    objective: Objective | Literal["throughput"] | None,
    replicas: int | Literal["auto"] | None,
    clients: int | None,
    min_tokens_per_s: float | None,
) -> Objective | None:
    """Return the objective of a single plan that was asked for; raise InputError for options of fleets without one."""
    if replicas is None:
        fleets = {"--clients": clients, "--min-tokens-per-s": min_tokens_per_s}
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


def simplify_ppm(asked: int | None, replicas: object) -> int:
    """Return how much longer a step may be for a simpler plan: by default not at all in a replica, whose devices do
    nothing else.
    """
    if asked is not None:
        return asked
    return DEFAULT_SIMPLIFY_PPM if replicas is None else 0


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
        missing = f"{named} without tensors, which images are compiled from"
        say(f"{out}: only planned: {missing}: {compile_command(out, result.draft is not None)}")
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


def report(out: Path, result: planning.PlanResult, request: Request, previous: Path | None, verbose: int) -> None:
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
    used, simplicity = len(plan.memory), simplicity_line(plan)
    stages = f"{len(plan.stages)} stage{'s' if len(plan.stages) > 1 else ''}"
    proof = plan.proof
    least = "" if is_least(plan) else f"{given_up(plan):+.2%} {simpler(plan)}, "
    return (
        f"{stages} on {used} device{'s' if used > 1 else ''}, {format_ns(proof.objective_ns)} per step "
        f"({proof.status}, {least}bound {format_ns(proof.bound_ns)}{f'; {simplicity}' if simplicity else ''})"
    )
