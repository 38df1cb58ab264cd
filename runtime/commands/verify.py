"""The command `verify`: compares the images of a plan with their digests."""

from pathlib import Path

import click

from runtime.commands.command import Command
from runtime.commands.options import AS_JSON, PLAN, VERBOSE, load_module


@click.command(
    "verify",
    short_help="Compare the images of a plan with their digests.",
    cls=Command,
    examples=("PROGRAM verify plans/demo --only cpu0",),
)
@PLAN
@click.option("--only", metavar="NAME", multiple=True, help="Only images of this device or host; may be repeated.")
@AS_JSON
@VERBOSE
def verify_command(*, directory: Path, only: tuple[str, ...], as_json: bool, verbose: int) -> None:
    """Read every image of a plan and compare it with its digest. No model is loaded, and no GPU is needed."""
    load_module("runtime.commands.verify_images").verify(directory, only=only, as_json=as_json, verbose=verbose)
