"""``diff``: two plans, compared."""

import sys
from pathlib import Path
from typing import NoReturn

from planner.commands.console import one_form, put, say
from planner.errors import InputError
from planner.report import fleet as fleet_report
from planner.report import render
from planner.report.details import compared_memory, compared_times
from plans import diff as plan_diff
from plans.check import load
from plans.fleet import is_fleet
from plans.fleet_diff import fleet_summary, load_with_plans
from plans.terminal import out


def run(*, a: Path, b: Path, as_json: bool, markdown: bool, verbose: int) -> None:
    """Write the differences of two plans; exit with 1 if there are any."""
    one_form(("--json", as_json), ("--markdown", markdown))
    if is_fleet(a) or is_fleet(b):
        run_fleets(a, b, as_json=as_json, markdown=markdown)
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


def run_fleets(a: Path, b: Path, *, as_json: bool, markdown: bool) -> NoReturn:
    """Write the differences of two fleets; exit with 1 if there are any."""
    for directory in (a, b):
        if not is_fleet(directory):
            raise InputError(f"{directory}: is no fleet, and is compared with one: give two plans, or two fleets")
    before, after = load_with_plans(a), load_with_plans(b)
    if as_json:
        put(fleet_report.diff_data(before, after))
    elif markdown:
        out(fleet_report.diff_markdown(before, after), end="")
    else:
        for line in fleet_summary(before, after):
            out(line)
    sys.exit(1 if before != after else 0)
