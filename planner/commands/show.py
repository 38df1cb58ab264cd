"""``show``: a plan as tables, Markdown, HTML, JSON, a device map or arguments of others, or the sources of a slot."""

import sys
from pathlib import Path

from planner.commands import show_fleet
from planner.commands.console import one_form, put, say, write_page
from planner.commands.tables import tables
from planner.errors import InputError
from planner.exports import accelerate, exllamav3, llama_cpp, vllm
from planner.families import BaseInput, DraftInput, load_base, load_planned_draft
from planner.images import provenance, reuse
from planner.images.inputs import check_inputs, sources_of
from planner.plan_directory import BASE_CONFIG, draft_config
from planner.problem.device_map import write as write_device_map
from planner.report import render
from planner.report.details import device_details, inventory_lines
from planner.speculation.placed import on_same_placement
from planner.speculation.profiles import profile_beside, profile_of
from plans import codec
from plans.artifact import IMAGES_FILE, load_images
from plans.check import load
from plans.fleet import is_fleet
from plans.schema import Plan, Speculation
from plans.strict_yaml import dump_yaml
from plans.terminal import out

EXPORTS = {module.PROGRAM: module.export for module in (vllm, accelerate, llama_cpp, exllamav3)}
"""Function that writes a plan for each program, by the name that --export takes."""


def run(
    *,
    plan: Path,
    as_json: bool,
    markdown: bool,
    html_file: Path | None,
    device_map: bool,
    export: str | None,
    slot: str | None,
    model: Path | None,
    draft: Path | None,
    launch: bool,
    verbose: int,
) -> None:
    """Write a plan in the form asked for."""
    pages = (("--markdown", markdown), ("--html", html_file))
    one_form(("--json", as_json), *pages, ("--export", export), ("--launch", launch))
    one_form(*pages, ("--device-map", device_map), ("--export", export), ("--slot", slot), ("--launch", launch))
    if is_fleet(plan):
        refuse_of_one_plan(plan, device_map=device_map, export=export, slot=slot)
        inventory = show_fleet.run(plan, as_json=as_json, markdown=markdown, html_file=html_file, launch=launch)
        if verbose:
            say("\n".join(inventory_lines(inventory)))
        return
    if launch:
        raise InputError(f"--launch: {plan} is no fleet (no fleet.yaml): give one, as `build --replicas` writes it")
    frozen = load(plan)
    if slot is not None:
        show_slot(plan, frozen, slot, model, draft, as_json)
    elif export is not None:
        out(EXPORTS[export](frozen), end="")
    elif device_map:
        show_device_map(plan, frozen, as_json)
    else:
        show_plan(plan, frozen, as_json=as_json, markdown=markdown, html_file=html_file)
    if verbose:
        say("\n".join(inventory_lines(frozen.inventory)))
    if verbose > 1:
        say("\n".join(device_details(frozen)))


def refuse_of_one_plan(fleet: Path, **forms: object) -> None:
    """Raise InputError for a form of output that is of a single plan."""
    for name, value in forms.items():
        if value:
            raise InputError(f"--{name.replace('_', '-')}: is of one plan: give the directory of a template in {fleet}")


def show_device_map(directory: Path, plan: Plan, as_json: bool) -> None:
    """Write a plan as a device map."""
    lines = write_device_map(plan)
    if as_json:
        put({"plan": str(directory), "device_map": lines})
    else:
        out(dump_yaml(lines), end="")


def show_plan(plan: Path, frozen: Plan, *, as_json: bool, markdown: bool, html_file: Path | None) -> None:
    """Write a plan as JSON, Markdown, HTML or tables."""
    if as_json:
        put({"plan": str(plan), **render.summary(frozen, known(plan, frozen)), "content": codec.encode(frozen)})
    elif markdown:
        out(render.markdown(frozen, known(plan, frozen)), end="")
    elif html_file is not None:
        write_page(html_file, render.html(frozen, known(plan, frozen)))
    else:
        out(tables(frozen, sys.stdout, known(plan, frozen)), styled=True)
        config = plan / BASE_CONFIG
        for note in load_base(config, frozen.options.weights).notes if config.is_file() else ():
            say(f"{plan}: {note}")
        if not (plan / IMAGES_FILE).is_file():
            say(f"{plan}: no images are compiled, so no weights of this plan were seen here")


def known(directory: Path, plan: Plan) -> Speculation | None:
    """Return what drafting is expected to gain: as recorded, else beside plain decoding on the same placement."""
    if plan.speculation is not None or plan.draft is None:
        return plan.speculation
    return on_same_placement(plan, profile_of(profile_beside(directory), plan.draft, inside=True))


def show_slot(directory: Path, plan: Plan, name: str, model: Path | None, draft: Path | None, as_json: bool) -> None:
    """Write the sources of a slot: from the checkpoints' headers, or where there are none from the plan alone."""
    memory = reuse.recall(directory)
    if model is None and memory is not None and Path(memory.base).is_dir():
        model, draft = Path(memory.base), draft or (Path(memory.draft) if memory.draft else None)
    base = load_base(model or directory / BASE_CONFIG, plan.options.weights, plan.model)
    head = None
    if plan.draft is not None:
        source = draft if draft is not None and draft.is_dir() else draft_config(directory)
        head = load_planned_draft(source, base, plan.draft)
    check_inputs(plan, base, head)
    refuse_other_headers(directory, base, head)
    sources = provenance.provenance(plan, name, base, head)
    if as_json:
        put({"plan": str(directory), "slot": name, "devices": codec.encode(sources)})
        return
    for line in provenance.lines(sources):
        out(line)
    if any(origin.file is None for source in sources for origin in source.origins):
        say("files and offsets are in the checkpoint's headers: give it with --model, and an EAGLE head with --draft")


def refuse_other_headers(directory: Path, base: BaseInput, draft: DraftInput | None) -> None:
    """Raise InputError where the checkpoints are not those that were compiled: their offsets would be others."""
    if not (directory / IMAGES_FILE).is_file():
        return
    compiled, current = load_images(directory).sources, sources_of(base, draft)
    pairs = ((base, compiled.base, current.base), (draft, compiled.draft, current.draft))
    for checkpoint, then, now in pairs:
        if checkpoint is not None and checkpoint.checkpoint.tensors is not None and then != now:
            raise InputError(
                f"{checkpoint.checkpoint.directory}: its files are not those that were compiled (sources in "
                f"{directory / IMAGES_FILE}): give those with --model and --draft, or compile again"
            )
