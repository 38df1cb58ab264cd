"""A refusal as data for programs, and the changes that it suggests as lines for people."""

from typing import Any

from planner.errors import Change, InfeasibleError, NotProvenError, PlannerError
from planner.view import format_ns
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
    if isinstance(error, NotProvenError):
        described |= {"objective_ns": error.objective_ns, "bound_ns": error.bound_ns, "gap": error.gap}
    return described


def describe_change(change: Change) -> dict[str, Any]:
    """A change for programs: with ``args``, or with the text of the changed ``inventory``."""
    how = {"args": list(change.args)} if change.inventory is None else {"inventory": change.inventory}
    return {"change": change.change, "objective_ns": change.objective_ns, **how}


def changes_table(changes: tuple[Change, ...], undecided: tuple[str, ...]) -> str:
    """The changes for people: time of a step, words, and the options where it is done with options."""
    lines = [
        f"  {format_ns(change.objective_ns):>9} per step  {change.change}"
        + (f": {' '.join(change.args)}" if change.args else "")
        for change in changes
    ]
    said = ["Any one of these makes it fit:", *lines] if lines else []
    if undecided:
        said.append(f"Whether this alone makes it fit was not decided within the limit: {', '.join(undecided)}.")
    return "\n".join(said) or "No single change makes it fit."
