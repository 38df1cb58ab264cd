"""Options and output that several commands share, and the import of the modules that need torch."""

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from plans.console import verbosity
from plans.process import importing
from runtime.processes.thread_wait import limit_spinning

PLAN = click.argument("directory", metavar="PLAN", type=click.Path(path_type=Path))
AS_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")

QUIET = click.option("-q", "--quiet", is_flag=True, help="No progress on stderr while the plan is loaded.")


def _verbosity(context: click.Context, parameter: click.Parameter, count: int) -> int:
    return verbosity(count)


VERBOSE = click.option(
    "-v",
    "--verbose",
    count=True,
    callback=_verbosity,
    help="Devices, layers, KV heads and memory of each device (or DEBUG=1). -vv: and every tensor (or DEBUG=2).",
)


def to_stderr(lines: Iterable[str]) -> None:
    """Write lines for people."""
    for line in lines:
        click.echo(line, err=True)


def load_module(name: str) -> Any:
    """Import a module that needs torch, when it is needed."""
    limit_spinning()
    with importing():
        return importlib.import_module(name)
