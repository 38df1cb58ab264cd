"""Checks a plan: solves it again from its own inputs."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from planner.api.options import check_search
from planner.build import Built, rebuild
from planner.solver import limits
from planner.solver.minimise import Settings
from plans import codec
from plans.check import load
from plans.diff import Difference, diff
from plans.schema import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Repeated:
    """How a document differs from the one that its inputs lead to."""

    file: ClassVar[str]
    """Name of the document."""
    differences: tuple[Difference, ...]
    canonical: bool
    """True where the document has exactly the bytes of its canonical form."""

    @property
    def clean(self) -> bool:
        """True where the document is what its inputs lead to, byte for byte."""
        return not self.differences and self.canonical

    @property
    def lines(self) -> tuple[str, ...]:
        """Differences in words."""
        if not self.differences and not self.canonical:
            return (f"{self.file}: not in canonical form",)
        return tuple(map(str, self.differences))


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult(Repeated):
    """A plan, and the one that its inputs lead to."""

    file: ClassVar[str] = codec.PLAN_FILE
    plan: Plan
    again: Built
    """The plan solved again, with its proof."""


def check(directory: str | Path, *, workers: int = 1, seed: int = 0) -> CheckResult:
    """Solve the plan in ``directory`` again from its own inputs and compare; no weights are read.

    ``workers``, ``seed``: of the solver; no plan depends on them. Raise InvalidPlanError where the plan contradicts
    itself, InputError where its inputs cannot be read, InfeasibleError or NotProvenError where they lead to no plan.
    """
    check_search(workers, seed)
    directory = Path(directory)
    frozen = load(directory)
    settings = Settings(workers=workers, seed=seed, gap_ppm=frozen.options.gap_ppm, limit=limits.MOST_LIMIT)
    again = rebuild(directory, frozen, settings)
    return CheckResult(
        plan=frozen,
        again=again,
        differences=diff(frozen, again.plan),
        canonical=codec.is_canonical(directory, frozen),
    )
