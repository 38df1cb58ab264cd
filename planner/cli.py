"""The commands; the only place that prints, reads the environment, and exits. stdout is data, stderr is for people."""

import json
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any, get_args

import click
from rich.console import Console

from planner import build as builder
from planner import progress, provenance, report, reuse
from planner.arguments import parse_context, parse_gap, parse_strategy, parse_tree, parse_within
from planner.compile import CompileReport, check_inputs, compile_plan, sources_of
from planner.detect import detect
from planner.device_map import load_device_map
from planner.device_map import write as write_device_map
from planner.errors import InfeasibleError, InputError, OutputError, PlannerError
from planner.explain import explain
from planner.families import BaseInput, DraftInput, facts_of, load_base, load_draft, scan
from planner.inventory import dump_inventory, load_inventory, read_inventory
from planner.nvml import read_machine
from planner.refusal import changes_table, describe
from planner.search import DETERMINISTIC_LIMIT, Settings
from planner.view import format_ns
from plans import codec
from plans import diff as plan_diff
from plans.artifact import IMAGES_FILE, load_images
from plans.check import load
from plans.diff import format_bytes
from plans.facts import MOST_STALL_S
from plans.schema import DTYPE_BYTES, KV_DTYPE_BYTES, DType, KvAxis, Plan, PlanError, Strategy

DIRECTORY = click.Path(path_type=Path)


def say(text: str) -> None:
    """To people."""
    click.echo(text, err=True)


def put(data: Any) -> None:
    """One JSON object on stdout."""
    click.echo(json.dumps(data, indent=2))


def refusals(command: Callable[..., None]) -> Callable[..., None]:
    """Turn a refusal into a message, for programs an object too, and the exit code that belongs to it."""

    @wraps(command)
    def run(**options: Any) -> None:
        try:
            command(**options)
        except (PlannerError, PlanError) as error:
            say(f"error: {error}")
            if isinstance(error, InfeasibleError) and error.changes is not None:
                say(changes_table(error.changes, error.undecided))
            if options.get("as_json"):
                put({"error": describe(error)})
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            say("interrupted")
            sys.exit(130)

    return run


def verbosity(count: int) -> int:
    """-v and -vv, or DEBUG=1 and DEBUG=2."""
    return max(count, int(os.environ.get("DEBUG", "0")) if os.environ.get("DEBUG", "0").isdecimal() else 0)


DEFAULT_WITHIN_PPM = 20_000
"""How much longer than the least a step may take with ``--previous``."""


class Commands(click.Group):
    """A group whose refusals of a command line are an object too where ``--json`` is given, as all others are."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        as_json = "--json" in args
        with usage(as_json):
            context = super().make_context(info_name, args, parent, **extra)
        context.meta["as_json"] = as_json
        return context

    def invoke(self, ctx: click.Context) -> Any:
        with usage(ctx.meta["as_json"]):
            return super().invoke(ctx)


@contextmanager
def usage(as_json: bool) -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        if as_json:
            put({"error": {"type": "UsageError", "message": error.format_message(), "exit_code": error.exit_code}})
        raise


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Plan where a model lies on your devices, prove it optimal, freeze it, and compile its images.

    Exit codes: 0 done, 1 plans differ, 2 bad input, 3 infeasible or not proven, 4 artifact missing or damaged,
    5 wrong machine.
    """


@main.command()
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
    default=builder.Wanted().stall_timeout_s,
    show_default=True,
    help="Seconds without progress of a device after which a run ends.",
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
@click.option("--solver-limit", type=click.FloatRange(0, DETERMINISTIC_LIMIT), default=DETERMINISTIC_LIMIT, hidden=True)
@click.option("--json", "as_json", is_flag=True, help="One object on stdout.")
@click.option("-v", "verbose", count=True, help="The plan as tables; -vv: and each objective with its bound.")
@refusals
def build(
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
        draft = builder.DEMO / "eagle3"
    out = out or Path("plans") / name_of(model)
    model = model or builder.DEMO / "base"
    builder.refuse_foreign(out)
    chosen = one_map(strategy, device_map, map_file)
    kept, wanted["within_ppm"] = load_previous(previous, wanted["within_ppm"], gap_ppm)
    asked = builder.Wanted(gap_ppm=gap_ppm, strategy=strategy[0], **wanted)
    base = load_base(model)
    head = load_draft(draft, base) if draft else None
    if not plan_only:
        refuse_bare(base, head)
    request = builder.Request(
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
        built = builder.build(request, settings)
    except InfeasibleError as error:
        raise explain(request, error, settings) from error
    builder.write(out, built.plan, base, head)
    tell(out, built, kept, previous, verbosity(verbose))
    if head is not None and built.plan.options.context > head.max_positions:
        say(f"{out}: the EAGLE head was trained for {head.max_positions} positions: beyond them it may draft worse")
    compiled = None if plan_only else compile_images(out, model, draft, None)
    if as_json:
        images = {"images": images_data(compiled)} if compiled else {}
        put({"plan": str(out), **report.summary(built.plan), "solve_s": round(built.solved.solve_s, 4), **images})
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


def tables(plan: Plan, stream: Any) -> str:
    """For the terminal that the stream is, in colour unless NO_COLOR asks for none."""
    console = Console(file=stream)
    return report.text(plan, console.width, stream.isatty() and not console.no_color).rstrip("\n")


def compile_images(
    directory: Path, model: Path, draft: Path | None, only: tuple[str, ...] | None, quiet: bool = False
) -> CompileReport:
    with ends_cleanly(), progress.shown(Console(stderr=True), say) as report_to:
        compiled = compile_plan(directory, model, draft, only, None if quiet else report_to)
    if quiet:
        return compiled
    for image in compiled.images:
        done = "unchanged" if image.reused else "written"
        say(f"{directory / image.file}: {format_bytes(image.size_bytes)} {done}, blake3 {image.blake3[:16]}")
    if compiled.missing:
        say(f"not compiled yet: {', '.join(compiled.missing)}")
    return compiled


@contextmanager
def ends_cleanly() -> Iterator[None]:
    """Let a request to end unwind, as Ctrl-C does, so that nothing is left behind."""

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    asked = [kind for kind in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(kind) is signal.SIG_DFL]
    for kind in asked:
        signal.signal(kind, end)
    try:
        yield
    finally:
        for kind in asked:
            signal.signal(kind, signal.SIG_DFL)


def images_data(compiled: CompileReport) -> list[dict[str, Any]]:
    return [codec.encode(image) for image in compiled.images]


@main.command("compile")
@click.argument("plan", type=DIRECTORY)
@click.option("--model", type=DIRECTORY, help="Checkpoint directory; default: the embedded demo model.")
@click.option("--draft", type=DIRECTORY, help="Directory of the EAGLE head.")
@click.option("--only", multiple=True, help="Only the image of this device, or of this host's; may be repeated.")
@click.option("--quiet", "-q", is_flag=True, help="Say nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="One object on stdout.")
@refusals
def compile_command(
    *, plan: Path, model: Path | None, draft: Path | None, only: tuple[str, ...], quiet: bool, as_json: bool
) -> None:
    """Compile the images of a plan from its checkpoints."""
    frozen = codec.load(plan)
    if model is None and draft is None and frozen.draft is not None:
        draft = builder.DEMO / ("eagle3" if frozen.draft.kind == "eagle3" else "eagle1")
    compiled = compile_images(plan, model or builder.DEMO / "base", draft, only or None, quiet)
    if as_json:
        put({"plan": str(plan), **codec.encode(compiled)})


@main.command()
@click.argument("plan", type=DIRECTORY)
@click.option("--json", "as_json", is_flag=True, help="The plan and its summary as one object.")
@click.option("--markdown", is_flag=True, help="A page for a review.")
@click.option("--html", "html_file", type=DIRECTORY, help="Write a page that needs nothing else.")
@click.option("--device-map", is_flag=True, help="As a Hugging Face device_map, where no layer is split.")
@click.option("--slot", metavar="NAME", help="Which bytes of which files a tensor of the images is made of.")
@click.option("--model", type=DIRECTORY, help="With --slot: the checkpoint; default: the one that was compiled.")
@click.option("--draft", type=DIRECTORY, help="With --slot: the EAGLE head, likewise.")
@refusals
def show(
    *,
    plan: Path,
    as_json: bool,
    markdown: bool,
    html_file: Path | None,
    device_map: bool,
    slot: str | None,
    model: Path | None,
    draft: Path | None,
) -> None:
    """Show a plan: stages, shares, memory of each device, predicted times."""
    pages = (("--markdown", markdown), ("--html", html_file))
    one_form(("--json", as_json), *pages)
    one_form(*pages, ("--device-map", device_map), ("--slot", slot))
    frozen = load(plan)
    if slot is not None:
        show_slot(plan, frozen, slot, model, draft, as_json)
    elif device_map:
        lines = write_device_map(frozen)
        if as_json:
            put({"plan": str(plan), "device_map": lines})
        else:
            click.echo(codec.dump_yaml(lines), nl=False)
    elif as_json:
        put({"plan": str(plan), **report.summary(frozen), "content": codec.encode(frozen)})
    elif markdown:
        click.echo(report.markdown(frozen), nl=False)
    elif html_file is not None:
        try:
            html_file.write_text(report.html(frozen))
        except OSError as error:
            raise InputError(f"--html {html_file}: cannot write: {error}") from error
        say(f"{html_file}: written")
    else:
        click.echo(tables(frozen, sys.stdout))


def one_form(*forms: tuple[str, object]) -> None:
    """Raise a usage error where more than one form of an answer is asked for."""
    asked = [option for option, given in forms if given]
    if len(asked) > 1:
        raise click.UsageError(f"found {' and '.join(asked)}, expected one of them at most")


def show_slot(directory: Path, plan: Plan, name: str, model: Path | None, draft: Path | None, as_json: bool) -> None:
    """What a slot is made of, by the checkpoints' headers or, where none are at hand, by the plan alone."""
    memory = reuse.recall(directory)
    if model is None and memory is not None and Path(memory.base).is_dir():
        model, draft = Path(memory.base), draft or (Path(memory.draft) if memory.draft else None)
    base = load_base(model or directory / "config.json")
    head = None
    if plan.draft is not None:
        given = draft if draft is not None and draft.is_dir() else directory / "draft" / "config.json"
        head = load_draft(given, base, facts_of(plan.draft))
    check_inputs(plan, base, head)
    refuse_other_headers(directory, base, head)
    found = provenance.provenance(plan, name, base, head)
    if as_json:
        put({"plan": str(directory), "slot": name, "devices": codec.encode(found)})
        return
    for line in provenance.lines(found):
        click.echo(line)
    if any(origin.file is None for here in found for origin in here.origins):
        say("files and offsets are in the checkpoint's headers: give it with --model, and a head with --draft")


def refuse_other_headers(directory: Path, base: BaseInput, draft: DraftInput | None) -> None:
    """Headers that are not those of the checkpoints that were compiled would tell other offsets."""
    if not (directory / IMAGES_FILE).is_file():
        return
    compiled, given = load_images(directory).sources, sources_of(base, draft)
    pairs = ((base, compiled.base, given.base), (draft, compiled.draft, given.draft))
    for checkpoint, then, now in pairs:
        if checkpoint is not None and checkpoint.checkpoint.tensors is not None and then != now:
            raise InputError(
                f"{checkpoint.checkpoint.directory}: its files are not those that were compiled (sources in "
                f"{directory / IMAGES_FILE}): give those with --model and --draft, or compile again"
            )


@main.command()
@click.argument("a", type=DIRECTORY)
@click.argument("b", type=DIRECTORY)
@click.option("--json", "as_json", is_flag=True, help="One object on stdout.")
@click.option("--markdown", is_flag=True, help="A page for a review.")
@refusals
def diff(*, a: Path, b: Path, as_json: bool, markdown: bool) -> None:
    """What differs between two plans; exit code 1 if anything does."""
    one_form(("--json", as_json), ("--markdown", markdown))
    plans = [load(directory) for directory in (a, b)]
    if as_json:
        put(report.diff_data(*plans))
    elif markdown:
        click.echo(report.diff_markdown(*plans), nl=False)
    else:
        for line in plan_diff.summary(*plans):
            click.echo(line)
    sys.exit(1 if plans[0] != plans[1] else 0)


@main.command()
@click.argument("plans", type=DIRECTORY, nargs=-1, required=True)
@click.option("--workers", type=click.IntRange(min=1), default=1, hidden=True)
@click.option("--solver-seed", type=click.IntRange(min=0), default=0, hidden=True)
@click.option("--json", "as_json", is_flag=True, help="One object on stdout.")
@refusals
def check(*, plans: tuple[Path, ...], workers: int, solver_seed: int, as_json: bool) -> None:
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


@main.command()
@click.argument("file", type=DIRECTORY, required=False)
@click.option("--detect", "detected", is_flag=True, help="Write the inventory of this machine, as NVML tells it.")
@click.option("--dtype", type=click.Choice(list(DTYPE_BYTES)), default="bfloat16", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One object on stdout.")
@refusals
def inventory(*, file: Path | None, detected: bool, dtype: Any, as_json: bool) -> None:
    """An inventory with every default written out (default: inventory.yaml); or with --detect that of this machine,
    to FILE where there is none yet, else to stdout."""
    if detected:
        write_detected(file, dtype, as_json)
        return
    devices = load_inventory(file or Path("inventory.yaml"), dtype)
    if as_json:
        put({"inventory": codec.encode(devices)})
    else:
        click.echo(dump_inventory(devices), nl=False)


def write_detected(file: Path | None, dtype: DType, as_json: bool) -> None:
    name = socket.gethostname().partition(".")[0]
    found = detect(read_machine(), name if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) else "box0", dtype)
    for line in found.left_out:
        say(f"left out: {line}")
    if file is not None:
        try:
            with file.open("x") as stream:
                stream.write(found.text)
        except OSError as error:
            raise OutputError(f"{file}: cannot write the inventory: {error.strerror}: give a new file") from error
        say(f"{file}: {len(found.inventory.devices)} devices")
    if as_json:
        put({"inventory": codec.encode(found.inventory), "left_out": list(found.left_out)})
    elif file is None:
        click.echo(found.text, nl=False)


@main.command("scan")
@click.argument("checkpoint", type=DIRECTORY)
@click.option("--json", "as_json", is_flag=True, help="One object on stdout.")
@refusals
def scan_command(*, checkpoint: Path, as_json: bool) -> None:
    """What a checkpoint holds, from its headers alone."""
    summary = scan(checkpoint)
    if as_json:
        put({"checkpoint": str(checkpoint), **codec.encode(summary)})
        return
    click.echo(f"{summary.num_tensors} tensors, {format_bytes(summary.nbytes)}, {', '.join(summary.dtypes)}")
    for block in summary.blocks:
        click.echo(f"  {block.block:<10} {block.num_tensors:>4} tensors  {format_bytes(block.nbytes):>10}")
