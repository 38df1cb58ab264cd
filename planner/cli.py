"""The command line of the planner: chooses the command, and turns an error into text, JSON and an exit code."""

from contextlib import AbstractContextManager
from typing import Any

import click

from planner.commands.declarations import COMMANDS
from planner.commands.refusals import refusal
from plans.command_names import unknown
from plans.console import VERSION_MESSAGE, refusals_reported

EXIT_CODES = (
    ("0", "done; no difference"),
    ("1", "plans differ; or the output could not be written"),
    ("2", "an input or the command line is wrong"),
    ("3", "the model does not fit, or the proof did not end within its limit"),
    ("4", "a file beside a plan is not there"),
    ("5", "a GPU of this machine cannot be read or described"),
    ("130", "interrupted by Ctrl-C"),
)


class Commands(click.Group):
    """The group of all commands; with ``--json`` an error, also of the command line, is a JSON object too."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of declaration."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands and not args[0].startswith("-"):
            ctx.fail(unknown(args[0], "planner"))
        return super().resolve_command(ctx, args)

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
        with reported(as_json):
            context = super().make_context(info_name, args, parent, **extra)
        context.meta["as_json"] = as_json
        return context

    def invoke(self, ctx: click.Context) -> Any:
        with reported(ctx.meta["as_json"]):
            return super().invoke(ctx)


def reported(as_json: bool) -> AbstractContextManager[None]:
    """Report an error as text, with ``as_json`` as an object too, and exit with the code of its class."""
    return refusals_reported(refusal, as_json=as_json, indent=2)


@click.group(
    cls=Commands,
    commands=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="eagleplan", message=VERSION_MESSAGE)
def main() -> None:
    """Place a model and its EAGLE head on your devices, prove the placement, freeze it, compile its images."""
