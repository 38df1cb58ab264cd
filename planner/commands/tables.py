"""The tables of a plan, as wide and as colourful as the stream they are written to."""

from typing import TextIO

from rich.console import Console

from planner.report import render
from plans.schema import Plan, Speculation


def tables(plan: Plan, stream: TextIO | None, speculation: Speculation | None = None) -> str:
    """Return the tables for the terminal behind ``stream``, in colour unless NO_COLOR is set.

    ``stream`` is None where it is closed. ``speculation``: what drafting is expected to gain.
    """
    console = Console(file=stream)
    colour = stream is not None and stream.isatty() and not console.no_color
    return render.text(plan, console.width, colour, speculation).rstrip("\n")
