"""Violations of a plan as text."""

from plans.check import check
from plans.schema import Plan


def violations_of(plan: Plan) -> list[str]:
    """Return the violations of a plan as text."""
    return [str(violation) for violation in check(plan)]
