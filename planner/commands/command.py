"""A click command whose code is imported when it runs, and whose help ends with examples."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from plans.process import importing


class Command(click.Command):
    """A command that runs ``planner.commands.<name>.run`` with the values of its parameters."""

    def __init__(
        self, name: str, *, summary: str, details: str = "", params: Sequence[click.Parameter], examples: Sequence[str]
    ) -> None:
        """``summary``: one line; ``details``: paragraphs; ``examples``: command lines without the program's name."""
        self.examples = tuple(examples)

        def callback(**values: Any) -> None:
            with importing():
                module = import_module(f"planner.commands.{name}")
            module.run(**values)

        super().__init__(
            name, params=list(params), callback=callback, help=f"{summary}\n\n{details}".strip(), short_help=summary
        )

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        program = ctx.find_root().info_name
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write(f"{'':{formatter.current_indent}}{program} {self.name} {example}\n")


class HiddenArgument(click.Argument):
    """A positional argument that is accepted and not part of the usage line."""

    def get_usage_pieces(self, ctx: click.Context) -> list[str]:
        return []
