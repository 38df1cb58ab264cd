"""``show`` of a fleet: tables, Markdown, HTML, JSON, or the files that start it."""

import sys
from pathlib import Path

from rich.console import Console

from planner.commands.console import put, say, write_page
from planner.errors import InputError
from planner.report import fleet as report
from planner.report import launch as launch_files
from plans import durable
from plans.codec import encode
from plans.fleet_diff import load_with_plans
from plans.schema import Inventory
from plans.terminal import out

LAUNCH = "launch"
"""Directory of the files that start a fleet, in the fleet's."""


def run(directory: Path, *, as_json: bool, markdown: bool, html_file: Path | None, launch: bool) -> Inventory:
    """Write a fleet in the form asked for, and return its inventory."""
    loaded = load_with_plans(directory)
    if launch:
        write_launch(directory / LAUNCH, launch_files.files(loaded, directory.resolve(), sys.executable))
        for note in launch_files.notes(loaded, sys.executable):
            say(f"{directory}: {note}")
    elif as_json:
        put({"fleet": str(directory), **report.data(loaded), "content": encode(loaded.fleet)})
    elif markdown:
        out(report.markdown(loaded), end="")
    elif html_file is not None:
        write_page(html_file, report.html(loaded, directory.resolve().name))
    else:
        console = Console(file=sys.stdout)
        colour = sys.stdout is not None and sys.stdout.isatty() and not console.no_color
        out(report.text(loaded, console.width, colour).rstrip("\n"), styled=True)
    return loaded.fleet.inventory


def write_launch(directory: Path, files: dict[str, str]) -> None:
    """Write files of a fleet's launch directory, and their names to stdout; raise InputError where that fails."""
    try:
        for name, content in files.items():
            file = directory / name
            file.parent.mkdir(parents=True, exist_ok=True)
            durable.write_whole(file, content)
            file.chmod(0o755 if name.endswith(".sh") else 0o644)
            out(str(file))
    except OSError as error:
        raise InputError(f"{directory}: cannot write: {error.strerror}") from error
