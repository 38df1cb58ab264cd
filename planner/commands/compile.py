"""`compile`: images of a plan, as a command and at the end of a build."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click
from rich.console import Console

from planner.commands import progress
from planner.commands.console import DEMO, DIRECTORY, put, refusals, say
from planner.images.compile import CompileReport, compile_plan
from plans import codec
from plans.format import format_bytes


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


@click.command("compile")
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
        draft = DEMO / ("eagle3" if frozen.draft.kind == "eagle3" else "eagle1")
    compiled = compile_images(plan, model or DEMO / "base", draft, only or None, quiet)
    if as_json:
        put({"plan": str(plan), **codec.encode(compiled)})
