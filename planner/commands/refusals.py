"""Errors as refusals: their exit codes, their data for programs, and the changes they suggest as lines for people."""

from typing import Any

import click

from planner.errors import Change, InfeasibleError, InputError, NotProvenError, PlannerError
from plans.console import Refusal, error_data, usage_refusal
from plans.format import format_ns
from plans.schema import PlanError


def refusal(error: BaseException) -> Refusal | None:
    """Return the refusal of an error of the planner, of a plan, of a file or of a command line; None for any other."""
    if isinstance(error, click.ClickException):
        return usage_refusal(error)
    if isinstance(error, OSError) and error.filename is not None:  # without a name: a closed pipe, which click handles
        error = InputError(f"{error.filename}: {error.strerror}")
    if not isinstance(error, PlannerError | PlanError):
        return None
    text = f"error: {error}"
    if isinstance(error, InfeasibleError) and error.changes is not None:
        text += f"\n{changes_table(error)}"
    return Refusal(exit_code=error.exit_code, text=text, data=describe(error))


def describe(error: PlannerError | PlanError) -> dict[str, Any]:
    """Return an error as data for programs."""
    data = error_data(error, str(error), error.exit_code)
    if isinstance(error, InfeasibleError):
        data["short_bytes"] = sum(error.short_bytes.values()) if error.short_bytes else None
        data["devices"] = [{"id": name, "short_bytes": nbytes} for name, nbytes in error.short_bytes.items()]
        if error.changes is not None:
            data["changes"] = [describe_change(change) for change in error.changes]
            data["undecided"] = list(error.undecided)
            data["untimed"] = list(error.untimed)
            data["estimates"] = list(error.estimates)
            data["tree"] = error.tree
    if isinstance(error, NotProvenError):
        data |= {"objective_ns": error.objective_ns, "bound_ns": error.bound_ns, "gap": error.gap}
    return data


def describe_change(change: Change) -> dict[str, Any]:
    """Return a change as data for programs: with ``args``, the text of the changed ``inventory``, or both."""
    data: dict[str, Any] = {"change": change.change, "objective_ns": change.objective_ns}
    if change.bound_ns is not None:
        data["bound_ns"] = change.bound_ns
    if change.args or change.inventory is None:
        data["args"] = list(change.args)
    if change.inventory is not None:
        data["inventory"] = change.inventory
    return data


def changes_table(error: InfeasibleError) -> str:
    """Return the changes as lines: step time, words, and the options that make the change, if options do."""
    lines = [_line(change) for change in error.changes or ()]
    steps = "" if error.tree is None else f" (steps of the tree {error.tree}; build chooses the tree, or none)"
    text = [f"Any one of these makes it fit{steps}:", *lines] if lines else []
    if error.untimed:
        kinds = ", ".join(error.untimed)
        text.append(f"Also makes it fit, with a step time that was not proven within the limit: {kinds}.")
    if error.undecided:
        kinds = ", ".join(error.undecided)
        text.append(f"Not decided within the limit whether this makes it fit: {kinds}.")
    text = text or ["No single change makes it fit."]
    if error.estimates:
        text += ["By the sum of bytes alone:", *(f"  {words}" for words in error.estimates)]
    return "\n".join(text)


def _line(change: Change) -> str:
    words = change.change
    if change.bound_ns is not None:
        words += f" (the fastest placement is not proven: none takes less than {format_ns(change.bound_ns)})"
    if change.slow:
        words += " (slow: more than 1 s per step)"
    options = f": {' '.join(change.args)}" if change.args else ""
    return f"  {format_ns(change.objective_ns):>9} per step  {words}{options}"
