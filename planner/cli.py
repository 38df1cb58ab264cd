"""The command line: which command is meant. It exits with what the command says."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from planner.commands.console import put
from plans.process import VERSION_MESSAGE, importing

HOMES = {
    "build": "build",
    "check": "build",
    "compile": "compile",
    "diff": "show",
    "inventory": "inputs",
    "scan": "inputs",
    "show": "show",
}
"""The module of each command."""


class Commands(click.Group):
    """Commands that are imported when one of them, or help on all, is asked for: only to build needs the solver.

    Refusals of a command line are an object too where ``--json`` is given, as all others are.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(HOMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in HOMES:
            return None
        with importing():
            module = import_module(f"planner.commands.{HOMES[cmd_name]}")
        found: click.Command = getattr(module, f"{cmd_name}_command")
        return found

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        as_json = "--json" in args
        with usage(as_json):
            context = super().make_context(info_name, args, parent, **extra)
        context.meta["as_json"] = as_json
        return context

    def invoke(self, ctx: click.Context) -> Any:
        with usage(ctx.meta["as_json"]):
            return super().invoke(ctx)


@contextmanager
def usage(as_json: bool) -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        if as_json:
            put({"error": {"type": "UsageError", "message": error.format_message(), "exit_code": error.exit_code}})
        raise


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="eagleplan", message=VERSION_MESSAGE)
def main() -> None:
    """Plan where a model lies on your devices, prove it optimal, freeze it, and compile its images.

    Exit codes: 0 done, 1 plans differ, 2 bad input, 3 infeasible or not proven, 4 artifact missing or damaged,
    5 wrong machine.
    """
