"""`build` and `check`: what needs the solver."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import click
from rich.console import Console

from planner import build as builder
from planner import plan_directory, request
from planner.commands.compile import compile_images, images_data
from planner.commands.console import DEMO, DIRECTORY, put, refusals, say, tables
from planner.commands.options import parse_context, parse_gap, parse_strategy, parse_tree, parse_within
from planner.commands.progress import trying
from planner.commands.refusals import describe
from planner.errors import InfeasibleError, InputError, PlannerError
from planner.explain import explain
from planner.families import BaseInput, DraftInput, load_base, load_draft
from planner.hardware.inventory import read_inventory
from planner.problem.device_map import load_device_map
from planner.report import render
from planner.solver import limits
from planner.solver.minimise import Settings
from plans import codec
from plans import diff as plan_diff
from plans.check import load
from plans.check_inputs import MOST_STALL_S
from plans.format import format_ns
from plans.schema import DTYPE_BYTES, KV_DTYPE_BYTES, KvAxis, Plan, PlanError, Strategy

DEFAULT_WITHIN_PPM = 20_000
"""How much longer than the least a step may take with ``--previous``."""


@click.command("build")
@click.option("--gpus", "inventory", type=DIRECTORY, required=True, help="The inventory of devices (YAML).")
@click.option("--model", type=DIRECTORY, help="Checkpoint directory or config.json; default: the embedded demo model.")
@click.option("--draft", type=DIRECTORY, help="EAGLE head, likewise; without it a --model is decoded plainly.")
@click.option("--no-draft", is_flag=True, help="Decode plainly, whatever --draft and --tree say.")
@click.option("--context", callback=parse_context, help="Positions of a sequence, prompt and new tokens: N or max.")
@click.option("--batch", type=click.IntRange(1, 1024), default=1, show_default=True, help="Sequences at a time.")
@click.option("--dtype", type=click.Choice(list(DTYPE_BYTES)), help="Default: the checkpoint's, float32 on CPUs alone.")
@click.option("--kv-dtype", type=click.Choice(list(KV_DTYPE_BYTES)), help="Of the KV cache; default: --dtype.")
@click.option("--kv", "kv_axis", type=click.Choice(get_args(KvAxis)), help="How KV is divided; default: solved for.")
@click.option(
    "--strategy",
    callback=parse_strategy,
    default="latency",
    show_default=True,
    metavar="STRATEGY",
    help=f"{', '.join(get_args(Strategy))}; custom:FILE is custom with --device-map FILE.",
)
@click.option("--device-map", type=DIRECTORY, help="A Hugging Face device_map (YAML or JSON), for custom.")
@click.argument("map_file", metavar="[MAP]", type=DIRECTORY, required=False)
@click.option("--tree", callback=parse_tree, help="total_token=60,depth=7,top_k=10, or static: the draft token tree.")
@click.option("--prefill-chunk", type=click.IntRange(min=1), help="Prompt tokens of one forward.")
@click.option(
    "--stall-timeout",
    "stall_timeout_s",
    metavar="S",
    type=click.IntRange(1, MOST_STALL_S),
    help="Seconds without progress of a device after which a run ends; default: 6, or what the slowest needs.",
)
@click.option(
    "--gap", callback=parse_gap, default="0", show_default=True, help="Accept a placement this close, as 0.05."
)
@click.option("--previous", type=DIRECTORY, help="A plan of which as much is kept as --within allows.")
@click.option(
    "--within",
    "within_ppm",
    callback=parse_within,
    help="How much longer than the least a step may take for that, as 2%; default: 2%.",
)
@click.option("--plan-only", is_flag=True, help="Write the plan, do not compile images.")
@click.option("--out", type=DIRECTORY, help="Directory of the plan; default: plans/NAME after the model.")
@click.option("--workers", type=click.IntRange(min=1), default=1, hidden=True)
@click.option("--solver-seed", type=click.IntRange(min=0), default=0, hidden=True)
@click.option(
    "--solver-limit",
    type=click.FloatRange(0, limits.DETERMINISTIC_LIMIT),
    default=limits.DETERMINISTIC_LIMIT,
    hidden=True,
)
@click.option("--json", "as_json", is_flag=True, help="One object on stdout.")
@click.option("-v", "verbose", count=True, help="The plan as tables; -vv: and each objective with its bound.")
@refusals
def build_command(
    *,
    inventory: Path,
    model: Path | None,
    draft: Path | None,
    no_draft: bool,
    strategy: tuple[Strategy, Path | None],
    device_map: Path | None,
    map_file: Path | None,
    previous: Path | None,
    out: Path | None,
    plan_only: bool,
    as_json: bool,
    verbose: int,
    **wanted: Any,
) -> None:
    """Solve the placement of a model on an inventory, write the plan, and compile its images.

    MAP is the device map of --strategy custom, another way to give --device-map.
    """
    gap_ppm = wanted.pop("gap")
    settings = Settings(
        workers=wanted.pop("workers"),
        seed=wanted.pop("solver_seed"),
        limit=wanted.pop("solver_limit"),
        gap_ppm=gap_ppm,
    )
    if no_draft:
        draft, wanted["tree"] = None, None
    elif model is None and draft is None:
        draft = DEMO / "eagle3"
    out = out or Path("plans") / name_of(model)
    model = model or DEMO / "base"
    plan_directory.refuse_foreign(out)
    chosen = one_map(strategy, device_map, map_file)
    kept, wanted["within_ppm"] = load_previous(previous, wanted["within_ppm"], gap_ppm)
    asked = request.Wanted(gap_ppm=gap_ppm, strategy=strategy[0], **wanted)
    base = load_base(model)
    head = load_draft(draft, base) if draft else None
    if not plan_only:
        refuse_bare(base, head)
    asked_for = request.Request(
        base=base,
        draft=head,
        inventory=read_inventory(inventory),
        inventory_file=str(inventory),
        wanted=asked,
        device_map=load_device_map(chosen) if chosen else None,
        device_map_file=str(chosen or ""),
        previous=kept,
    )
    try:
        built = builder.build(asked_for, settings)
    except InfeasibleError as error:
        with trying(Console(stderr=True), say) as tell_tried:
            explained = explain(asked_for, error, settings, tell_tried)
        raise explained from error
    plan_directory.write(out, built.plan, base, head)
    tell(out, built, kept, previous, verbosity(verbose))
    if head is not None and built.plan.options.context > head.max_positions:
        say(f"{out}: the EAGLE head was trained for {head.max_positions} positions: beyond them it may draft worse")
    compiled = None if plan_only else compile_images(out, model, draft, None)
    if as_json:
        images = {"images": images_data(compiled)} if compiled else {}
        put({"plan": str(out), **render.summary(built.plan), "solve_s": round(built.solved.solve_s, 4), **images})
    else:
        click.echo(str(out))


def one_map(strategy: tuple[Strategy, Path | None], device_map: Path | None, map_file: Path | None) -> Path | None:
    """The device map, in whichever way it was given."""
    maps = [file for file in (strategy[1], device_map, map_file) if file is not None]
    if len(maps) > 1 or (maps and strategy[0] != "custom"):
        raise InputError(f"device map: found {maps[0]}, expected one map at most, and only with --strategy custom")
    return maps[0] if maps else None


def tell(out: Path, built: builder.Built, kept: Plan | None, previous: Path | None, verbose: int) -> None:
    """What came out, and on request how."""
    say(f"{out}: {summary_line(built.plan)}, solved in {built.solved.solve_s:.2f} s")
    if kept is not None:
        say(f"{out}: {plan_diff.moved(kept, built.plan)}, compared with {previous}")
    if verbose:
        say(tables(built.plan, sys.stderr))
    if verbose > 1:
        say(reasons(built))


def load_previous(previous: Path | None, within_ppm: int | None, gap_ppm: int) -> tuple[Plan | None, int | None]:
    """The earlier plan, and how far from the least step it may be kept."""
    if previous is None:
        if within_ppm is not None:
            raise InputError("--within: there is no earlier plan: give --previous")
        return None, None
    if gap_ppm:
        raise InputError("--previous: what is near the least is known only where it is proven: leave --gap out")
    return load(previous), DEFAULT_WITHIN_PPM if within_ppm is None else within_ppm


def name_of(model: Path | None) -> str:
    """Of a plan: the directory of its model."""
    if model is None:
        return "demo"
    resolved = model.resolve()
    return (resolved.parent if resolved.suffix == ".json" else resolved).name


def refuse_bare(base: BaseInput, draft: DraftInput | None) -> None:
    for given, option in ((base, "--model"), (draft, "--draft")):
        if given is not None and given.checkpoint.tensors is None:
            raise InputError(
                f"{given.checkpoint.config_file}: has a config and no tensors, which images are compiled from: "
                f"give {option} a directory with them, or --plan-only"
            )


def summary_line(plan: Plan) -> str:
    used = len(plan.memory)
    stages = f"{len(plan.stages)} stage{'s' if len(plan.stages) > 1 else ''}"
    proof = plan.proof
    return (
        f"{stages} on {used} device{'s' if used > 1 else ''}, {format_ns(proof.objective_ns)} per step "
        f"({proof.status}, bound {format_ns(proof.bound_ns)})"
    )


def reasons(built: builder.Built) -> str:
    """Each objective as it was settled: what is minimised (negative: maximised), its value, the bound, the time."""
    lines = [f"{o.what:<12} {o.value:>20} bound {o.bound:>20} {o.seconds:>8.3f} s" for o in built.solved.optima]
    return "\n".join(["Objectives, in the order in which they were settled", *lines])


def verbosity(count: int) -> int:
    """-v and -vv, or DEBUG=1 and DEBUG=2."""
    return max(count, int(os.environ.get("DEBUG", "0")) if os.environ.get("DEBUG", "0").isdecimal() else 0)


@click.command("check")
@click.argument("plans", type=DIRECTORY, nargs=-1, required=True)
@click.option("--workers", type=click.IntRange(min=1), default=1, hidden=True)
@click.option("--solver-seed", type=click.IntRange(min=0), default=0, hidden=True)
@click.option("--json", "as_json", is_flag=True, help="One object on stdout.")
@refusals
def check_command(*, plans: tuple[Path, ...], workers: int, solver_seed: int, as_json: bool) -> None:
    """Solve plans again from their own inputs, without weights; exit code 1 if one is not what comes out."""
    results, refused = [], []
    for directory in plans:
        try:
            differences = differences_of(directory, Settings(workers=workers, seed=solver_seed))
        except (PlannerError, PlanError) as error:  # the others are checked all the same
            say(f"error: {error}")
            refused.append(error)
            continue
        results.append({"plan": str(directory), "clean": not differences, "differences": differences})
        say(f"{directory}: " + ("clean" if not differences else f"{len(differences)} differences"))
        for line in differences:
            say(f"  {line}")
    if as_json:
        put(({"error": describe(refused[0])} if refused else {}) | {"plans": results})
    if refused:
        sys.exit(refused[0].exit_code)
    sys.exit(0 if all(result["clean"] for result in results) else 1)


def differences_of(directory: Path, settings: Settings) -> list[str]:
    """Of a plan from what its own inputs lead to."""
    frozen = load(directory)
    again = builder.replan(directory, frozen, replace(settings, gap_ppm=frozen.options.gap_ppm))
    differences = [str(difference) for difference in plan_diff.diff(frozen, again)]
    if not differences and (directory / "plan.yaml").read_bytes() != codec.dumps(frozen).encode():
        return ["plan.yaml: not in canonical form"]
    return differences
