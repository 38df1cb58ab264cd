"""`show` and `diff`: plans as they are."""

import sys
from pathlib import Path

import click

from planner.commands.console import DIRECTORY, one_form, put, refusals, say, tables
from planner.errors import InputError
from planner.families import BaseInput, DraftInput, facts_of, load_base, load_draft
from planner.images import provenance, reuse
from planner.images.compile import check_inputs, sources_of
from planner.problem.device_map import write as write_device_map
from planner.report import render
from plans import codec
from plans import diff as plan_diff
from plans.artifact import IMAGES_FILE, load_images
from plans.check import load
from plans.schema import Plan


@click.command("show")
@click.argument("plan", type=DIRECTORY)
@click.option("--json", "as_json", is_flag=True, help="The plan and its summary as one object.")
@click.option("--markdown", is_flag=True, help="A page for a review.")
@click.option("--html", "html_file", type=DIRECTORY, help="Write a page that needs nothing else.")
@click.option("--device-map", is_flag=True, help="As a Hugging Face device_map, where no layer is split.")
@click.option("--slot", metavar="NAME", help="Which bytes of which files a tensor of the images is made of.")
@click.option("--model", type=DIRECTORY, help="With --slot: the checkpoint; default: the one that was compiled.")
@click.option("--draft", type=DIRECTORY, help="With --slot: the EAGLE head, likewise.")
@refusals
def show_command(
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
        put({"plan": str(plan), **render.summary(frozen), "content": codec.encode(frozen)})
    elif markdown:
        click.echo(render.markdown(frozen), nl=False)
    elif html_file is not None:
        try:
            html_file.write_text(render.html(frozen))
        except OSError as error:
            raise InputError(f"--html {html_file}: cannot write: {error}") from error
        say(f"{html_file}: written")
    else:
        click.echo(tables(frozen, sys.stdout))


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


@click.command("diff")
@click.argument("a", type=DIRECTORY)
@click.argument("b", type=DIRECTORY)
@click.option("--json", "as_json", is_flag=True, help="One object on stdout.")
@click.option("--markdown", is_flag=True, help="A page for a review.")
@refusals
def diff_command(*, a: Path, b: Path, as_json: bool, markdown: bool) -> None:
    """What differs between two plans; exit code 1 if anything does."""
    one_form(("--json", as_json), ("--markdown", markdown))
    plans = [load(directory) for directory in (a, b)]
    if as_json:
        put(render.diff_data(*plans))
    elif markdown:
        click.echo(render.diff_markdown(*plans), nl=False)
    else:
        for line in plan_diff.summary(*plans):
            click.echo(line)
    sys.exit(1 if plans[0] != plans[1] else 0)
