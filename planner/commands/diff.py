"""``diff``: two plans, compared."""

import sys
from pathlib import Path

from planner.commands.console import one_form, put, say
from planner.report import render
from planner.report.details import compared_memory, compared_times
from plans import diff as plan_diff
from plans.check import load
from plans.terminal import out


def run(*, a: Path, b: Path, as_json: bool, markdown: bool, verbose: int) -> None:
    """Write the differences of two plans; exit with 1 if there are any."""
    one_form(("--json", as_json), ("--markdown", markdown))
    before, after = load(a), load(b)
    if as_json:
        put(render.diff_data(before, after))
    elif markdown:
        out(render.diff_markdown(before, after), end="")
    else:
        for line in plan_diff.summary(before, after):
            out(line)
    if verbose:
        say("\n".join(compared_memory(before, after)))
    if verbose > 1:
        say("\n".join(compared_times(before, after)))
    sys.exit(1 if before != after else 0)
