"""The command line of the planner: picks the command and exits with its code."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from planner.commands.console import put
from planner.commands.declarations import COMMANDS
from plans.process import VERSION_MESSAGE

EXIT_CODES = (
    ("0", "done; no difference"),
    ("1", "plans differ"),
    ("2", "an input or the command line is wrong"),
    ("3", "the model does not fit, or the proof did not end within its limit"),
    ("4", "a compiled artifact is missing, damaged or of another plan"),
    ("5", "the machine is not that of the plan"),
    ("130", "interrupted by Ctrl-C"),
)


class Commands(click.Group):
    """The group of all commands; with ``--json`` a refused command line is a JSON object too, like all refusals."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of declaration."""
        return list(self.commands)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the exit codes."""
        with formatter.section("Exit codes"):
            formatter.write_dl(EXIT_CODES)
        formatter.write_paragraph()
        formatter.write_text(f"{ctx.info_name} COMMAND --help describes a command, with examples.")

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
    """Write a usage error as an object too where ``as_json``, and raise it again for click to report."""
    try:
        yield
    except click.UsageError as error:
        if as_json:
            put({"error": {"type": "UsageError", "message": error.format_message(), "exit_code": error.exit_code}})
        raise


@click.group(
    cls=Commands,
    commands=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="eagleplan", message=VERSION_MESSAGE)
def main() -> None:
    """Place a model and its EAGLE head on your devices, prove the placement, freeze it, compile its images."""
