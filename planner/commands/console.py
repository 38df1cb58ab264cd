"""Output that all commands share: messages, JSON objects, and refusals with their exit codes."""

import json
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from planner.commands.refusals import refusal
from plans.console import refusals_reported


def say(text: str) -> None:
    """Write a message for people, on stderr."""
    click.echo(text, err=True)


def put(data: Any) -> None:
    """Write one JSON object, on stdout."""
    click.echo(json.dumps(data, indent=2))


def refusals(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command: an error becomes a message, with ``--json`` an object too, and the exit code of its class."""

    @wraps(command)
    def run(**options: Any) -> None:
        with refusals_reported(refusal, as_json=options["as_json"], indent=2):
            command(**options)

    return run


def one_form(*forms: tuple[str, object]) -> None:
    """Raise a usage error where more than one form of output is asked for."""
    requested = [option for option, value in forms if value]
    if len(requested) > 1:
        raise click.UsageError(f"found {' and '.join(requested)}, expected one of them at most")
