"""A refusal as data for programs, and the changes that it suggests as lines for people."""

from typing import Any

from planner.errors import Change, InfeasibleError, NotProvenError, PlannerError
from plans.format import format_ns
from plans.schema import PlanError


def describe(error: PlannerError | PlanError) -> dict[str, Any]:
    """An error for programs."""
    described: dict[str, Any] = {
        "type": type(error).__name__,
        "message": str(error),
        "exit_code": error.exit_code,
    }
    if isinstance(error, InfeasibleError):
        described["short_bytes"] = sum(error.short_bytes.values()) if error.short_bytes else None
        described["devices"] = [{"id": name, "short_bytes": nbytes} for name, nbytes in error.short_bytes.items()]
        if error.changes is not None:
            described["changes"] = [describe_change(change) for change in error.changes]
            described["undecided"] = list(error.undecided)
            described["untimed"] = list(error.untimed)
    if isinstance(error, NotProvenError):
        described |= {"objective_ns": error.objective_ns, "bound_ns": error.bound_ns, "gap": error.gap}
    return described


def describe_change(change: Change) -> dict[str, Any]:
    """A change for programs: with ``args``, with the text of the changed ``inventory``, or with both."""
    described: dict[str, Any] = {"change": change.change, "objective_ns": change.objective_ns}
    if change.bound_ns is not None:
        described["bound_ns"] = change.bound_ns
    if change.args or change.inventory is None:
        described["args"] = list(change.args)
    if change.inventory is not None:
        described["inventory"] = change.inventory
    return described


def changes_table(error: InfeasibleError) -> str:
    """The changes for people: time of a step, words, and the options where it is done with options."""
    lines = [_line(change) for change in error.changes or ()]
    said = ["Any one of these makes it fit:", *lines] if lines else []
    if error.untimed:
        kinds = ", ".join(error.untimed)
        said.append(f"This alone makes it fit too, but how fast it then is was not decided within the limit: {kinds}.")
    if error.undecided:
        kinds = ", ".join(error.undecided)
        said.append(f"Whether this alone makes it fit was not decided within the limit: {kinds}.")
    return "\n".join(said) or "No single change makes it fit."


def _line(change: Change) -> str:
    words = change.change
    if change.bound_ns is not None:
        words += f" (the fastest placement is not proven: none takes less than {format_ns(change.bound_ns)})"
    options = f": {' '.join(change.args)}" if change.args else ""
    return f"  {format_ns(change.objective_ns):>9} per step  {words}{options}"
