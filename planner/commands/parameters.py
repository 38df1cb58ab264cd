"""Arguments and options that several commands have."""

import click

from planner.commands.options import (
    PATH,
    Whole,
    parse_verbosity,
)
from planner.request import MOST_SOLVER_SEED, MOST_WORKERS


def verbose(once: str, twice: str = "") -> click.Option:
    """Return the option -v of a command that writes ``once`` to stderr, and with -vv ``twice`` too."""
    also = f"; -vv: also {twice}" if twice else ""
    text = f"Write to stderr {once}{also}. DEBUG={'1 and DEBUG=2 do' if twice else '1 does'} the same."
    return click.Option(["-v", "verbose"], count=True, callback=parse_verbosity, help=text)


def json_option(text: str = "Write one JSON object to stdout, also for an error.") -> click.Option:
    """Return the option --json."""
    return click.Option(["--json", "as_json"], is_flag=True, help=text)


def plan_argument(name: str = "plan") -> click.Argument:
    """Return the argument that is the directory of a plan."""
    return click.Argument([name], type=PATH)


def solver_options() -> tuple[click.Option, ...]:
    """Return hidden options for experiments with the solver; none of them changes the plan."""
    return (
        click.Option(["--workers"], type=Whole(1, MOST_WORKERS), default=1, hidden=True),
        click.Option(["--solver-seed"], type=Whole(0, MOST_SOLVER_SEED), default=0, hidden=True),
    )
