"""Reads plans and compares two of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from plans import diff as plan_diff
from plans.check import load
from plans.diff import Difference, Move
from plans.schema import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanDiff:
    """Two plans compared."""

    before: Plan
    after: Plan
    moves: tuple[Move, ...]
    """Runs of layers whose devices or shares differ."""
    moved_bytes: Mapping[str, int]
    """Bytes of weights that are new to a device, by device; devices without any are left out."""
    differences: tuple[Difference, ...]
    """Every datum that differs, in the order of the schema."""

    @property
    def equal(self) -> bool:
        """True where the plans are equal."""
        return not self.differences

    @property
    def lines(self) -> tuple[str, ...]:
        """Return the lines that ``diff`` prints: step times and bytes that move, layers that move, every difference."""
        return plan_diff.summary(self.before, self.after)


def read(directory: str | Path) -> Plan:
    """Read the plan in ``directory``; raise PlanError where there is none, or it contradicts itself."""
    return load(Path(directory))


def diff(before: Plan | str | Path, after: Plan | str | Path) -> PlanDiff:
    """Compare two plans, or the plans in two directories; raise PlanError as :func:`read` does."""
    old, new = (plan if isinstance(plan, Plan) else read(plan) for plan in (before, after))
    return PlanDiff(
        before=old,
        after=new,
        moves=plan_diff.moves(old, new),
        moved_bytes=plan_diff.moved_bytes(old, new),
        differences=plan_diff.diff(old, new),
    )
