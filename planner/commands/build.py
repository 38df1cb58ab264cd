"""``build``: from options to a plan, its directory and its images."""

import sys
from pathlib import Path
from typing import Any, Literal

import click
from rich.console import Console

from planner import build as builder
from planner import plan_directory, request
from planner.commands.compile import compile_images, images_data
from planner.commands.console import put, say
from planner.commands.objectives import objective_lines
from planner.commands.progress import trying
from planner.commands.tables import tables
from planner.demo_model import BASE, DEFAULT_HEAD
from planner.errors import InfeasibleError, InputError
from planner.explain import explain
from planner.families import BaseInput, DraftInput, load_base, load_draft
from planner.hardware.inventory import load_inventory
from planner.hardware.records import HardwareInventory
from planner.problem.device_map import load_device_map
from planner.problem.device_map import read as read_device_map
from planner.report import render
from planner.report.details import device_details, inventory_lines
from planner.solver.minimise import Settings
from plans import diff as plan_diff
from plans.check import load
from plans.format import format_ns
from plans.schema import DType, KvAxis, KvDType, Pin, Plan, Strategy, Tree

DEFAULT_WITHIN_PPM = 20_000
"""Relative increase of the step time that ``--previous`` accepts, in parts per million."""


def run(
    *,
    inventory: Path,
    model: Path | None,
    draft: Path | None,
    no_draft: bool,
    context: int | Literal["max"] | None,
    batch: int,
    dtype: DType | None,
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
    plan_only: bool,
    out: Path | None,
    workers: int,
    solver_seed: int,
    solver_limit: float,
    as_json: bool,
    verbose: int,
) -> None:
    """Solve for a placement, write the plan, and compile its images unless there are no tensors or ``plan_only``."""
    settings = Settings(workers=workers, seed=solver_seed, limit=solver_limit, gap_ppm=gap)
    if no_draft:
        draft, tree = None, None
    elif model is None and draft is None:
        draft = DEFAULT_HEAD
    out = out or Path("plans") / name_of(model)
    model = model or BASE
    plan_directory.refuse_foreign(out)
    map_path = only_map(strategy[1], device_map, map_file)
    earlier, within_ppm = load_previous(previous, within_ppm, gap)
    base = load_base(model)
    drafter = load_draft(draft, base) if draft else None
    devices = load_inventory(inventory)
    wanted = request.Wanted(
        context=context,
        batch=batch,
        dtype=dtype,
        kv_dtype=kv_dtype,
        tree=tree,
        prefill_chunk=prefill_chunk,
        stall_timeout_s=stall_timeout_s,
        strategy=chosen_strategy(strategy[0], map_path),
        kv_axis=kv_axis,
        custom=read_map(map_path, base, drafter, devices) if map_path else None,
        gap_ppm=gap,
        within_ppm=within_ppm,
    )
    asked = request.Request(base=base, draft=drafter, inventory=devices, wanted=wanted, previous=earlier)
    built = solved(asked, settings)
    plan_directory.write(out, built.plan, base, drafter)
    report(out, built, asked, previous, verbose)
    bare = without_tensors(base, drafter)
    if bare and not plan_only:
        say(f"{out}: only planned: {' and '.join(bare)} without tensors, which images are compiled from")
    compiled = None if plan_only or bare else compile_images(out, model, draft, None, verbose=verbose)
    if as_json:
        images: dict[str, Any] = {"images": images_data(compiled)} if compiled else {}
        put({"plan": str(out), **render.summary(built.plan), "solve_s": round(built.solved.solve_s, 4), **images})
    else:
        click.echo(str(out))


def solved(asked: request.Request, settings: Settings) -> builder.Built:
    """Build the plan; where nothing fits, raise InfeasibleError with the changes that would make it fit."""
    try:
        return builder.build(asked, settings)
    except InfeasibleError as error:
        with trying(Console(stderr=True), say) as say_tried:
            explained = explain(asked, error, settings, say_tried)
        raise explained from error


def only_map(*files: Path | None) -> Path | None:
    """Return the device map, which three options can give; raise InputError where more than one does."""
    maps = [file for file in files if file is not None]
    if len(maps) > 1:
        raise InputError(f"--device-map: found {' and '.join(map(str, maps))}, expected one device map")
    return maps[0] if maps else None


def chosen_strategy(name: Strategy | None, device_map: Path | None) -> Strategy:
    """Return the strategy: ``custom`` with a device map, else ``latency`` where none is named."""
    if device_map is None:
        return name or request.Wanted().strategy
    if name not in (None, "custom"):
        raise InputError(f"--device-map {device_map}: is strategy custom: leave --strategy {name} out")
    return "custom"


def read_map(file: Path, base: BaseInput, drafter: DraftInput | None, devices: HardwareInventory) -> tuple[Pin, ...]:
    """Return the device map of a file as pins of the model to the devices of an inventory."""
    data = load_device_map(file)
    return read_device_map(data, str(file), base.model, drafter.draft if drafter else None, devices.devices)


def load_previous(previous: Path | None, within_ppm: int | None, gap_ppm: int) -> tuple[Plan | None, int | None]:
    """Return the earlier plan, and how much longer than the shortest a step may take to keep its weights in place."""
    if previous is None:
        if within_ppm is not None:
            raise InputError("--within: there is no earlier plan: give --previous")
        return None, None
    if gap_ppm:
        raise InputError("--previous: needs the proven shortest step, which --gap does not give: leave --gap out")
    return load(previous), DEFAULT_WITHIN_PPM if within_ppm is None else within_ppm


def name_of(model: Path | None) -> str:
    """Return the default name of a plan: that of its model's directory."""
    if model is None:
        return "demo"
    resolved = model.resolve()
    return (resolved.parent if resolved.suffix == ".json" else resolved).name


def without_tensors(base: BaseInput, draft: DraftInput | None) -> list[str]:
    """Return the configs that were given without tensors."""
    checkpoints = (base.checkpoint, *((draft.checkpoint,) if draft else ()))
    return [str(checkpoint.config_file) for checkpoint in checkpoints if checkpoint.tensors is None]


def report(out: Path, built: builder.Built, asked: request.Request, previous: Path | None, verbose: int) -> None:
    """Write what was planned to stderr, with the details that ``verbose`` asks for."""
    plan, drafter = built.plan, asked.draft
    say(f"{out}: {summary_line(plan)}, solved in {built.solved.solve_s:.2f} s")
    if built.longest_context is not None:
        limit = "the model's limit" if built.longest_context == asked.base.max_positions else "the most that fits"
        say(f"{out}: --context max is {built.longest_context}, {limit}")
    if asked.previous is not None:
        say(f"{out}: {plan_diff.moved(asked.previous, plan)}, compared with {previous}")
    if drafter is not None and plan.options.context > drafter.max_positions:
        say(f"{out}: the EAGLE head was trained for {drafter.max_positions} positions: beyond them it may draft worse")
    if verbose:
        say("\n".join(inventory_lines(plan.inventory)))
        say(tables(plan, sys.stderr))
    if verbose > 1:
        say("\n".join([*device_details(plan), *objective_lines(built.solved)]))


def summary_line(plan: Plan) -> str:
    """Return the plan in one line: stages, devices, predicted step time, proof."""
    used = len(plan.memory)
    stages = f"{len(plan.stages)} stage{'s' if len(plan.stages) > 1 else ''}"
    proof = plan.proof
    return (
        f"{stages} on {used} device{'s' if used > 1 else ''}, {format_ns(proof.objective_ns)} per step "
        f"({proof.status}, bound {format_ns(proof.bound_ns)})"
    )
