"""Output that all commands share: messages and JSON objects. Errors are reported by ``planner.cli``."""

import json
from pathlib import Path
from typing import Any

import click

from planner.errors import InputError
from plans import durable
from plans.terminal import err, out


def say(text: str) -> None:
    """Write a message for people, on stderr."""
    err(text)


def put(data: Any) -> None:
    """Write one JSON object, on stdout."""
    out(json.dumps(data, indent=2))


def write_page(file: Path, page: str) -> None:
    """Write the page of ``--html``, and say so; raise InputError where the file cannot be written."""
    try:
        durable.write_whole(file, page)
    except OSError as error:
        raise InputError(f"--html {file}: cannot write: {error.strerror}") from error
    say(f"{file}: written")


def one_form(*forms: tuple[str, object]) -> None:
    """Raise a usage error where more than one form of output is asked for."""
    requested = [option for option, value in forms if value]
    if len(requested) > 1:
        raise click.UsageError(f"found {' and '.join(requested)}, expected one of them at most")
