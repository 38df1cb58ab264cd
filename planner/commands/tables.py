"""The tables of a plan, as wide and as colourful as the stream they are written to."""

from typing import TextIO

from rich.console import Console

from planner.report import render
from plans.schema import Plan


def tables(plan: Plan, stream: TextIO) -> str:
    """Return the tables for the terminal behind ``stream``, in colour unless NO_COLOR is set."""
    console = Console(file=stream)
    return render.text(plan, console.width, stream.isatty() and not console.no_color).rstrip("\n")
