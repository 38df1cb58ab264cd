"""A click command whose help ends with examples, under the name by which the program was called."""

from collections.abc import Sequence
from typing import Any

import click

PROGRAM = "PROGRAM"
"""Stands in an example for the name of the program: ``python -m runtime``, or ``eagleplan``."""


class Command(click.Command):
    """A command with ``examples``, lines of a shell."""

    def __init__(self, *arguments: Any, examples: Sequence[str], **options: Any) -> None:
        self.examples = examples
        super().__init__(*arguments, **options)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples as they are: they are not wrapped."""
        with formatter.section("Examples" if len(self.examples) > 1 else "Example"):
            for example in self.examples:
                text = example.replace(PROGRAM, ctx.find_root().info_name or "")
                formatter.write(f"{'':{formatter.current_indent}}{text}\n")
