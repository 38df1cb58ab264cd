"""What the commands have in common: what they say, and how they refuse."""

import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console

from planner.commands.refusals import changes_table, describe
from planner.errors import InfeasibleError, InputError, PlannerError
from planner.report import render
from plans.schema import Plan, PlanError

DIRECTORY = click.Path(path_type=Path)
DEMO = Path(__file__).parents[1] / "demo"
"""The embedded model: ``base``, and its heads ``eagle3`` and ``eagle1``."""


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
        as_json = bool(options.get("as_json"))
        try:
            command(**options)
        except (PlannerError, PlanError) as error:
            _refuse(error, as_json)
        except OSError as error:
            if error.filename is None:  # a closed pipe, say, which click answers
                raise
            _refuse(InputError(f"{error.filename}: {error.strerror}"), as_json)
        except KeyboardInterrupt:
            say("interrupted")
            sys.exit(130)

    return run


def _refuse(error: PlannerError | PlanError, as_json: bool) -> NoReturn:
    say(f"error: {error}")
    if isinstance(error, InfeasibleError) and error.changes is not None:
        say(changes_table(error))
    if as_json:
        put({"error": describe(error)})
    sys.exit(error.exit_code)


def one_form(*forms: tuple[str, object]) -> None:
    """Raise a usage error where more than one form of an answer is asked for."""
    asked = [option for option, given in forms if given]
    if len(asked) > 1:
        raise click.UsageError(f"found {' and '.join(asked)}, expected one of them at most")


def tables(plan: Plan, stream: Any) -> str:
    """For the terminal that the stream is, in colour unless NO_COLOR asks for none."""
    console = Console(file=stream)
    return render.text(plan, console.width, stream.isatty() and not console.no_color).rstrip("\n")
